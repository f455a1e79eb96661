"""`am_mixup_loss_fwd` and `am_mixup_loss_bwd`: cross-entropy of logits mixed by one rate, and its gradient.

`row_stats` (2, B) holds each mixed row's maximum and the sum of its exponentials relative to it.
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


def _fake_forward(logits: Tensor, index: Tensor, rate: Tensor, labels: Tensor, reduction: int) -> tuple[Tensor, Tensor]:
    rows = logits.shape[0]
    dtype = accumulation_type(logits.dtype)
    loss = logits.new_empty([rows] if reduction == REDUCTIONS["none"] else [], dtype=dtype)
    return loss, logits.new_empty([2, rows], dtype=dtype)


def _fake_backward(
    grad: Tensor, logits: Tensor, index: Tensor, rate: Tensor, labels: Tensor, row_stats: Tensor, reduction: int
) -> Tensor:
    return logits.new_empty(logits.shape)


declare(
    "am_mixup_loss",
    BACKENDS,
    {
        "am_mixup_loss_fwd": (
            (
                "(Tensor logits, Tensor index, Tensor rate, Tensor labels, int reduction) "
                "-> (Tensor loss, Tensor row_stats)"
            ),
            _fake_forward,
        ),
        "am_mixup_loss_bwd": (
            (
                "(Tensor grad, Tensor logits, Tensor index, Tensor rate, Tensor labels, Tensor row_stats, "
                "int reduction) -> Tensor"
            ),
            _fake_backward,
        ),
    },
)

_FORWARD = {backend: overload("am_mixup_loss_fwd", backend) for backend in BACKENDS}
_BACKWARD = {backend: overload("am_mixup_loss_bwd", backend) for backend in BACKENDS}


class _EagerAMMixupLoss(torch.autograd.Function):
    """The loss in plain eager mode: cheaper by some ten microseconds than the registered formula."""

    @staticmethod
    def forward(ctx: Any, backend: str, reduction: int, *inputs: Any) -> Tensor:
        # Below autograd, whose registered formula would run its Python once more.
        with torch._C._AutoDispatchBelowAutograd():
            loss, row_stats = _FORWARD[backend](*inputs, reduction)
        ctx.save_for_backward(*inputs, row_stats)
        ctx.backend, ctx.reduction = backend, reduction
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        saved = ctx.saved_tensors  # above autograd: checkpointing runs the forward pass again to get them
        with torch._C._AutoDispatchBelowAutograd():
            dlogits = _BACKWARD[ctx.backend](grad, *saved, ctx.reduction)
        (dlogits,) = refuse_second_derivative((dlogits,), (grad, *saved))
        return None, None, dlogits, None, None, None


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, row_stats = output
    ctx.save_for_backward(*inputs[:4], row_stats)
    ctx.reduction = inputs[4]
    ctx.mark_non_differentiable(row_stats)


def _registered_backward(backend: str) -> Any:
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        dlogits = _BACKWARD[backend](grad, *ctx.saved_tensors, ctx.reduction)
        return dlogits, None, None, None, None

    return backward


for _backend in BACKENDS:
    torch.library.register_autograd(
        f"icm_fast::am_mixup_loss_fwd.{_backend}", _registered_backward(_backend), setup_context=_setup_context
    )
    refuse_derivative(f"am_mixup_loss_bwd.{_backend}")


def am_mixup_loss(backend: str, logits: Tensor, index: Tensor, rate: Tensor, labels: Tensor, reduction: str) -> Tensor:
    """The loss, differentiable in logits."""
    how = REDUCTIONS[reduction]
    if torch.compiler.is_compiling():
        loss, _ = _FORWARD[backend](logits, index, rate, labels, how)
        return loss
    return _EagerAMMixupLoss.apply(backend, how, logits, index, rate, labels)
