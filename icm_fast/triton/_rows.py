# mypy: allow-untyped-defs, allow-incomplete-defs
"""What the cross-entropies share: the softmax of a block of rows, and the reduction of one term per row."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..operators._library import REDUCTIONS, accumulation_type
from ._launch import launch
from ._math import LOG2E, as_number, load_vector


class RowTile(NamedTuple):
    """Block sizes: at most 8 numbers a thread, and few rows, of which each thread keeps several numbers more."""

    rows: int
    classes: int
    warps: int


def row_tile(classes: int, dtype: torch.dtype) -> RowTile:
    """Whole rows where they fit."""
    most = 1024 if dtype == torch.float64 else 2048
    width = min(max(16, triton.next_power_of_2(classes)), most)
    rows = max(1, min(16, most // width))  # from 32 on, the compiler of Triton 3.6 crashes in am_mixup_loss
    return RowTile(rows, width, warps=8 if rows * width > 1024 else 4)


@triton.jit
def shifted(x, maximum, acc: tl.constexpr):
    """(x - maximum) * log2(e): subtracted first, so that it is never positive."""
    return (x - maximum) * tl.full((), LOG2E, acc)


@triton.jit
def load_row(logits, i, c, mask, acc: tl.constexpr):
    """Logits of rows i (R, 1) and classes c (1, C)."""
    at = i.to(tl.int64) * logits.row_stride + c.to(tl.int64) * logits.class_stride
    return tl.load(logits.data + at, mask=mask, other=0.0).to(acc)


# A sum of exponentials is never negative: this one marks a batch whose target is invalid.
INVALID = tl.constexpr(-1.0)


@triton.jit
def incoming(grad, i, in_rows, rows, IS_MEAN: tl.constexpr, acc: tl.constexpr):
    """The gradient of each row's term, from that of the loss."""
    g = load_vector(grad, i, in_rows, tl.float64)
    return (g / as_number(rows, tl.float64) if IS_MEAN else g).to(acc)


@triton.jit(do_not_specialize=["rows"])
def reduce_kernel(terms, row_stats, loss, rows, IS_NONE: tl.constexpr, IS_MEAN: tl.constexpr, BLOCK: tl.constexpr):
    """One program: the loss from the rows' terms, added in float64 in order. One invalid row makes all NaN."""
    acc: tl.constexpr = loss.dtype.element_ty
    total = tl.zeros((BLOCK,), tl.float64)
    is_bad = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, rows, BLOCK):
        i = first + tl.arange(0, BLOCK)
        total += tl.load(terms + i, mask=i < rows, other=0.0).to(tl.float64)
        is_bad |= (tl.load(row_stats + rows + i, mask=i < rows, other=0.0) < 0).to(tl.int32)
    any_bad = tl.max(is_bad, axis=0) != 0
    if IS_NONE:
        for first in range(0, rows, BLOCK):
            i = first + tl.arange(0, BLOCK)
            term = tl.load(terms + i, mask=i < rows, other=0.0)
            tl.store(loss + i, tl.where(any_bad, float("nan"), term), mask=i < rows)
    else:
        count = as_number(rows, tl.float64) if IS_MEAN else tl.full((), 1.0, tl.float64)
        result = tl.sum(total, axis=0) / count  # NaN for the mean of no rows
        tl.store(loss, tl.where(any_bad, float("nan"), result).to(acc))
    if any_bad:
        for first in range(0, rows, BLOCK):
            i = first + tl.arange(0, BLOCK)
            tl.store(row_stats + rows + i, tl.full((BLOCK,), INVALID, acc), mask=i < rows)


class Outputs(NamedTuple):
    """What the forward operator of such a loss returns, and the terms that it is made of."""

    loss: Tensor
    row_stats: Tensor
    terms: Tensor


def new_outputs(logits: Tensor, reduction: int) -> Outputs:
    """`row_stats` (2, rows): maximum, and sum of exponentials relative to it."""
    rows, dtype = logits.shape[0], accumulation_type(logits.dtype)
    loss = logits.new_empty([rows] if reduction == REDUCTIONS["none"] else [], dtype=dtype)
    return Outputs(loss, logits.new_empty([2, rows], dtype=dtype), logits.new_empty([rows], dtype=dtype))


def reduce(outputs: Outputs, rows: int, reduction: int) -> None:
    """The loss from its terms."""
    how = {"IS_NONE": reduction == REDUCTIONS["none"], "IS_MEAN": reduction == REDUCTIONS["mean"]}
    launch(*(reduce_kernel, 1, outputs.terms, outputs.row_stats, outputs.loss, rows), **how, BLOCK=1024, num_warps=8)


def stats_fit(row_stats: Tensor, logits: Tensor) -> bool:
    """Whether these are statistics that `forward` could have returned."""
    shape, dtype = (2, logits.shape[0]), accumulation_type(logits.dtype)
    return row_stats.shape == shape and row_stats.dtype == dtype and row_stats.is_contiguous()
