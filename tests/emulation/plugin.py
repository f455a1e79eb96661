"""Runs the ordinary tests with backend="cuda" on tensors of the CPU, where csrc/cuda is emulated.

    python -m pytest -p tests.emulation.plugin tests/test_mixup.py -k cuda

As a pytest plugin this is imported before the tests, which ask for the backends when they are collected. A script of
another kind imports it likewise, before its first use of icm_fast. Variables: README.md.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

import torch

from icm_fast import _backends
from icm_fast.operators import IMPLEMENTED, OPERATORS

from . import build


def set_seed(seed: int) -> None:
    """Of the order in which threads go on; each launch continues the sequence."""
    _functions.icm_simt_set_seed(ctypes.c_uint64(seed))


def set_device(
    *, multiprocessors: int | None = None, shared_bytes: int | None = None, has_clusters: bool | None = None
) -> None:
    """What kernels and their launches find; None: as the environment says."""
    wanted = (multiprocessors, shared_bytes, has_clusters)
    _functions.icm_simt_set_device(*(-1 if value is None else int(value) for value in wanted))


def launches() -> int:
    """Kernels launched so far."""
    count: int = _functions.icm_simt_launches()
    return count


def pytest_terminal_summary(terminalreporter: Any) -> None:
    seed = os.environ.get("ICM_SIMT_SEED", "0")
    terminalreporter.write_line(f"emulated: {launches()} kernel launches, seed {seed}, {LIBRARY.parent.name} build")


def _install() -> None:
    """Make the package believe that "cuda" works here, for tensors on the CPU; `auto` goes on taking "cpu"."""
    unavailable, devices, has_kernel = _backends._unavailable, _backends._devices, _backends.has_kernel

    def has_emulated_kernel(operation: str, backend: str) -> bool:
        if backend != "cuda":
            return has_kernel(operation, backend)
        names = [f"icm_fast::{name}.cuda" for name in OPERATORS[operation]]
        return "cuda" in IMPLEMENTED[operation] and all(
            torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU") for name in names
        )

    _backends._unavailable = lambda name: None if name == "cuda" else unavailable(name)  # type: ignore[assignment]
    _backends._devices = lambda backend: ("cpu",) if backend == "cuda" else devices(backend)
    _backends.has_kernel = has_emulated_kernel


# Children, such as the compiler, do without the sanitizer.
os.environ.pop("LD_PRELOAD", None)
LIBRARY = build.operators(build.variant_from_environment())
torch.ops.load_library(str(LIBRARY))
_functions = ctypes.CDLL(str(LIBRARY))
_install()
