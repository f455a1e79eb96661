"""Which backends exist, which work here, and which one `auto` takes."""

from __future__ import annotations

import functools
import logging
from typing import NamedTuple

import torch

from . import _native, triton
from .operators import IMPLEMENTED, OPERATORS

NAMES = ("reference", "cpu", "triton", "cuda")
# What `auto` tries before the reference, by device and operation. On a GPU no kernel has run yet, so this order is by
# design alone: compiled kernels start sooner than Triton's, which counts at training batches, and the loss keeps in
# shared memory what Triton's loads again.
_AUTOMATIC: dict[str, dict[str, tuple[str, ...]]] = {
    "cpu": dict.fromkeys(IMPLEMENTED, ("cpu",)),
    "cuda": {
        "icm_loss": ("cuda", "triton"),
        "mixup": ("cuda", "triton"),
        "mixup_cross_entropy": ("cuda", "triton"),
        "am_mixup_loss": ("cuda", "triton"),
        # Products by the framework and passes over their results, which Triton does as well: no CUDA C++ yet.
        "contrastive_loss": ("triton",),
        "linear_icm_loss": ("triton",),
    },
}

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
    has = sorted(operation for operation in IMPLEMENTED if has_kernel(operation, name))
    picked = [device for device, table in _AUTOMATIC.items() if any(_first(device, each) == name for each in table)]
    role = f"auto takes it for {', '.join(picked)} tensors" if picked else "only when asked for by name"
    if name == "cpu":
        role += f", {torch.ops.icm_fast.cpu_instruction_set()} kernels"
    elif name == "triton" and triton.interpreted():
        role += ", interpreted on the CPU (TRITON_INTERPRET=1), for tests"
    return Status(True, f"{role}: {', '.join(has)}")


def _devices(backend: str) -> tuple[str, ...]:
    if backend == "cpu":
        return ("cpu",)
    return ("cuda", "cpu") if backend == "triton" and triton.interpreted() else ("cuda",)


def has_kernel(operation: str, backend: str) -> bool:
    """Whether a loaded backend can compute the operation: a build of the library may lack some."""
    if backend not in IMPLEMENTED[operation]:
        return False
    key = "CPU" if backend == "cpu" else "CUDA"
    names = (f"icm_fast::{name}.{backend}" for name in OPERATORS[operation])
    return all(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for name in names)


@functools.cache
def _unavailable(name: str) -> str | None:
    if name == "reference":
        return None
    if name == "triton":
        return triton.load()
    if name == "cuda" and not torch.cuda.is_available():
        built = (_native.build_info().get("cuda") or {}).get("built")
        return f"no CUDA device here ({'the library is built' if built else 'and the library is not built'})"
    return _native.load("cuda" if name == "cuda" else "cpu")


def _lacks(operation: str, backend: str) -> str | None:
    """Why a backend cannot compute the operation here."""
    reason = _unavailable(backend)
    return reason if reason is not None or has_kernel(operation, backend) else "this build has no kernel for it"


def choose(operation: str, backend: str | None, device_type: str) -> str:
    """The backend for one call. Cached: the answer for given arguments never changes in a process.

    Raises:
        ValueError: an unknown backend, or one for another device.
        RuntimeError: a backend that is not available, or has no kernel for the operation.
    """
    return _choose(operation, backend, device_type)


# What torch.compiler.assume_constant_result does, whose call imports the whole of torch._dynamo, and triton with it.
choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _choose(operation: str, backend: str | None, device_type: str) -> str:
    if backend is None or backend == "auto":
        return _choose_automatically(operation, device_type)
    if backend not in NAMES:
        raise ValueError(f"{operation}: unknown backend={backend!r}; expected 'auto' or one of {', '.join(NAMES)}")
    if backend == "reference":
        return backend
    reason = _lacks(operation, backend)
    if reason is not None:
        working = ", ".join(name for name in NAMES if name == "reference" or _lacks(operation, name) is None)
        raise RuntimeError(
            f"{operation}: backend={backend!r} was requested but is not available: {reason}. "
            f"Available: {working}. Run python -m icm_fast."
        )
    if device_type not in _devices(backend):
        raise ValueError(
            f"{operation}: backend={backend!r} works on {', '.join(_devices(backend))} tensors, "
            f"but the input is on {device_type!r}"
        )
    return backend


def _first(device_type: str, operation: str) -> str | None:
    """The first backend of the table that has a kernel here."""
    names = _AUTOMATIC.get(device_type, {}).get(operation, ())
    return next((name for name in names if _lacks(operation, name) is None), None)


def _choose_automatically(operation: str, device_type: str) -> str:
    name = _first(device_type, operation)
    passed_over = [each for each in _AUTOMATIC.get(device_type, {}).get(operation, ()) if each != name]
    reasons = "; ".join(f"{each}: {_lacks(operation, each)}" for each in passed_over if _lacks(operation, each))
    if name is None:
        _warn_once(device_type, reasons or "no fused kernels for this device yet")
        return "reference"
    if device_type == "cuda":
        _inform_once(name, reasons)
    return name


@functools.cache
def _warn_once(device_type: str, reason: str) -> None:
    logger.warning(
        "icm_fast uses the reference backend for %s tensors, which is correct but slow and needs O(B*B) memory: %s",
        device_type,
        reason,
    )


@functools.cache
def _inform_once(name: str, reasons: str) -> None:
    logger.warning(
        "icm_fast uses the %s backend for cuda tensors, whose kernels have not been run on a GPU by the authors yet%s",
        name,
        f" ({reasons})" if reasons else "",
    )
