"""The outcomes as a table: a row for each Python, a column for each torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What there is to be tried: the Pythons that pyproject.toml allows and torch has builds for, and the releases of torch
# since the first that works.
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
TORCHES = ("2.10", "2.11", "2.12", "2.13", "2.14", "2.15")
PASSED, FAILED, UNTESTED, NO_BUILD = "passed", "FAILED", "untested", "no such build"
# Of several wheels in one environment the worst counts.
WORST_FIRST = (FAILED, UNTESTED, NO_BUILD, PASSED)


def state(results: Mapping[str, Any], python: str, torch: str) -> str:
    """What is known of one pair, of all wheels together."""
    found = {cell["wheel"]: cell["state"] for cell in results["cells"] if is_of(cell, python, torch)}
    states = {found.get(wheel, UNTESTED) for wheel in results["wheels"]}
    return next(each for each in WORST_FIRST if each in states)


def is_of(cell: Mapping[str, Any], python: str, torch: str) -> bool:
    """Whether an outcome is one of this pair."""
    return bool(cell["python"] == python and cell["torch"] == torch)


def markdown(results: Mapping[str, Any]) -> str:
    """For README.md: what was done, and the table."""
    gpus = {cell["gpu"] for cell in results["cells"] if cell.get("gpu")}
    where = f"on {', '.join(sorted(gpus))}" if gpus else "without a GPU: the CUDA library was loaded, and ran nothing"
    wheels = "Both wheels," if len(results["wheels"]) > 1 else f"The {next(iter(results['wheels']))} wheel,"
    rows = [f"{wheels} each in a fresh environment of that Python and torch alone, {results['when']}, {where}.", ""]
    rows += [f"| | {' | '.join(f'torch {torch}' for torch in TORCHES)} |", "|---" * (len(TORCHES) + 1) + "|"]
    for python in PYTHONS:
        cells = [state(results, python, torch) for torch in TORCHES]
        rows.append(f"| Python {python} | {' | '.join(cells)} |")
    return "\n".join(rows)


def text(results: Mapping[str, Any]) -> str:
    """For the terminal, with the reason of everything that did not pass."""
    width = max(map(len, WORST_FIRST)) + 2
    lines = [f"{'':13}" + "".join(f"{'torch ' + torch:{width}}" for torch in TORCHES).rstrip()]
    for python in PYTHONS:
        cells = "".join(f"{state(results, python, torch):{width}}" for torch in TORCHES)
        lines.append(f"Python {python:6}{cells.rstrip()}")
    reasons = [
        f"Python {cell['python']}, torch {cell['torch']}, {cell['wheel']} wheel: {cell['state']}: {cell['why']}"
        for cell in results["cells"]
        if cell["state"] in (FAILED, UNTESTED)
    ]
    return "\n".join([*lines, f"{UNTESTED}: nobody tried, but for a reason given here", *reasons])
