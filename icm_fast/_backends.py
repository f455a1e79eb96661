"""Which backends exist, which work here, and which one `auto` takes."""

from __future__ import annotations

import functools
import logging
import math
from typing import NamedTuple

import torch

from . import _native, triton
from .operators import IMPLEMENTED, OPERATORS

NAMES = ("reference", "cpu", "triton", "cuda")


class Choice(NamedTuple):
    """One line of the table of `auto`: what it tries, and for which inputs."""

    backends: tuple[str, ...]  # the first that works here; none of them: the reference
    most_rows: float = math.inf
    types: tuple[torch.dtype, ...] = ()  # () any


_COMPILED_FIRST = (Choice(("cuda", "triton")),)
# What `auto` takes, by device and operation: the first line that fits the rows and the type.
#
# CPU, measured by `python -m benchmarks.speed.automatic` (benchmarks/results/automatic.json, without am_mixup_loss):
# the kernels are faster from a batch of one on, in every type, but for what is made of matrix products. Of that,
# linear_icm_loss is about as fast as plain PyTorch in small batches (0.85 times at worst) and faster beyond. With two
# views or dense targets plain PyTorch makes fewer calls, all that counts in a small batch: up to some 80 rows of two
# views with all their gradients, some 100 in bfloat16, whose products are soon done, and some 200 of dense targets,
# which have no gradient. Not under torch.compile, where a call costs nothing.
#
# GPU, by design alone, as no kernel has run on one: compiled kernels start sooner than Triton's, which counts at
# training batches, and the loss keeps in shared memory what Triton's loads again. Of what starts from matrix products
# there is no CUDA C++: the passes between the framework's products are bound by memory, which Triton's reach as well.
_AUTOMATIC: dict[str, dict[str, tuple[Choice, ...]]] = {
    "cpu": {
        **dict.fromkeys(IMPLEMENTED, (Choice(("cpu",)),)),
        "contrastive_loss": (
            Choice(("reference",), most_rows=64),
            Choice(("reference",), most_rows=96, types=(torch.bfloat16,)),
            Choice(("cpu",)),
        ),
        "icm_loss_dense": (Choice(("reference",), most_rows=128), Choice(("cpu",))),
    },
    "cuda": {
        **dict.fromkeys(("icm_loss", "mixup", "mixup_cross_entropy", "am_mixup_loss"), _COMPILED_FIRST),
        **dict.fromkeys(("contrastive_loss", "icm_loss_dense", "linear_icm_loss"), (Choice(("triton",)),)),
    },
}
# Forms of an operation that have lines of their own, by the operation whose kernels they need.
_KERNELS_OF = {"icm_loss_dense": "contrastive_loss"}

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
    if reason is not None or backend == "reference":
        return reason
    return None if has_kernel(_KERNELS_OF.get(operation, operation), backend) else "this build has no kernel for it"


def choose(
    operation: str,
    backend: str | None,
    device_type: str,
    rows: int | None = None,
    dtype: torch.dtype | None = None,
) -> str:
    """The backend for one call, of many rows if their number is not told.

    Cached: the answer for given arguments never changes in a process.

    Raises:
        ValueError: an unknown backend, or one for another device.
        RuntimeError: a backend that is not available, or has no kernel for the operation.
    """
    return _choose(operation, backend, device_type, _line(operation, device_type, rows, dtype))


# What torch.compiler.assume_constant_result does, whose call imports the whole of torch._dynamo, and triton with it.
choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _line(operation: str, device_type: str, rows: int | None, dtype: torch.dtype | None) -> int:
    """Which line of the table fits."""
    lines = _AUTOMATIC.get(device_type, {}).get(operation, ())
    for number, line in enumerate(lines[:-1]):
        if rows is not None and rows <= line.most_rows and (not line.types or dtype in line.types):
            return number
    return len(lines) - 1


@functools.cache
def _choose(operation: str, backend: str | None, device_type: str, line: int) -> str:
    if backend is None or backend == "auto":
        return _choose_automatically(operation, device_type, line)
    operation = _KERNELS_OF.get(operation, operation)
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


def _tried(device_type: str, operation: str, line: int) -> tuple[str, ...]:
    lines = _AUTOMATIC.get(device_type, {}).get(operation, ())
    return lines[line].backends if lines else ()


def _first(device_type: str, operation: str, line: int = -1) -> str | None:
    """The first backend of a line of the table that has a kernel here."""
    return next((name for name in _tried(device_type, operation, line) if _lacks(operation, name) is None), None)


def _choose_automatically(operation: str, device_type: str, line: int) -> str:
    name = _first(device_type, operation, line)
    passed_over = [each for each in _tried(device_type, operation, line) if each != name]
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
