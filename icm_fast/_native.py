"""Loads the compiled operator libraries on first need, and says why one is unavailable."""

from __future__ import annotations

import functools
import json
import logging
from pathlib import Path
from typing import Any, Literal

import torch

_LIB_DIR = Path(__file__).parent / "lib"
_FILES = {"cpu": "libicm_fast_cpu.so", "cuda": "libicm_fast_cuda.so"}
_REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps . in icm_fast's source tree builds it again"

logger = logging.getLogger("icm_fast")


@functools.cache
def load(name: Literal["cpu", "cuda"]) -> str | None:
    """Load a library once. None when its operators are registered, else the reason why they are not."""
    path = _LIB_DIR / _FILES[name]
    if not path.is_file():
        return _why_absent(name)
    reason = _damage(path) or _load_library(path)
    if reason is not None:
        reason = f"{path.name} {reason}; {_REBUILD}"
        logger.warning("%s", reason)
    return reason


def build_info() -> dict[str, Any]:
    """What setup.py wrote about the build: torch, and for each library compiler, flags, or why it was not built.

    Empty when there is no such record.
    """
    try:
        info = json.loads((_LIB_DIR / "build.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return info if isinstance(info, dict) else {}


def _why_absent(name: str) -> str:
    facts = build_info().get(name)
    if not isinstance(facts, dict):
        return f"not built: there is no record of a build; {_REBUILD}"
    if facts.get("built"):
        return f"{_FILES[name]} was built but is missing; {_REBUILD}"
    return f"not built: {facts.get('reason', 'no reason recorded')}"


def _load_library(path: Path) -> str | None:
    try:
        torch.ops.load_library(str(path))
    except Exception as error:  # OSError from the loader, RuntimeError from a registration
        versions = f"built with torch {build_info().get('torch', 'of unknown version')}, running {torch.__version__}"
        # torch's own message names the file only; the loader's is its cause.
        return f"failed to load ({versions}): {error.__cause__ or error}"
    return None


def _damage(path: Path) -> str | None:
    """Why the loader must not see this file: a truncated library can kill the process instead of raising.

    The section header table is the last thing in an ELF file, so a file that holds all of it is not cut short.
    """
    try:
        with path.open("rb") as file:
            header = file.read(64)
            size_bytes = file.seek(0, 2)
    except OSError as error:
        return f"cannot be read: {error}"
    if header[:4] != b"\x7fELF":
        return None if size_bytes else "is empty"  # not an ELF platform: the loader judges
    order: Literal["little", "big"] = "big" if header[5:6] == b"\x02" else "little"
    table = int.from_bytes(header[40:48], order)
    entry_bytes, entries = (int.from_bytes(header[at : at + 2], order) for at in (58, 60))
    end = table + entry_bytes * entries
    return f"is truncated: {size_bytes} of {end} bytes" if size_bytes < max(end, 64) else None
