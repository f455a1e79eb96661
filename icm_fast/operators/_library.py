"""Declaring operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

# Kept alive here: an operator vanishes with its Library.
LIBRARY = torch.library.Library("icm_fast", "DEF")

# operation -> backends with an overload for it. Whether it has a kernel shows when the backend is loaded.
IMPLEMENTED: dict[str, tuple[str, ...]] = {}
# operation -> the operators that it consists of.
OPERATORS: dict[str, tuple[str, ...]] = {}

# Which of the compiled instruction sets the CPU library runs here.
LIBRARY.define("cpu_instruction_set() -> str")

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}

# Every operator has an overload for each, whether or not its kernel was built.
BACKENDS = ("cpu", "triton", "cuda")


def declare(operation: str, backends: Sequence[str], schemas: dict[str, tuple[str, Callable[..., Any]]]) -> None:
    """Define `<name>.<backend>` for each of the operation's schemas: name -> (arguments and returns, fake kernel).

    Called once more where another backend needs another fake kernel.
    """
    IMPLEMENTED[operation] = (*IMPLEMENTED.get(operation, ()), *backends)
    OPERATORS[operation] = tuple(schemas)
    for name, (schema, fake) in schemas.items():
        for backend in backends:
            define(name, backend, schema, fake)


def define(name: str, backend: str, schema: str, fake: Callable[..., Any]) -> None:
    """Define one overload."""
    LIBRARY.define(f"{name}.{backend}{schema}")
    torch.library.register_fake(f"icm_fast::{name}.{backend}", fake, lib=LIBRARY)


def check_one_device(*tensors: torch.Tensor | None) -> None:
    """For fake kernels: one tensor on `meta` sends the whole call there, and the others' device would be believed."""
    devices = {tensor.device for tensor in tensors if tensor is not None and tensor.dim() > 0}
    torch._check(
        len(devices) <= 1, lambda: f"icm_fast: expected tensors on one device, got {sorted(map(str, devices))}"
    )


def overload(name: str, backend: str) -> Any:
    """The operator of one backend."""
    return getattr(getattr(torch.ops.icm_fast, name), backend)


def accumulation_type(dtype: torch.dtype) -> torch.dtype:
    """The type of sums and losses: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


_NO_SECOND_DERIVATIVE = (
    "icm_fast: the fused kernels have no second derivative; pass backend='reference' to differentiate twice"
)


def refuse_derivative(name: str) -> None:
    """For the operators of backward passes where graphs call them: without a formula autograd would see constants."""

    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(_NO_SECOND_DERIVATIVE)

    torch.library.register_autograd(f"icm_fast::{name}", backward, lib=LIBRARY)


class _NoSecondDerivative(torch.autograd.Function):
    """The identity on a gradient, with a clear error when it is differentiated itself."""

    @staticmethod
    def forward(ctx: Any, gradient: torch.Tensor, *computed_from: torch.Tensor) -> torch.Tensor:
        return gradient.clone()  # no view: hooks may write into it

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(_NO_SECOND_DERIVATIVE)


def refuse_second_derivative(
    gradients: tuple[torch.Tensor | None, ...], computed_from: Sequence[torch.Tensor | None]
) -> tuple[torch.Tensor | None, ...]:
    """What a backward pass returns: with create_graph=True, gradients that raise when they are differentiated.

    Whatever they were computed from is tied to them: autograd.grad asks only those nodes that lead to what it is asked
    for, and would leave a gradient without such ties out of a second derivative without a word.
    """
    if not torch.is_grad_enabled():
        return gradients
    ties = [each for each in computed_from if each is not None and each.requires_grad]
    return tuple(each if each is None else _NoSecondDerivative.apply(each, *ties) for each in gradients)
