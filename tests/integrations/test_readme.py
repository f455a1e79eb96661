"""The programs of README.md, of other libraries' trainers: they run as they were, and with the lines that change."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers import ROOT
from peers import peer

pytestmark = pytest.mark.long
# Libraries of which each program needs some.
PEERS = ("accelerate", "lightning", "timm", "torchmetrics", "torchvision", "transformers")


def programs() -> dict[str, str]:
    """Title -> lines that begin with a blank, with - (before) or with + (after)."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return dict(re.findall(r"<summary>(.*?)</summary>\n\n```diff\n(.*?)```", text, flags=re.DOTALL))


def of(program: str, signs: str) -> str:
    return "\n".join(line[1:] for line in program.splitlines() if line == "" or line[0] in signs)


def test_every_trainer_has_its_program() -> None:
    named = " ".join(programs().values())
    assert len(programs()) >= 7 and all(re.search(rf"(from|import) {name}\b", named) for name in PEERS)


@pytest.mark.parametrize("state", ["before", "after"])
@pytest.mark.parametrize("title", programs())
def test_runs(title: str, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = programs()[title]
    for name in PEERS:
        if re.search(rf"^.(from|import) {name}\b", program, flags=re.MULTILINE):
            peer(name)
    monkeypatch.chdir(tmp_path)  # some write what they trained
    code = of(program, " -" if state == "before" else " +")
    assert ("icm_fast" in code) == (state == "after")
    exec(compile(code, f"README.md: {title}", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("title", programs())
def test_few_lines_change(title: str) -> None:
    changed = [line for line in programs()[title].splitlines() if line.startswith("+")]
    assert 2 <= len(changed) <= 4
