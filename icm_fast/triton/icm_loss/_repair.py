# mypy: allow-untyped-defs, allow-incomplete-defs
"""The repair of sums that lost what they consist of to underflow, or are not finite: exact maxima of rows and columns,
then sums relative to them, with an exponential per axis (csrc/cpu/kernels/icm_loss_repair.h).

Launched always, because the host must not wait for the answer; returns at once when there is nothing to repair.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._math import largest, load_scale, mixed_class
from ._plan import REPAIRED
from ._scores import tile_scores


@triton.jit
def _order_of(x, acc: tl.constexpr):
    """An integer that is ordered as the finite numbers are."""
    if acc == tl.float64:
        bits = x.to(tl.int64, bitcast=True)
        key = tl.where(bits < 0, bits ^ 0x7FFFFFFFFFFFFFFF, bits)
    else:
        bits = x.to(tl.int32, bitcast=True)
        key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return key


@triton.jit
def _number_of(key, acc: tl.constexpr):
    """The inverse of `_order_of`."""
    if acc == tl.float64:
        x = tl.where(key < 0, key ^ 0x7FFFFFFFFFFFFFFF, key).to(tl.float64, bitcast=True)
    else:
        x = tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)
    return x


@triton.jit
def _count_up_to(row_stats, rows, most, least, BLOCK: tl.constexpr, acc: tl.constexpr):
    """How many rows have an offset that is more than `least` and, in order, at most `most`."""
    count = 0
    for first in range(0, rows, BLOCK):
        i = first + tl.arange(0, BLOCK)
        m = tl.load(row_stats + i, mask=i < rows, other=0.0)
        count += tl.sum(((i < rows) & (m > least) & (_order_of(m, acc) <= most)).to(tl.int32), axis=0)
    return count


@triton.jit
def _median_offset(row_stats, rows, BLOCK: tl.constexpr, acc: tl.constexpr):
    """The middle of the rows' offsets: one image far from the others must not cost the others their digits.

    Rows without a finite logit have none. By bisection over the bits: every program finds it by itself.
    """
    least = -largest(acc)
    low, high = _order_of(least, acc), _order_of(-least, acc)
    count = _count_up_to(row_stats, rows, high, least, BLOCK, acc)
    for _ in range(acc.primitive_bitwidth):
        mean = (low & high) + ((low ^ high) >> 1)
        is_enough = _count_up_to(row_stats, rows, mean, least, BLOCK, acc) > count // 2
        high = tl.where(is_enough, mean, high)
        low = tl.where(is_enough | (low == high), low, mean + 1)
    return tl.where(count == 0, 0.0, _number_of(low, acc))


@triton.jit
def _repair_rows(logits, labels, row_stats, sizes, block, sign, sigma, R: tl.constexpr, J: tl.constexpr):
    acc: tl.constexpr = row_stats.dtype.element_ty
    rows, columns = sizes.rows, sizes.columns
    i = block * R + tl.arange(0, R)
    in_rows = i < rows
    m = tl.load(row_stats + i, mask=in_rows, other=0.0)
    most = tl.full((R, J), float("-inf"), acc)
    for first in range(0, columns, J):
        j = first + tl.arange(0, J)
        mixed = mixed_class(labels, j, j < columns, sizes.classes, acc)
        x, mask = tile_scores(logits, i, in_rows, mixed, m[:, None], sign, sigma, True, acc)
        most = tl.where(mask & (x > most), x, most)  # NaN drops out; the sums will show it
    shift = tl.max(most, axis=1)
    r = tl.zeros((R, J), acc)
    for first in range(0, columns, J):
        j = first + tl.arange(0, J)
        mixed = mixed_class(labels, j, j < columns, sizes.classes, acc)
        x, mask = tile_scores(logits, i, in_rows, mixed, m[:, None], sign, sigma, True, acc)
        r += tl.where(mask, tl.exp2((x - shift[:, None]) * sigma), 0.0)
    tl.store(row_stats + rows + i, shift, mask=in_rows)
    tl.store(row_stats + 2 * rows + i, tl.sum(r, axis=1), mask=in_rows)
    tl.store(row_stats + 3 * rows + i, tl.full((R,), float("nan"), acc), mask=in_rows)  # the mark of a repair


@triton.jit
def _repair_columns(
    logits, labels, row_stats, column_stats, sizes, block, sign, sigma, R: tl.constexpr, J: tl.constexpr
):
    acc: tl.constexpr = row_stats.dtype.element_ty
    rows, columns = sizes.rows, sizes.columns
    offset = _median_offset(row_stats, rows, 1024, acc)
    j = block * J + tl.arange(0, J)
    in_columns = j < columns
    mixed = mixed_class(labels, j, in_columns, sizes.classes, acc)
    most = tl.full((R, J), float("-inf"), acc)
    for first in range(0, rows, R):
        i = first + tl.arange(0, R)
        y, mask = tile_scores(logits, i, i < rows, mixed, offset, sign, sigma, True, acc)
        most = tl.where(mask & (y > most), y, most)
    shift = tl.max(most, axis=0)
    total = tl.zeros((R, J), acc)
    for first in range(0, rows, R):
        i = first + tl.arange(0, R)
        y, mask = tile_scores(logits, i, i < rows, mixed, offset, sign, sigma, True, acc)
        total += tl.where(mask, tl.exp2((y - shift[None, :]) * sigma), 0.0)
    tl.store(column_stats + j, tl.zeros_like(shift) + offset, mask=in_columns)
    tl.store(column_stats + columns + j, shift, mask=in_columns)
    tl.store(column_stats + 2 * columns + j, tl.sum(total, axis=0), mask=in_columns)


@triton.jit
def repair_kernel(logits, labels, scale, plan, row_stats, column_stats, sizes, R: tl.constexpr, J: tl.constexpr):
    """The first programs repair blocks of rows, the others blocks of columns."""
    if tl.load(plan.header + REPAIRED) != 0:
        _, sign, sigma = load_scale(scale, row_stats.dtype.element_ty)
        program, row_blocks = tl.program_id(0), tl.cdiv(sizes.rows, R)
        if program < row_blocks:
            _repair_rows(logits, labels, row_stats, sizes, program, sign, sigma, R, J)
        else:
            _repair_columns(logits, labels, row_stats, column_stats, sizes, program - row_blocks, sign, sigma, R, J)
