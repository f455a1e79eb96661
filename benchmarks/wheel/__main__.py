"""`python -m benchmarks.wheel WHEEL... [--cells 3.12:2.11 ...] [--out FILE]`: see --help and `make wheel-check`."""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..speed.report import commit
from . import matrix, table

RESULTS = Path(__file__).resolve().parent.parent / "results" / "wheel.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """1 if a wheel failed somewhere."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}:{'.'.join(torch.__version__.split('.')[:2])}"
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.wheel",
        description="Install wheels beside other Pythons and other releases of torch, each in a fresh environment "
        "(some gigabytes, downloaded by pip, deleted after use), and check them there. Outcomes of the same wheels "
        "are added to those of earlier runs.",
    )
    parser.add_argument("wheels", nargs="+", type=Path, metavar="WHEEL", help="of `make wheel`: one or both")
    parser.add_argument(
        "--cells", nargs="+", default=[as_pair(here)], type=as_pair, metavar="PYTHON:TORCH", help=f"[{here}]"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    chosen = parser.parse_args(arguments)
    pairs: list[tuple[str, str]] = chosen.cells
    wheels = matrix.describe(chosen.wheels)
    paths = dict(sorted((matrix.kind_of(path), path) for path in chosen.wheels))
    cells = matrix.kept(read(chosen.out), wheels, pairs)
    for python, release in pairs:
        cells += matrix.try_pair(python, release, paths, lambda line: print(line, flush=True))
        write(chosen.out, wheels, cells)  # the next one may take long, or be interrupted
    results = read(chosen.out)
    print(table.text(results))
    return 1 if any(cell["state"] == table.FAILED for cell in results["cells"]) else 0


def as_pair(text: str) -> tuple[str, str]:
    """Of "3.12:2.11", Python and torch."""
    python, _, release = text.partition(":")
    if not all(len(part.split(".")) == 2 and part.replace(".", "").isdecimal() for part in (python, release)):
        raise argparse.ArgumentTypeError(f"expected PYTHON:TORCH such as 3.12:2.11, got {text!r}")
    return python, release


def read(path: Path) -> dict[str, Any]:
    """The outcomes so far, none without a file."""
    if not path.exists():
        return {}
    body = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(body, dict)
    return body


def place(cell: matrix.Cell) -> tuple[list[int], list[int], str]:
    """By numbers: 3.9 is before 3.10."""
    python, release = ([int(part) for part in cell[name].split(".")] for name in ("python", "torch"))
    return python, release, cell["wheel"]


def write(path: Path, wheels: dict[str, Any], cells: list[matrix.Cell]) -> None:
    """What was tried, in the order of the table."""
    body = {
        "when": datetime.date.today().isoformat(),
        "commit": commit(),
        "system": platform.platform(),
        "wheels": wheels,
        "cells": sorted(cells, key=place),
    }
    path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
