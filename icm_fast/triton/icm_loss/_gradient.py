# mypy: allow-untyped-defs, allow-incomplete-defs
"""Gradient with respect to the logits:

    dZ[i,j] = g_i (P_ij - 1[own]) + g_j (Q_ij - 1[own])           dS[i,c] = sum_j dZ[i,j] Y[j,c]

A program owns a block of rows and a block of used classes and walks the entries of these classes in order, forming
each score again: no other program adds to its part of the gradient.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._math import as_number, load_scale, load_vector, mixed_class
from ._plan import BAD, ENTRIES, USED
from ._scores import tile_scores


@triton.jit
def _incoming(vector, at, mask, rows, IS_MEAN: tl.constexpr, acc: tl.constexpr):
    """The gradient of each term, from that of the loss."""
    grad = load_vector(vector, at, mask, tl.float64)
    return (grad / as_number(rows, tl.float64) if IS_MEAN else grad).to(acc)


@triton.jit
def _fill_nan(out, count, BLOCK: tl.constexpr):
    """The share of this program in an array."""
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    for first in range(tl.program_id(0).to(tl.int64) * BLOCK, count, step):
        at = first + tl.arange(0, BLOCK)
        tl.store(out + at, tl.full((BLOCK,), float("nan"), tl.float32).to(out.dtype.element_ty), mask=at < count)


@triton.jit
def _exponential(x, shift, sigma):
    """2^((x - shift) * sigma) of a repaired batch. Beyond the maximum only beside statistics that stand in for those
    of a column without incoming gradient: 0 times infinity must not come of it."""
    d = x - shift
    return tl.exp2(tl.where(d > 0, 0.0, d) * sigma)


@triton.jit
def gradient_kernel(
    logits,
    labels,
    scale,
    plan,
    row_stats,
    column_stats,
    grad_row,
    grad_column,
    dlogits,
    dscale,
    sizes,
    CLASS_AXIS: tl.constexpr,
    PAIR_AXIS: tl.constexpr,
    IS_MEAN: tl.constexpr,
    R: tl.constexpr,
    K: tl.constexpr,
    U: tl.constexpr,
):
    """dscale, if not None: one number a program, its part of sum_ic dS'[i,c] S[i,c]."""
    acc: tl.constexpr = row_stats.dtype.element_ty
    rows, columns = sizes.rows, sizes.columns
    factor, sign, sigma = load_scale(scale, acc)
    used = tl.load(plan.header + USED)
    class_blocks = tl.cdiv(min(sizes.classes, 2 * columns), U)
    i = tl.program_id(0) // class_blocks * R + tl.arange(0, R)
    u = tl.program_id(0) % class_blocks * U + tl.arange(0, U)
    in_rows, in_use = i < rows, u < used
    c = tl.load(plan.present + u, mask=in_use, other=-1)
    is_bad = tl.load(plan.header + BAD) != 0
    if is_bad:
        _fill_nan(dlogits, as_number(rows, tl.int64) * sizes.classes, R * U)

    m = tl.load(row_stats + i, mask=in_rows, other=0.0)
    row_shift = tl.load(row_stats + rows + i, mask=in_rows, other=0.0)
    # 1 / sum first, then the incoming gradient: a sum may be as small as 2^-94, and e / sum is at most 1.
    alpha = 1 / tl.load(row_stats + 2 * rows + i, mask=in_rows, other=1.0)
    w = tl.load(row_stats + 3 * rows + i, mask=in_rows, other=0.0)
    is_repaired = tl.max((in_rows & (w != w)).to(tl.int32), axis=0) != 0
    column_offset = tl.load(column_stats)
    g_row = _incoming(grad_row, i, in_rows, rows, IS_MEAN, acc)
    own = sizes.diagonal + i
    target = tl.zeros((R,), acc)  # what the target subtracts at each image's own column
    if CLASS_AXIS:
        target += g_row
    if PAIR_AXIS:
        target += _incoming(grad_column, own, in_rows, rows, IS_MEAN, acc)

    total = tl.zeros((R, U), acc)
    begin = tl.load(plan.starts + tl.min(u, axis=0), mask=tl.min(u, axis=0) < used, other=0)
    after = tl.max(u, axis=0) + 1
    end = tl.load(plan.starts + after, mask=after < used, other=0)
    end = tl.where(after < used, end, tl.load(plan.header + ENTRIES))
    end = tl.where(tl.min(u, axis=0) < used, end, begin)
    for first in range(begin, end, K):
        k = first + tl.arange(0, K)
        entry = tl.load(plan.entries + k, mask=k < end, other=-1)
        of, at = (entry >> 32).to(tl.int32), (entry & 0xFFFFFFFF).to(tl.int32)
        is_b = at >= columns
        j = tl.where(is_b, at - columns, at)
        mixed = mixed_class(labels, j, k < end, sizes.classes, acc)
        weight = tl.where(is_b, mixed[3], mixed[2])
        beta = 1 / tl.load(column_stats + 2 * columns + j, mask=k < end, other=1.0)
        g_column = _incoming(grad_column, j, k < end, rows, IS_MEAN, acc)
        dz = tl.zeros((R, K), acc)
        if is_repaired:  # a score and an exponential per axis
            if CLASS_AXIS:
                x = tile_scores(logits, i, in_rows, mixed, m[:, None], sign, sigma, True, acc)[0]
                dz += _exponential(x, row_shift[:, None], sigma) * alpha[:, None] * g_row[:, None]
            if PAIR_AXIS:
                shift = tl.load(column_stats + columns + j, mask=k < end, other=0.0)
                y = tile_scores(logits, i, in_rows, mixed, column_offset, sign, sigma, True, acc)[0]
                of_pair = _exponential(y, shift[None, :], sigma) * beta[None, :] * g_column[None, :]
                # A column without incoming gradient may be -inf in all rows: its sum is 0, of its own maximum.
                dz += tl.where(g_column[None, :] != 0, of_pair, 0.0)
        else:
            x = tile_scores(logits, i, in_rows, mixed, m[:, None], sign, sigma, False, acc)[0]
            e = tl.exp2(x)
            if CLASS_AXIS:
                dz += e * alpha[:, None] * g_row[:, None]
            if PAIR_AXIS:
                dz += e * (w[:, None] * beta[None, :]) * g_column[None, :]
        dz -= tl.where(j[None, :] == own[:, None], target[:, None], 0.0)
        dz *= weight[None, :]
        is_of = (of[:, None] == c[None, :]) & in_use[None, :]
        total += tl.sum(tl.where(is_of[None, :, :], dz[:, :, None], 0.0), axis=1)

    mask = in_rows[:, None] & in_use[None, :]
    at_logits = (i.to(tl.int64) * logits.row_stride)[:, None] + (c.to(tl.int64) * logits.class_stride)[None, :]
    at_out = (i.to(tl.int64) * sizes.classes)[:, None] + c[None, :]
    if dscale is not None:  # a class of zero gradient adds nothing, -inf included
        s = tl.load(logits.data + at_logits, mask=mask & (total != 0), other=0.0).to(acc)
        part = tl.where(mask & (total != 0), total * s, 0.0).to(tl.float64)
        tl.store(dscale + tl.program_id(0), tl.sum(tl.sum(part, axis=1), axis=0))
    total = tl.where(is_bad, float("nan"), total)
    tl.store(dlogits + at_out, (total * factor).to(dlogits.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["count"])
def reduce_scale_kernel(parts, plan, dscale, count, BLOCK: tl.constexpr):
    """One program: the gradient of the scale from the parts, in order."""
    total = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, count, BLOCK):
        at = first + tl.arange(0, BLOCK)
        total += tl.load(parts + at, mask=at < count, other=0.0)
    result = tl.where(tl.load(plan.header + BAD) != 0, float("nan"), tl.sum(total, axis=0))
    tl.store(dscale, result.to(dscale.dtype.element_ty))
