"""What several test files need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import icm_fast
from icm_fast._backends import has_kernel
from icm_fast.operators import IMPLEMENTED

ROOT = Path(__file__).resolve().parent.parent


def backends_of(operation: str) -> list[str]:
    """Backends with a kernel for the operation that work here; test_architecture.py checks that none goes missing."""
    status = icm_fast.backends()
    return [name for name in IMPLEMENTED[operation] if status[name].available and has_kernel(operation, name)]


def run_python(code: str, *, env: dict[str, str] | None = None, timeout_s: int = 300) -> str:
    """Standard output of a fresh interpreter; its errors are shown when it fails."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
