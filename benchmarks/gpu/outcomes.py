"""What a run of tests/gpu wrote down: one JSON line as a test starts, one as it ends."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .parts import Outcome
from .processes import Finished

Line = dict[str, Any]
NONE_COLLECTED = 5  # pytest's exit status
DEVICE_LOST = 9  # ours: see tests/gpu/conftest.py
MESSAGE_CHARACTERS = 400


def read(path: Path) -> list[Line]:
    """The lines; a last one that was cut short is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def ended(lines: Iterable[Line]) -> dict[str, Line]:
    """The last line of each test. One that only started took the process with it, or was ended with it."""
    last = {line["test"]: line for line in lines}
    lost = {"state": "failed", "message": "did not end: its process died or ran out of time"}
    return {name: {**line, **lost} if line["state"] == "started" else line for name, line in last.items()}


def judge(finished: Finished, lines: Iterable[Line]) -> Outcome:
    """One run as a part: failed if any test failed or the run broke off, not run if all were skipped."""
    tests = list(ended(lines).values())
    counts = Counter(test["state"] for test in tests)
    failures = [test for test in tests if test["state"] == "failed"]
    skips = Counter(test.get("message", "?") for test in tests if test["state"] == "skipped")
    details: dict[str, Any] = {"tests": dict(counts), "skips": dict(skips), **covered(tests)}
    details["runs"] = [test["runs"] for test in tests if test.get("runs")]
    if failures:
        messages = [(test["test"].partition("::")[2], test.get("message") or "?") for test in failures]
        details["failures"] = [{"test": name, "message": text[:MESSAGE_CHARACTERS]} for name, text in messages]
        name, text = messages[0]
        lost = "; it lost the device" if finished.status == DEVICE_LOST else ""
        first = f"first {name}: {text.splitlines()[0]}"
        return Outcome("failed", f"{len(failures)} of {len(tests)} tests{lost}; {first}", details)
    if finished.status is None:
        return Outcome("failed", "ran past its limit", details)
    if finished.status not in (0, NONE_COLLECTED):
        return Outcome("failed", f"exit status {finished.status}: {finished.last_line()}", details)
    if not counts["passed"]:
        reason = skips.most_common(1)[0][0] if skips else finished.last_line()
        return Outcome("not run", reason, details)
    note = f"{counts['passed']} passed"
    if skips:
        note += f", {counts['skipped']} skipped: {skips.most_common(1)[0][0]}"
    return Outcome("passed", note, details)


def covered(tests: Iterable[Line]) -> dict[str, Any]:
    """Kernel and type -> shapes that were right; and -> how many tests failed."""
    right: dict[str, set[tuple[int, ...]]] = {}
    wrong: Counter[str] = Counter()
    for test in tests:
        for case in test.get("covers", ()):
            right.setdefault(key(case), set()).add(tuple(case["shape"]))
        if test["state"] == "failed":
            wrong[key(test)] += 1
    return {"covered": {name: sorted(shapes) for name, shapes in right.items()}, "failed": dict(wrong)}


def key(case: Line) -> str:
    """Such as cuda/icm_loss/float32; a test of several types has none of its own."""
    dtype = case.get("dtype")
    return "/".join(
        (case.get("backend", "?"), case.get("operation", "?"), dtype if dtype not in (None, "None") else "?")
    )


def merged(details: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """`covered` and `failed` of several runs as one."""
    right: dict[str, set[tuple[int, ...]]] = {}
    wrong: Counter[str] = Counter()
    for each in details:
        for name, shapes in each.get("covered", {}).items():
            right.setdefault(name, set()).update(tuple(shape) for shape in shapes)
        wrong.update(each.get("failed", {}))
    return {
        "covered": {name: [list(shape) for shape in sorted(right[name])] for name in sorted(right)},
        "failed": {name: wrong[name] for name in sorted(wrong)},
    }
