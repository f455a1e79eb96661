"""Rows of a classifier: those of some classes, or mixed ones (eq. 2), with a dense or a sparse gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._library import accumulation_type, refuse_second_derivative


class _Rows(torch.autograd.Function):
    """Rows `first` of a table; or w_first * table[first] + w_second * table[second], of weights in the type of sums."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, mixture: tuple[Any, ...]) -> Tensor:
        first, second, w_first, w_second, valid, _ = mixture
        ctx.mixture, ctx.like = mixture, (table.shape, table.dtype, table.device)
        rows = table.index_select(0, first)
        if second is not None:
            # A class of weight exactly 0 takes no part, whatever its weights hold.
            other = table.index_select(0, second).to(w_second.dtype).mul_(w_second[:, None])
            other.masked_fill_((w_second == 0)[:, None], 0.0)
            rows = other.addcmul_(rows.to(other.dtype), w_first[:, None]).to(table.dtype)
        return rows if valid is None else rows * valid.to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        first, second, w_first, w_second, valid, sparse = ctx.mixture
        shape, dtype, device = ctx.like
        parts = [(first, grad)]
        if second is not None:
            wide = grad.to(w_first.dtype)
            of_second = (wide * w_second[:, None]).masked_fill_((w_second == 0)[:, None], 0.0)
            parts = [(first, wide * w_first[:, None]), (second, of_second)]
        if sparse:
            index, values = (torch.cat(each) for each in zip(*parts, strict=True))
            # Of one part, the classes are distinct and ascending.
            gradient = torch.sparse_coo_tensor(
                index[None], values.to(dtype), shape, is_coalesced=second is None, check_invariants=False
            )
            return *refuse_second_derivative((gradient,), (grad,)), None
        total = _zeros(shape, dtype if second is None else accumulation_type(dtype), device, valid)
        for index, values in parts:
            _add_rows(total, index, values)
        return *refuse_second_derivative((total.to(dtype),), (grad,)), None


def _zeros(shape: torch.Size, dtype: torch.dtype, device: torch.device, valid: Tensor | None) -> Tensor:
    """Zeros; NaN if the target is not valid."""
    if valid is None:
        return torch.zeros(shape, dtype=dtype, device=device)
    return (valid - 1).to(dtype).expand(shape).clone(memory_format=torch.contiguous_format)


def _add_rows(total: Tensor, index: Tensor, values: Tensor) -> None:
    """total[index[k]] += values[k], in a fixed order."""
    if total.device.type == "cpu":
        total.index_add_(0, index, values)
    else:  # where index_add_ would use atomics
        total.index_put_((index,), values, accumulate=True)


def rows_of(table: Tensor, classes: Tensor, sparse: bool = False) -> Tensor:
    """Rows of distinct, ascending classes."""
    return _Rows.apply(table, (classes, None, None, None, None, sparse))


def mixed_rows(
    table: Tensor,
    first: Tensor,
    second: Tensor,
    w_first: Tensor,
    w_second: Tensor,
    valid: Tensor | None,
    sparse: bool = False,
) -> Tensor:
    """w_first * table[first] + w_second * table[second]; `valid`: () 1, or NaN for a bad target; None: it is good."""
    if torch.compiler.is_compiling():
        table = table if valid is None else table * valid.to(table.dtype)
        mixed = [
            torch.where((w == 0)[:, None], 0.0, table.index_select(0, index) * w[:, None])
            for index, w in ((first, w_first), (second, w_second))
        ]
        return (mixed[0] + mixed[1]).to(table.dtype)
    return _Rows.apply(table, (first, second, w_first, w_second, valid, sparse))
