"""`python -m benchmarks.gpu check` and `bench`: what `make gpu-check` and `make gpu-bench` run."""

from __future__ import annotations

import argparse
import os
import signal
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
    status: int = COMMANDS[options.command].main(options)
    if options.command != "race" and (options.out is None or options.out.resolve().parent == coverage.RESULTS):
        coverage.write()
    return status


def _stop(number: int, _: Any) -> None:
    """What runs is in sessions of its own and would go on. The files are complete as they are."""
    processes.end_all()
    os._exit(128 + number)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    raise SystemExit(main())
