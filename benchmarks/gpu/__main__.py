"""`python -m benchmarks.gpu check` and `bench`: what `make gpu-check` and `make gpu-bench` run."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import Any

from . import bench, check, coverage, processes, race

COMMANDS: dict[str, Any] = {"check": check, "bench": bench, "race": race}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, description=module.__doc__))
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` runs
    try:
        status: int = COMMANDS[options.command].main(options)
    finally:
        processes.end_all()
    if options.command != "race" and options.out.resolve().parent == coverage.RESULTS:
        coverage.write()
    return status


if __name__ == "__main__":
    raise SystemExit(main())
