# mypy: allow-untyped-defs, allow-incomplete-defs
"""Terms of the loss from the sums, and their reduction."""

from __future__ import annotations

import triton
import triton.language as tl

from .._math import LN2, as_number, load_scale, log_ratio, mixed_class
from ._plan import BAD, REPAIRED
from ._scores import distance


@triton.jit
def _own_score(own, offset, sign, sigma, IS_REPAIR: tl.constexpr, acc: tl.constexpr):
    """x of each row's own column; the same expression as in _scores.tile_scores."""
    s_a, s_b, w_a, w_b = own
    t_a = distance(s_a, offset, sigma, IS_REPAIR, acc)
    t_b = tl.where(w_b != 0, distance(s_b, offset, sigma, IS_REPAIR, acc), 0.0)
    return tl.fma(w_a, t_a, w_b * t_b)


@triton.jit
def terms_kernel(
    logits,
    labels,
    scale,
    plan,
    row_stats,
    column_stats,
    terms,
    loss,
    sizes,
    CLASS_AXIS: tl.constexpr,
    PAIR_AXIS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """terms (2, rows): class and pair term of each row in nats, 0 for an axis not asked for; their sum if `loss`."""
    acc: tl.constexpr = row_stats.dtype.element_ty
    rows, columns = sizes.rows, sizes.columns
    _, sign, sigma = load_scale(scale, acc)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    in_rows = i < rows
    j = sizes.diagonal + i
    a, b, w_a, w_b, valid = mixed_class(labels, j, in_rows, sizes.classes, acc)
    row = logits.data + i.to(tl.int64) * logits.row_stride
    s_a = tl.load(row + a * logits.class_stride, mask=valid, other=0.0).to(acc) * sign
    s_b = tl.load(row + b * logits.class_stride, mask=valid & (w_b != 0), other=0.0).to(acc) * sign
    own = (s_a, s_b, w_a, w_b)

    offset = tl.load(row_stats + i, mask=in_rows, other=0.0)
    shift = tl.load(row_stats + rows + i, mask=in_rows, other=0.0)
    r = tl.load(row_stats + 2 * rows + i, mask=in_rows, other=1.0)
    w = tl.load(row_stats + 3 * rows + i, mask=in_rows, other=1.0)
    column_offset = tl.load(column_stats + j, mask=in_rows, other=0.0)
    column_shift = tl.load(column_stats + columns + j, mask=in_rows, other=0.0)
    total = tl.load(column_stats + 2 * columns + j, mask=in_rows, other=1.0)

    # d and y: log2 of the target's exponential in its row's and in its column's sum.
    if tl.load(plan.header + REPAIRED) != 0:
        d = (_own_score(own, offset, sign, sigma, True, acc) - shift) * sigma
        y = (_own_score(own, column_offset, sign, sigma, True, acc) - column_shift) * sigma
        target = tl.exp2(y)
    else:  # formed as in the sums: an exponential times the row's weight
        d = _own_score(own, offset, sign, sigma, False, acc)
        y = d + (offset - column_offset) * sigma
        target = w * tl.exp2(d)
    ln2 = tl.full((), LN2, tl.float64)
    by_class = (log_ratio(r, tl.exp2(d), d) * ln2).to(acc) if CLASS_AXIS else tl.zeros((BLOCK,), acc)
    by_pair = (log_ratio(total, target, y) * ln2).to(acc) if PAIR_AXIS else tl.zeros((BLOCK,), acc)
    is_bad = tl.load(plan.header + BAD) != 0
    by_class = tl.where(is_bad, float("nan"), by_class)
    by_pair = tl.where(is_bad, float("nan"), by_pair)
    tl.store(terms + i, by_class, mask=in_rows)
    tl.store(terms + rows + i, by_pair, mask=in_rows)
    if loss is not None:
        tl.store(loss + i, by_class + by_pair, mask=in_rows)


@triton.jit
def reduce_kernel(terms, plan, reduced, loss, sizes, IS_MEAN: tl.constexpr, BLOCK: tl.constexpr):
    """One program: sums or means of the terms, added in float64 in order; NaN for the mean of no rows."""
    rows = sizes.rows
    by_class, by_pair = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    for first in range(0, rows, BLOCK):
        i = first + tl.arange(0, BLOCK)
        by_class += tl.load(terms + i, mask=i < rows, other=0.0).to(tl.float64)
        by_pair += tl.load(terms + rows + i, mask=i < rows, other=0.0).to(tl.float64)
    count = as_number(rows, tl.float64) if IS_MEAN else tl.full((), 1.0, tl.float64)
    count = tl.where(tl.load(plan.header + BAD) != 0, float("nan"), count)  # with no rows nothing else shows it
    sum_class, sum_pair = tl.sum(by_class, axis=0), tl.sum(by_pair, axis=0)
    acc: tl.constexpr = loss.dtype.element_ty
    tl.store(reduced, (sum_class / count).to(acc))
    tl.store(reduced + 1, (sum_pair / count).to(acc))
    tl.store(loss, ((sum_class + sum_pair) / count).to(acc))
