"""`icm_loss_fwd`, `icm_loss_bwd` and `icm_loss_grad`: the Infinite Class Mixup loss and its gradient.

Rectangular: logits are (rows, C), labels and lam have one entry per column, and image i owns column
`diagonal + i`. On one process rows = columns = B and diagonal = 0. `column_stats` (3, columns) holds offset, shift and
sum of each column's exponentials, `row_stats` (4, rows) those of each row and its weight in the column sums
(csrc/cpu/kernels/icm_loss.h). `plan` is what a backend derived from the target, in a form of its own: the backward
pass gets it back, nobody else reads it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ._library import (
    BACKENDS,
    REDUCTIONS,
    accumulation_type,
    check_one_device,
    declare,
    define,
    overload,
    refuse_derivative,
    refuse_second_derivative,
)

AXES = {"both": (True, True), "class": (True, False), "pair": (False, True)}


def plan_size(backend: str, columns: int, classes: int) -> int:
    """int32 words in the plan of a backend; the kernel returns exactly so many."""
    if backend == "cuda":
        return 256 + 24 * columns
    if backend == "triton":
        return 16 + 4 * columns + 8 * ((columns + 1) // 2)
    return 0


def _fake_forward(
    backend: str,
    logits: Tensor,
    y_a: Tensor,
    y_b: Tensor,
    lam: Tensor,
    logit_scale: Tensor | None,
    diagonal: int,
    class_axis: bool,
    pair_axis: bool,
    reduction: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    check_one_device(logits, y_a, y_b, lam)
    rows, columns = logits.shape[0], y_a.shape[0]
    shape = [rows] if reduction == REDUCTIONS["none"] else []
    dtype = accumulation_type(logits.dtype)
    shapes = (shape, [2, *shape], [4, rows], [3, columns])
    loss, terms, row_stats, column_stats = (logits.new_empty(s, dtype=dtype) for s in shapes)
    plan = logits.new_empty([plan_size(backend, columns, logits.shape[1])], dtype=torch.int32)
    return loss, terms, row_stats, column_stats, plan


def _fake_backward(
    grad_row: Tensor,
    grad_column: Tensor,
    logits: Tensor,
    y_a: Tensor,
    y_b: Tensor,
    lam: Tensor,
    logit_scale: Tensor | None,
    row_stats: Tensor,
    column_stats: Tensor,
    plan: Tensor,
    diagonal: int,
    class_axis: bool,
    pair_axis: bool,
    reduction: int,
    gradient_of_scale: bool,
) -> tuple[Tensor, Tensor]:
    check_one_device(logits, y_a, y_b, lam, row_stats, column_stats, plan)
    dlogits = logits.new_empty(logits.shape)
    return dlogits, logits.new_empty([], dtype=accumulation_type(logits.dtype))


_FORWARD_SCHEMA = (
    "(Tensor logits, Tensor y_a, Tensor y_b, Tensor lam, Tensor? logit_scale, int diagonal, bool class_axis, "
    "bool pair_axis, int reduction) "
    "-> (Tensor loss, Tensor terms, Tensor row_stats, Tensor column_stats, Tensor plan)"
)
_BACKWARD_SCHEMA = (
    "(Tensor grad_row, Tensor grad_column, Tensor logits, Tensor y_a, Tensor y_b, Tensor lam, Tensor? logit_scale, "
    "Tensor row_stats, Tensor column_stats, Tensor plan, int diagonal, bool class_axis, bool pair_axis, "
    "int reduction, bool gradient_of_scale) -> (Tensor dlogits, Tensor dlogit_scale)"
)
for _backend in BACKENDS:
    declare(
        "icm_loss",
        [_backend],
        {
            "icm_loss_fwd": (_FORWARD_SCHEMA, partial(_fake_forward, _backend)),
            "icm_loss_bwd": (_BACKWARD_SCHEMA, _fake_backward),
        },
    )


def _fake_loss_and_gradient(
    logits: Tensor,
    y_a: Tensor,
    y_b: Tensor,
    lam: Tensor,
    diagonal: int,
    class_axis: bool,
    pair_axis: bool,
    reduction: int,
) -> tuple[Tensor, Tensor, Tensor]:
    check_one_device(logits, y_a, y_b, lam)
    torch._check(reduction != REDUCTIONS["none"], lambda: "icm_loss_grad: expected a loss that is reduced")
    dtype = accumulation_type(logits.dtype)
    return (
        logits.new_empty([], dtype=dtype),
        logits.new_empty([2], dtype=dtype),
        logits.new_empty(logits.shape, dtype=dtype),
    )


# Loss and its gradient for an incoming gradient of 1, in the type of the sums: a small batch in one launch.
define(
    "icm_loss_grad",
    "cuda",
    "(Tensor logits, Tensor y_a, Tensor y_b, Tensor lam, int diagonal, bool class_axis, bool pair_axis, int reduction) "
    "-> (Tensor loss, Tensor terms, Tensor dlogits)",
    _fake_loss_and_gradient,
)
# Columns and classes up to which the CUDA backend takes it: csrc/cuda/icm_loss/launch.h. Beyond them the gradient
# would be a launch of its own as well, and be kept in float32 until the backward pass.
MOST_COLUMNS_OF_ONE_LAUNCH = 1024
MOST_CLASSES_OF_ONE_LAUNCH = 4096

_LOSS_AND_GRADIENT = overload("icm_loss_grad", "cuda")
FORWARD = {backend: overload("icm_loss_fwd", backend) for backend in BACKENDS}
BACKWARD = {backend: overload("icm_loss_bwd", backend) for backend in BACKENDS}


class _EagerICMLoss(torch.autograd.Function):
    """The loss in plain eager mode: cheaper by tens of microseconds than the registered formula.

    Three arguments, because torch looks at each one of a Function in Python; `target` (y_a, y_b, lam) carries no
    gradient. The operators run below autograd, where their registered formula would run its Python once more.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, logit_scale: Tensor | None, call: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        backend, target, options = call
        with torch._C._AutoDispatchBelowAutograd():
            loss, terms, *saved = FORWARD[backend](logits, *target, logit_scale, *options)
        ctx.save_for_backward(logits, *target, logit_scale, *saved)
        ctx.call = backend, options
        ctx.mark_non_differentiable(terms)
        ctx.set_materialize_grads(False)  # or the engine fills zeros for `terms`
        return loss, terms

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> Any:
        if grad is None:  # nothing above this loss takes part
            return None, None, None
        backend, options = ctx.call
        saved = ctx.saved_tensors  # once, and above autograd: checkpointing runs the forward pass again to get them
        with torch._C._AutoDispatchBelowAutograd():
            dlogits, dscale = BACKWARD[backend](grad, grad, *saved, *options, ctx.needs_input_grad[1])
        scale_gradient = _scale_gradient(saved[4], dscale) if ctx.needs_input_grad[1] else None
        return *refuse_second_derivative((dlogits, scale_gradient), (grad, *saved)), None


class _EagerICMLossAndGradient(torch.autograd.Function):
    """A small batch on CUDA: the forward pass gives the gradient too, the backward pass multiplies it."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, call: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        target, options = call
        with torch._C._AutoDispatchBelowAutograd():
            loss, terms, dlogits = _LOSS_AND_GRADIENT(logits, *target, *options)
        ctx.save_for_backward(dlogits, logits)  # the logits for what a second derivative would need
        ctx.dtype = logits.dtype
        ctx.mark_non_differentiable(terms)
        ctx.set_materialize_grads(False)
        return loss, terms

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> Any:
        if grad is None:
            return None, None
        dlogits, logits = ctx.saved_tensors
        with torch._C._AutoDispatchBelowAutograd():
            # Into a new tensor, rounded once: a scaled fp16 gradient must not be rounded before it is scaled.
            scaled = torch.mul(dlogits, grad, out=torch.empty_like(dlogits, dtype=ctx.dtype))
        return *refuse_second_derivative((scaled,), (grad, logits)), None


def _is_one_launch(backend: str, logits: Tensor, y_a: Tensor, logit_scale: Tensor | None, reduction: str) -> bool:
    return (
        backend == "cuda"
        and logit_scale is None
        and reduction != "none"
        and y_a.shape[0] <= MOST_COLUMNS_OF_ONE_LAUNCH
        and logits.shape[1] <= MOST_CLASSES_OF_ONE_LAUNCH
        and logits.requires_grad
        and torch.is_grad_enabled()
    )


def _scale_gradient(logit_scale: Tensor, dscale: Tensor) -> Tensor:
    return dscale.to(logit_scale.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, terms, *saved = output
    ctx.save_for_backward(*inputs[:5], *saved)
    ctx.options = inputs[5:]
    ctx.mark_non_differentiable(terms, *saved)


def _registered_backward(backend: str) -> Any:
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        wants_scale = ctx.needs_input_grad[4]
        saved = ctx.saved_tensors
        dlogits, dscale = BACKWARD[backend](grad, grad, *saved, *ctx.options, wants_scale)
        scale_gradient = _scale_gradient(saved[4], dscale) if wants_scale else None
        return dlogits, None, None, None, scale_gradient, None, None, None, None

    return backward


for _backend in BACKENDS:
    torch.library.register_autograd(
        f"icm_fast::icm_loss_fwd.{_backend}", _registered_backward(_backend), setup_context=_setup_context
    )
    refuse_derivative(f"icm_loss_bwd.{_backend}")


def icm_loss(
    backend: str,
    logits: Tensor,
    y_a: Tensor,
    y_b: Tensor,
    lam: Tensor,
    logit_scale: Tensor | None,
    axis: str,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """Loss and its two axis terms (detached), differentiable in logits and logit_scale."""
    options = (0, *AXES[axis], REDUCTIONS[reduction])
    if torch.compiler.is_compiling():
        loss, terms, *_ = FORWARD[backend](logits, y_a, y_b, lam, logit_scale, *options)
        return loss, terms
    if _is_one_launch(backend, logits, y_a, logit_scale, reduction):
        return _EagerICMLossAndGradient.apply(logits, ((y_a, y_b, lam), options))
    return _EagerICMLoss.apply(logits, logit_scale, (backend, (y_a, y_b, lam), options))
