"""`mixup_cross_entropy_fwd` and `mixup_cross_entropy_bwd`: cross-entropy against two classes a row, and its gradient.

`row_stats` (2, B) holds each row's maximum and the sum of its exponentials relative to it; one log-sum-exp would
lose the bits that a common offset of the logits takes. `weight` is in the accumulation type.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._library import (
    BACKENDS,
    REDUCTIONS,
    accumulation_type,
    declare,
    overload,
    refuse_derivative,
    refuse_second_derivative,
)


def _fake_forward(
    logits: Tensor,
    y_a: Tensor,
    y_b: Tensor,
    lam: Tensor,
    weight: Tensor | None,
    label_smoothing: float,
    reduction: int,
) -> tuple[Tensor, Tensor]:
    rows = logits.shape[0]
    dtype = accumulation_type(logits.dtype)
    loss = logits.new_empty([rows] if reduction == REDUCTIONS["none"] else [], dtype=dtype)
    return loss, logits.new_empty([2, rows], dtype=dtype)


def _fake_backward(
    grad: Tensor,
    logits: Tensor,
    y_a: Tensor,
    y_b: Tensor,
    lam: Tensor,
    weight: Tensor | None,
    row_stats: Tensor,
    label_smoothing: float,
    reduction: int,
) -> Tensor:
    return logits.new_empty(logits.shape)


declare(
    "mixup_cross_entropy",
    BACKENDS,
    {
        "mixup_cross_entropy_fwd": (
            (
                "(Tensor logits, Tensor y_a, Tensor y_b, Tensor lam, Tensor? weight, float label_smoothing, "
                "int reduction) -> (Tensor loss, Tensor row_stats)"
            ),
            _fake_forward,
        ),
        "mixup_cross_entropy_bwd": (
            (
                "(Tensor grad, Tensor logits, Tensor y_a, Tensor y_b, Tensor lam, Tensor? weight, Tensor row_stats, "
                "float label_smoothing, int reduction) -> Tensor"
            ),
            _fake_backward,
        ),
    },
)

FORWARD = {backend: overload("mixup_cross_entropy_fwd", backend) for backend in BACKENDS}
BACKWARD = {backend: overload("mixup_cross_entropy_bwd", backend) for backend in BACKENDS}


class _EagerMixupCrossEntropy(torch.autograd.Function):
    """The loss in plain eager mode: cheaper by some ten microseconds than the registered formula.

    Two arguments, because torch looks at each one of a Function in Python; `given` (y_a, y_b, lam, weight) carries no
    gradient.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, call: tuple[Any, ...]) -> Tensor:
        backend, given, options = call
        # Below autograd, whose registered formula would run its Python once more.
        with torch._C._AutoDispatchBelowAutograd():
            loss, row_stats = FORWARD[backend](logits, *given, *options)
        ctx.save_for_backward(logits, *given, row_stats)
        ctx.call = backend, options
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        backend, options = ctx.call
        saved = ctx.saved_tensors  # above autograd: checkpointing runs the forward pass again to get them
        with torch._C._AutoDispatchBelowAutograd():
            dlogits = BACKWARD[backend](grad, *saved, *options)
        return *refuse_second_derivative((dlogits,), (grad, *saved)), None


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, row_stats = output
    ctx.save_for_backward(*inputs[:5], row_stats)
    ctx.options = inputs[5:]
    ctx.mark_non_differentiable(row_stats)


def _registered_backward(backend: str) -> Any:
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        dlogits = BACKWARD[backend](grad, *ctx.saved_tensors, *ctx.options)
        return dlogits, None, None, None, None, None, None

    return backward


for _backend in BACKENDS:
    torch.library.register_autograd(
        f"icm_fast::mixup_cross_entropy_fwd.{_backend}",
        _registered_backward(_backend),
        setup_context=_setup_context,
    )
    refuse_derivative(f"mixup_cross_entropy_bwd.{_backend}")


def mixup_cross_entropy(
    backend: str,
    logits: Tensor,
    y_a: Tensor,
    y_b: Tensor,
    lam: Tensor,
    weight: Tensor | None,
    label_smoothing: float,
    reduction: str,
) -> Tensor:
    """The loss, differentiable in logits."""
    options = (label_smoothing, REDUCTIONS[reduction])
    given = (y_a, y_b, lam, weight)
    if torch.compiler.is_compiling():
        loss, _ = FORWARD[backend](logits, *given, *options)
        return loss
    return _EagerMixupCrossEntropy.apply(logits, (backend, given, options))
