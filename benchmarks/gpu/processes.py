"""Commands with a time limit that holds even when a kernel never ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
KILL_S = 10.0  # how long an ended process is waited for
TAIL_BYTES = 12_000

_running: set[subprocess.Popen[bytes]] = set()


@dataclass(frozen=True)
class Finished:
    """What became of a command."""

    status: int | None  # exit status, negative for a signal; None: ended at its limit
    seconds: float
    output: str  # the end of what it printed
    log: Path  # all of it

    def words(self, about: str) -> str:
        """The last line that says this, or the last of all."""
        return next((line for line in reversed(self.output.splitlines()) if about in line), self.last_line())

    def json(self) -> dict[str, Any] | None:
        """The first JSON object that begins a line: warnings may stand before it and after it."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        for match in re.finditer(r"^\{", text, re.MULTILINE):
            with contextlib.suppress(ValueError):
                found, _ = json.JSONDecoder().raw_decode(text, match.start())
                return dict(found)
        return None

    def last_line(self) -> str:
        """The last line with anything in it."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return lines[-1] if lines else "no output"


def run(command: Sequence[str], limit_s: float, log: Path, environment: Mapping[str, str] | None = None) -> Finished:
    """Run a command in the root of the project, all it prints going to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # its children end with it
        )
        _running.add(process)
        try:
            status: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(process)
            _running.discard(process)
    return Finished(status, time.monotonic() - started, _tail(log), log)


def end_all() -> None:
    """End whatever still runs: they are in sessions of their own and would outlive this process."""
    for process in list(_running):
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    # One whose kernel never ends dies when the driver has given the device back: not waited for without a limit.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(KILL_S)


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        size_bytes = file.seek(0, os.SEEK_END)
        file.seek(max(0, size_bytes - TAIL_BYTES))
        return file.read().decode("utf-8", errors="replace")
