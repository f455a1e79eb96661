"""The record in the tree, and what differs from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .callgrind import ROOT, Count

PATH = ROOT / "benchmarks" / "results" / "instructions.json"
# Beyond it the code is another, in parts of the count.
MARGIN = 0.02
# What two runs of one library may differ by. Around the kernels, 5 of 10 149 instructions were, once in ten runs.
NOISE = {"kernels": 0.0, "operator": 0.001}
AGAIN = "if it is meant, record it: python -m benchmarks.instructions --record"

Counts = Mapping[str, Mapping[str, Count]]  # instruction set -> part -> its count
Kept = dict[str, dict[str, dict[str, int]]]  # the same in JSON


def read(path: Path = PATH) -> dict[str, Any]:
    """What was recorded."""
    body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return body


def write(path: Path, conditions: dict[str, Any], counts: Counts) -> None:
    """With all that the counts depend on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = {"conditions": conditions, "counts": kept(counts)}
    path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def kept(counts: Counts) -> Kept:
    """As it stands in the record."""
    return {name: {part: count._asdict() for part, count in parts.items()} for name, parts in counts.items()}


def incomparable(record: dict[str, Any], conditions: dict[str, Any]) -> str | None:
    """What is another here than where it was recorded."""
    there = record["conditions"]
    names = [name for name in {**there, **conditions} if there.get(name) != conditions.get(name)]
    different = [f"{name} {conditions.get(name)!r}, recorded with {there.get(name)!r}" for name in names]
    return f"other conditions: {'; '.join(different)}" if different else None


def differences(record: Kept, counts: Counts, margins: Mapping[str, float] | None = None) -> list[str]:
    """A line for each count that left its margin in either direction, or stands on one side only."""
    lines = []
    allowed = margins or dict.fromkeys(Count._fields, MARGIN)
    for name, parts in counts.items():
        recorded = record.get(name, {})
        for part in {**recorded, **parts}:
            if part not in parts or part not in recorded:
                lines.append(
                    f"{name}, {part}: {'not recorded' if part in parts else 'recorded, but no longer counted'}"
                )
                continue
            for kind, count in parts[part]._asdict().items():
                before = recorded[part][kind]
                if abs(count - before) > allowed[kind] * before:
                    change = f"{100 * (count / before - 1):+.1f} %" if before else "new"
                    lines.append(f"{name}, {part}, {kind}: {count} instructions, recorded {before} ({change})")
    return lines
