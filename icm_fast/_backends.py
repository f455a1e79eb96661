"""Which backends exist, which work here, and which one `auto` takes."""

from __future__ import annotations

import functools
import logging
from typing import NamedTuple

import torch

from . import _native
from .operators import IMPLEMENTED

NAMES = ("reference", "cpu", "triton", "cuda")
_DEVICES = {"cpu": ("cpu",), "triton": ("cuda",), "cuda": ("cuda",)}
# What `auto` tries before the reference. The CUDA kernels compile but have not run on a GPU yet, so `auto` does
# not take them: on a GPU it uses the reference.
_AUTOMATIC = {"cpu": ("cpu",)}

logger = logging.getLogger("icm_fast")


class Status(NamedTuple):
    """Whether a backend works here, and why not (or what it does)."""

    available: bool
    reason: str


def backends() -> dict[str, Status]:
    """Every backend by name: whether it is available, the reason when it is not, what `auto` picks it for.

    Example:
        >>> import icm_fast
        >>> icm_fast.backends()["reference"].available
        True
    """
    return {name: _status(name) for name in NAMES}


def _status(name: str) -> Status:
    reason = _unavailable(name)
    if reason is not None:
        return Status(False, reason)
    if name == "reference":
        return Status(True, "plain PyTorch; auto takes it where nothing else is available")
    picked = [device for device, names in _AUTOMATIC.items() if name in names]
    role = f"auto takes it for {', '.join(picked)} tensors" if picked else "only when asked for by name"
    if name == "cpu":
        role += f", {torch.ops.icm_fast.cpu_instruction_set()} kernels"
    return Status(True, f"{role}: {', '.join(_operations(name))}")


def _operations(backend: str) -> list[str]:
    return sorted(operation for operation, names in IMPLEMENTED.items() if backend in names)


@functools.cache
def _unavailable(name: str) -> str | None:
    if name == "reference":
        return None
    if not _operations(name):
        return "this version has no kernels for it"
    if name == "cuda" and not torch.cuda.is_available():
        built = (_native.build_info().get("cuda") or {}).get("built")
        return f"no CUDA device here ({'the library is built' if built else 'and the library is not built'})"
    return _native.load("cuda" if name == "cuda" else "cpu")


@torch.compiler.assume_constant_result
def choose(operation: str, backend: str | None, device_type: str) -> str:
    """The backend for one call. Cached: the answer for given arguments never changes in a process.

    Raises:
        ValueError: an unknown backend, or one for another device.
        RuntimeError: a backend that is not available, or has no kernel for the operation.
    """
    return _choose(operation, backend, device_type)


@functools.cache
def _choose(operation: str, backend: str | None, device_type: str) -> str:
    if backend is None or backend == "auto":
        return _choose_automatically(operation, device_type)
    if backend not in NAMES:
        raise ValueError(f"{operation}: unknown backend={backend!r}; expected 'auto' or one of {', '.join(NAMES)}")
    if backend == "reference":
        return backend
    working = ", ".join(name for name in NAMES if _unavailable(name) is None)
    reason = _unavailable(backend)
    if reason is not None:
        raise RuntimeError(
            f"{operation}: backend={backend!r} was requested but is not available: {reason}. "
            f"Available: {working}. Run python -m icm_fast."
        )
    if backend not in IMPLEMENTED[operation]:
        raise RuntimeError(f"{operation}: backend={backend!r} has no kernel for it. Available: {working}")
    if device_type not in _DEVICES[backend]:
        raise ValueError(
            f"{operation}: backend={backend!r} works on {', '.join(_DEVICES[backend])} tensors, "
            f"but the input is on {device_type!r}"
        )
    return backend


def _choose_automatically(operation: str, device_type: str) -> str:
    reason = "no fused kernels for this device yet"
    for name in _AUTOMATIC.get(device_type, ()):
        if name not in IMPLEMENTED[operation]:
            continue
        unavailable = _unavailable(name)
        if unavailable is None:
            return name
        reason = unavailable
    _warn_once(device_type, reason)
    return "reference"


@functools.cache
def _warn_once(device_type: str, reason: str) -> None:
    logger.warning(
        "icm_fast uses the reference backend for %s tensors, which is correct but slow and needs O(B*B) memory: %s",
        device_type,
        reason,
    )
