"""Rewrites the measured parts of README.md, the page and the figures of benchmarks/results, from the files there.

`make bench` and `make readme` write those files and end with this.
`--check` changes nothing and fails if README.md or the page says something else.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..gpu import coverage
from ..growth import report as growth
from ..processes import report as processes
from ..wheel import table as wheel
from . import cpu, figures, tables

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write, or with --check compare; 1 if README.md or the page of results is out of date."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(arguments).check
    readme = ROOT / "README.md"
    content = readme.read_text(encoding="utf-8")
    for section, block in blocks().items():
        content = replace(content, section, block)
    pages = {readme: content, coverage.RESULTS / "README.md": coverage.text()}
    if check:
        stale = [path for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
        for path in stale:
            name = path.relative_to(ROOT)
            print(f"{name} does not say what benchmarks/results says; run python -m benchmarks.readme", file=sys.stderr)
        return 1 if stale else 0
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
    figures.draw(cpu.read(results("cpu")), RESULTS)
    return 0


def blocks() -> dict[str, str]:
    """What stands between the markers of each name in README.md."""
    with (RESULTS / "digits" / "summary.csv").open(encoding="utf-8", newline="") as file:
        digits = list(csv.DictReader(file))
    races = cpu.read(results("cpu"))
    return {
        "speed": tables.loss_block(races),
        "operations": tables.operations_block(races, results("crossover")),
        "growth": growth_block(),
        "processes": processes.block(results("processes")),
        "wheel": wheel.markdown(results("wheel")),
        "digits": digits_block(digits),
    }


def growth_block() -> str:
    """How the loss alone grows."""
    if not (RESULTS / "growth.json").exists():
        return "Not measured yet: `python -m benchmarks.growth`."
    return f"{growth.block(results('growth'))}\n\n![Time and memory of icm_fast alone](benchmarks/results/growth.png)"


def results(name: str) -> dict[str, Any]:
    """What a benchmark kept."""
    body: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return body


def replace(text: str, name: str, block: str) -> str:
    """The text with what stands between the markers of that name replaced."""
    pattern = rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)"
    found, count = re.subn(pattern, lambda match: f"{match[1]}{block}\n{match[2]}", text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"README.md: expected one pair of markers {name}:begin, {name}:end, found {count}")
    return found


def digits_block(rows: list[dict[str, str]]) -> str:
    """Accuracy of every method: balanced, and long-tailed with head and tail apart."""
    table = {(row["data"], row["method"]): row for row in rows}
    names = list(dict.fromkeys(row["method"] for row in rows))
    lines = [
        "| method | balanced | long-tailed (0.01) | its head | its tail |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        balanced, tailed = table["digits", name], table["digits-lt-0.01", name]
        cells = [mean(balanced, "accuracy"), *(mean(tailed, f"{part}accuracy") for part in ("", "head_", "tail_"))]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    seeds = rows[0]["seeds"]
    return "\n".join([f"Test accuracy in %, mean ± standard deviation over {seeds} seeds:", "", *lines])


def mean(row: dict[str, str], name: str) -> str:
    """Mean and standard deviation."""
    return f"{float(row[f'{name}_mean']):.1f} ± {float(row[f'{name}_std']):.1f}"
