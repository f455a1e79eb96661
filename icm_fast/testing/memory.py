"""Measured memory, for tests and benchmarks (Linux)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path


def peak_extra_bytes(call: Callable[[], object]) -> int:
    """How far the resident memory of this process rises above its level before the call; the call runs twice."""
    call()  # what is allocated once is no part of it
    ctypes.CDLL(None).malloc_trim(0)  # or the call would find the memory that the first one freed
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    before = _resident_bytes("VmRSS")
    call()
    return _resident_bytes("VmHWM") - before


def _resident_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024
