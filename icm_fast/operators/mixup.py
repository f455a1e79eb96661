"""`mixup_fwd`, `mixup_out` and `mixup_bwd`: mixing of a batch with itself, and its transpose.

Pixels inside `box` come from the partner, all others are lam times the sample plus 1 - lam times the partner; a box
without pixels is no box, so that one call serves a batch of which some samples have one. Mixing is linear in x: the
derivative of each of `mixup_fwd` and `mixup_bwd` is the other, and any number of derivatives exists.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._library import BACKENDS, declare, overload


def is_dense_per_sample(x: Tensor, has_box: bool) -> bool:
    """Whether each sample is one run of memory, its dimensions in any order; with a box also whether an image row is.

    The kernels work on such samples and keep their strides; of others they make a contiguous copy. The same rule as
    in csrc/mixup_tensors.h.
    """
    if x.numel() == 0:
        return False
    dims = sorted((x.stride(d), x.shape[d]) for d in range(1, x.dim()) if x.shape[d] != 1)
    run = 1
    for stride, size in dims:
        if stride != run:
            return False
        run = run * size
    if not has_box or x.shape[-1] == 1 or x.shape[-2] == 1:
        return True
    return bool(x.stride(-2) == x.shape[-1] * x.stride(-1))


def result_strides(x: Tensor, has_box: bool) -> tuple[int, ...]:
    """Strides of a result: dense samples keep theirs, all else is contiguous."""
    dense = is_dense_per_sample(x, has_box)
    strides, run = [1] * x.dim(), 1
    for d in range(x.dim() - 1, -1, -1):
        strides[d] = x.stride(d) if dense and d > 0 else run
        run = run * torch.sym_max(x.shape[d], 1)
    return tuple(strides)


def fits(out: Tensor, x: Tensor, has_box: bool) -> bool:
    """Whether `mixup_out` can write into `out`, whose shape is the result's: samples laid out as a result's are."""
    size = 1
    for n in x.shape[1:]:
        size = size * n
    pairs = zip(out.shape[1:], out.stride()[1:], result_strides(x, has_box)[1:], strict=True)
    return all(n == 1 or given == wanted for n, given, wanted in pairs) and (out.shape[0] == 1 or out.stride(0) >= size)


def _new_result(x: Tensor, batch_size: int, dtype: torch.dtype, has_box: bool) -> Tensor:
    return x.new_empty_strided((batch_size, *x.shape[1:]), result_strides(x, has_box), dtype=dtype)


def _fake_forward(
    x: Tensor,
    index: Tensor,
    lam: Tensor,
    box: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    keep_clean: bool,
    dtype: torch.dtype | None,
) -> Tensor:
    out_dtype = (dtype or torch.float32) if x.dtype == torch.uint8 else x.dtype
    return _new_result(x, x.shape[0] * (2 if keep_clean else 1), out_dtype, box is not None)


def _fake_out(
    out: Tensor,
    x: Tensor,
    index: Tensor,
    lam: Tensor,
    box: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    keep_clean: bool,
) -> None:
    return None


def _fake_backward(grad: Tensor, index: Tensor, lam: Tensor, box: Tensor | None, keep_clean: bool) -> Tensor:
    return _new_result(grad, grad.shape[0] // (2 if keep_clean else 1), grad.dtype, box is not None)


_SAMPLES = "Tensor x, Tensor index, Tensor lam, Tensor? box, Tensor? mean, Tensor? std, bool keep_clean"

declare(
    "mixup",
    BACKENDS,
    {
        "mixup_fwd": (f"({_SAMPLES}, ScalarType? dtype) -> Tensor", _fake_forward),
        "mixup_out": (f"(Tensor(a!) out, {_SAMPLES}) -> ()", _fake_out),
        "mixup_bwd": (
            "(Tensor grad, Tensor index, Tensor lam, Tensor? box, bool keep_clean) -> Tensor",
            _fake_backward,
        ),
    },
)

_FORWARD = {backend: overload("mixup_fwd", backend) for backend in BACKENDS}
_OUT = {backend: overload("mixup_out", backend) for backend in BACKENDS}
_BACKWARD = {backend: overload("mixup_bwd", backend) for backend in BACKENDS}


class _EagerMixup(torch.autograd.Function):
    """Mixing in plain eager mode: cheaper by some ten microseconds than the registered formula."""

    @staticmethod
    def forward(
        ctx: Any, backend: str, x: Tensor, index: Tensor, lam: Tensor, box: Tensor | None, keep_clean: bool
    ) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            out: Tensor = _FORWARD[backend](x, index, lam, box, None, None, keep_clean, None)
        ctx.save_for_backward(index, lam, box)
        ctx.backend, ctx.keep_clean = backend, keep_clean
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        arguments = (*gradients, *ctx.saved_tensors, ctx.keep_clean)
        if torch.is_grad_enabled():  # create_graph=True: the registered formula differentiates it again
            return None, _BACKWARD[ctx.backend](*arguments), None, None, None, None
        with torch._C._AutoDispatchBelowAutograd():
            return None, _BACKWARD[ctx.backend](*arguments), None, None, None, None


def _register_derivatives(backend: str) -> None:
    def save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, index, lam, box, _, _, keep_clean, _ = inputs
        ctx.save_for_backward(index, lam, box)
        ctx.keep_clean = keep_clean

    def forward_derivative(ctx: Any, grad: Tensor) -> Any:
        dx = _BACKWARD[backend](grad, *ctx.saved_tensors, ctx.keep_clean)
        return dx, None, None, None, None, None, None, None

    def save_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, index, lam, box, keep_clean = inputs
        ctx.save_for_backward(index, lam, box)
        ctx.keep_clean = keep_clean

    def backward_derivative(ctx: Any, grad: Tensor) -> Any:
        index, lam, box = ctx.saved_tensors
        dgrad = _FORWARD[backend](grad, index, lam, box, None, None, ctx.keep_clean, None)
        return dgrad, None, None, None, None

    name = f"icm_fast::{{}}.{backend}"
    torch.library.register_autograd(name.format("mixup_fwd"), forward_derivative, setup_context=save_forward)
    torch.library.register_autograd(name.format("mixup_bwd"), backward_derivative, setup_context=save_backward)


for _backend in BACKENDS:
    _register_derivatives(_backend)


def mixup(
    backend: str,
    x: Tensor,
    index: Tensor,
    lam: Tensor,
    box: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    keep_clean: bool,
    dtype: torch.dtype | None,
) -> Tensor:
    """The mixed samples, or with keep_clean the clean and the mixed; differentiable in a floating-point x."""
    if torch.compiler.is_compiling():
        return _FORWARD[backend](x, index, lam, box, mean, std, keep_clean, dtype)
    if x.requires_grad and torch.is_grad_enabled():
        return _EagerMixup.apply(backend, x, index, lam, box, keep_clean)
    with torch._C._AutoDispatchBelowAutograd():
        return _FORWARD[backend](x, index, lam, box, mean, std, keep_clean, dtype)


def mixup_out(
    backend: str,
    out: Tensor,
    x: Tensor,
    index: Tensor,
    lam: Tensor,
    box: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    keep_clean: bool,
) -> None:
    """The same written into `out`: the result's shape and type, its samples laid out as those of x."""
    _OUT[backend](out, x, index, lam, box, mean, std, keep_clean)
