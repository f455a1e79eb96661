"""Losses that a backend's operators are composed to in Python: matrix products between them are the framework's.

Such a loss is an operator too, so that torch.compile sees one node whatever goes on inside, and an autograd Function in
plain eager mode, which saves the dispatcher's way through Python. Four inputs are differentiable and come first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._library import (
    BACKENDS,
    LIBRARY,
    REDUCTIONS,
    accumulation_type,
    check_one_device,
    define,
    overload,
    refuse_derivative,
    refuse_second_derivative,
)
from ._processes import Processes

DIFFERENTIABLE = 4


class Options(NamedTuple):
    """What the operators take after their tensors."""

    diagonal: int
    class_axis: bool
    pair_axis: bool
    reduction: int


class Composite(NamedTuple):
    """A loss by name: passes(backend, ...) and the shapes of their results.

    forward(backend, *tensors, *options) -> (loss, terms, *statistics); backward(backend, grad, *tensors, *statistics,
    *options, *wanted) -> the gradients of the first four tensors, of which those that are not wanted are empty.
    """

    name: str
    tensors: str  # of the schema; the first DIFFERENTIABLE are differentiable, the fourth is a logit_scale
    statistics: str
    forward: Callable[..., tuple[Tensor, ...]]
    backward: Callable[..., tuple[Tensor, ...]]
    shapes_of_statistics: Callable[..., tuple[Tensor, ...]]  # (backend, *tensors) -> empty statistics

    @property
    def arity(self) -> int:
        """Tensors that it takes."""
        return self.tensors.count("Tensor")

    def __call__(self, backend: str, *inputs: Any, processes: Processes | None = None) -> tuple[Tensor, Tensor]:
        """Loss and its two axis terms (detached)."""
        if torch.compiler.is_compiling():
            loss, terms, *_ = overload(f"{self.name}_fwd", backend)(*inputs)
            return loss, terms
        return _EagerLoss.apply(self, backend, processes, *inputs)


def _gradients(ctx: Any, saved: tuple[Tensor, ...], backward: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = ctx.wanted
    gradients = list(backward(grad, *saved, *ctx.options, *wanted))
    if wanted[-1]:  # the kernels give that of the scale in the type of sums
        gradients[-1] = gradients[-1].to(saved[DIFFERENTIABLE - 1].dtype)
    return tuple(gradient if wants else None for gradient, wants in zip(gradients, wanted, strict=True))


class _EagerLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, composite: Composite, backend: str, processes: Processes | None, *inputs: Any
    ) -> tuple[Tensor, Tensor]:
        tensors, ctx.options = inputs[: composite.arity], inputs[composite.arity :]
        ctx.call = composite, backend, {"processes": processes}
        with torch._C._AutoDispatchBelowAutograd():
            loss, terms, *statistics = composite.forward(backend, *inputs, **ctx.call[2])
        ctx.save_for_backward(*tensors, *statistics)
        ctx.mark_non_differentiable(terms)
        ctx.set_materialize_grads(False)
        return loss, terms

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> Any:
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        composite, backend, shared = ctx.call
        ctx.wanted = ctx.needs_input_grad[3 : 3 + DIFFERENTIABLE]
        others = (None,) * (len(ctx.needs_input_grad) - 3 - DIFFERENTIABLE)
        saved = ctx.saved_tensors  # once, and above autograd: checkpointing runs the forward pass again to get them
        with torch._C._AutoDispatchBelowAutograd():
            gradients = _gradients(ctx, saved, functools.partial(composite.backward, backend, **shared), grad)
        return None, None, None, *refuse_second_derivative(gradients, (grad, *saved[:DIFFERENTIABLE])), *others


_OPTIONS = "int diagonal, bool class_axis, bool pair_axis, int reduction"
_WANTED = "bool wants_first, bool wants_second, bool wants_bias, bool wants_scale"


def register(composite: Composite) -> Composite:
    """Define <name>_fwd and <name>_bwd for every backend."""
    for backend in BACKENDS:
        _register(composite, backend)
    return composite


def _register(composite: Composite, backend: str) -> None:
    name, tensors, statistics = composite[:3]

    def fake_forward(*inputs: Any) -> tuple[Tensor, ...]:
        given, options = inputs[: composite.arity], Options(*inputs[composite.arity :])
        check_one_device(*given)
        shape = [given[0].shape[0]] if options.reduction == REDUCTIONS["none"] else []
        dtype = accumulation_type(given[0].dtype)
        loss, terms = (given[0].new_empty(s, dtype=dtype) for s in (shape, [2, *shape]))
        return loss, terms, *composite.shapes_of_statistics(backend, *given)

    def fake_backward(grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
        check_one_device(grad, *(each for each in inputs if isinstance(each, Tensor)))
        empty = inputs[0].new_empty
        first, second, bias, _ = (
            given.new_empty(given.shape) if wants else empty(0)
            for given, wants in zip(inputs[:DIFFERENTIABLE], inputs[-DIFFERENTIABLE:], strict=True)
        )
        scale = empty([] if inputs[-1] else [0], dtype=accumulation_type(inputs[0].dtype))
        return first, second, bias, scale

    returned = f"Tensor loss, Tensor terms, {statistics}"
    define(f"{name}_fwd", backend, f"({tensors}, {_OPTIONS}) -> ({returned})", fake_forward)
    define(
        f"{name}_bwd",
        backend,
        f"(Tensor grad, {tensors}, {statistics}, {_OPTIONS}, {_WANTED}) "
        "-> (Tensor dfirst, Tensor dsecond, Tensor dbias, Tensor dlogit_scale)",
        fake_backward,
    )
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(f"{name}_fwd.{backend}", functools.partial(composite.forward, backend), key)
        LIBRARY.impl(f"{name}_bwd.{backend}", functools.partial(composite.backward, backend), key)
    of = overload(f"{name}_bwd", backend)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[: composite.arity], *output[2:])
        ctx.options = inputs[composite.arity :]
        ctx.mark_non_differentiable(*output[1:])

    def registered_backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        ctx.wanted = ctx.needs_input_grad[:DIFFERENTIABLE]
        rest = (None,) * (len(ctx.needs_input_grad) - DIFFERENTIABLE)
        return *_gradients(ctx, ctx.saved_tensors, of, grad), *rest

    torch.library.register_autograd(f"icm_fast::{name}_fwd.{backend}", registered_backward, setup_context=setup_context)
    refuse_derivative(f"{name}_bwd.{backend}")


def options_of(options: tuple[Any, ...]) -> Options:
    """The options of a direct call, checked."""
    how = Options(*options)
    torch._check(how.reduction in REDUCTIONS.values(), lambda: f"expected a reduction of {REDUCTIONS}, got {how}")
    return how


def loss_of_terms(
    class_terms: Tensor, pair_terms: Tensor, options: Options, processes: Processes | None = None
) -> tuple[Tensor, Tensor]:
    """The loss and its two axis terms, reduced over the rows of all processes; an axis that is not asked for is 0."""
    zero = torch.zeros_like(class_terms)
    terms = torch.stack((class_terms if options.class_axis else zero, pair_terms if options.pair_axis else zero))
    dtype = terms.dtype
    if options.reduction != REDUCTIONS["none"]:
        terms = terms.sum(1, dtype=torch.float64)
        rows = class_terms.shape[0]
        if processes is not None:
            terms, rows = processes.add(terms), processes.rows
        if options.reduction == REDUCTIONS["mean"]:
            terms = terms / rows if rows > 0 else terms * float("nan")
    return terms.sum(0).to(dtype), terms.to(dtype)


def gradient_of_terms(
    grad: Tensor, rows: int, columns: int, options: Options, processes: Processes | None = None
) -> tuple[Tensor, Tensor]:
    """The gradient that comes in for each row's and each column's term, () or one each."""
    if processes is not None:
        grad = grad * processes.count
        if options.reduction == REDUCTIONS["none"]:  # every row's term depends on all rows
            grad = grad.expand(rows)
            return grad, processes.gather(grad)
        if options.reduction == REDUCTIONS["mean"]:
            grad = grad / max(processes.rows, 1)
        return grad, grad
    if options.reduction == REDUCTIONS["mean"]:
        grad = grad / rows if rows > 0 else grad
    if rows == columns:
        return grad, grad
    of_columns = grad.new_zeros(columns)
    of_columns[options.diagonal : options.diagonal + rows] = grad
    return grad, of_columns
