"""What is printed and what is kept: tables and JSON files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .parts import Outcome

SCHEMA = 1
NOTE_CHARACTERS = 110


def write(path: Path, body: Mapping[str, Any]) -> None:
    """Complete or not at all: the process may be ended at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"partial.{path.name}")
    partial.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read(path: Path) -> dict[str, Any]:
    """A file of ours; empty if there is none.

    Raises:
        ValueError: it is there, but is none of ours.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise ValueError(f"{path}: expected a file of schema {SCHEMA}, got {str(found)[:60]}; move it away")
    return found


def part_row(name: str, part: Outcome) -> dict[str, Any]:
    """A part for the JSON file; what the file holds of all parts together is left out here."""
    kept = {key: part.details[key] for key in ("tests", "skips", "failures", "traceback") if part.details.get(key)}
    return {"name": name, "state": part.state, "seconds": round(part.seconds, 1), "note": part.note, **kept}


def part_table(parts: Mapping[str, Outcome]) -> str:
    """Part, state, seconds, and what there is to say."""
    rows = [("part", "state", "seconds", "")]
    rows += [(name, part.state, f"{part.seconds:.0f}", _short(part.note)) for name, part in parts.items()]
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]], numbers: Iterable[int] = (2,)) -> str:
    """Columns of equal width; those named hold numbers and are aligned right."""
    right = set(numbers)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= NOTE_CHARACTERS else f"{line[: NOTE_CHARACTERS - 1]}…"
