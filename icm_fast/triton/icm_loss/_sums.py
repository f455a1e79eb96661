# mypy: allow-untyped-defs, allow-incomplete-defs
"""Row and column sums of exponentials (eq. 5 and 7): one exponential per score serves both axes.

A program owns a set of rows and walks all columns for each block of them. Its column sums, relative to its own largest
offset, go to one line of `partial`; the lines are merged in order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._math import is_trusted, largest, load_scale, mixed_class
from ._plan import BAD, REPAIRED, USED
from ._scores import tile_scores


@triton.jit
def _row_offset(logits, plan, i, in_rows, sign, U: tl.constexpr, acc: tl.constexpr):
    """M_i: the largest finite logit of a used class; without one -largest, so that -inf still scores -inf."""
    rows = logits.data + (i.to(tl.int64) * logits.row_stride)[:, None]
    least = -largest(acc)
    m = tl.zeros_like(i).to(acc) + least
    used = tl.load(plan.header + USED)
    for first in range(0, used, U):
        u = first + tl.arange(0, U)
        c = tl.load(plan.present + u, mask=u < used, other=0).to(tl.int64)
        mask = in_rows[:, None] & (u < used)[None, :]
        x = tl.load(rows + (c * logits.class_stride)[None, :], mask=mask, other=0.0).to(acc) * sign
        x = tl.where(mask & (x < float("inf")), x, least)  # NaN and +inf drop out; the sums will show them
        m = tl.maximum(m, tl.max(x, axis=1))
    return m


@triton.jit
def sums_kernel(
    logits,
    labels,
    scale,
    plan,
    row_stats,
    partial,
    offsets,
    sizes,
    R: tl.constexpr,
    J: tl.constexpr,
    U: tl.constexpr,
):
    acc: tl.constexpr = row_stats.dtype.element_ty
    rows, columns = sizes.rows, sizes.columns
    _, sign, sigma = load_scale(scale, acc)
    program, programs = tl.program_id(0), tl.num_programs(0)
    blocks = tl.cdiv(rows, R)

    top = -largest(acc)
    for block in range(program, blocks, programs):
        i = block * R + tl.arange(0, R)
        m = _row_offset(logits, plan, i, i < rows, sign, U, acc)
        tl.store(row_stats + i, m, mask=i < rows)
        top = tl.maximum(top, tl.max(m, axis=0))
    tl.store(offsets + program, top)
    tl.debug_barrier()  # other threads of the program read the offsets back

    line = partial + program.to(tl.int64) * columns
    for block in range(program, blocks, programs):
        i = block * R + tl.arange(0, R)
        in_rows = i < rows
        m = tl.load(row_stats + i, mask=in_rows, other=0.0)
        w = tl.where(in_rows, tl.exp2((m - top) * sigma), 0.0)
        written = tl.where(block == program, 0, columns)  # the first block finds nothing to add to
        r = tl.zeros((R, J), acc)
        for first in range(0, columns, J):
            j = first + tl.arange(0, J)
            mixed = mixed_class(labels, j, j < columns, sizes.classes, acc)
            x, mask = tile_scores(logits, i, in_rows, mixed, m[:, None], sign, sigma, False, acc)
            e = tl.where(mask, tl.exp2(x), 0.0)
            r += e
            before = tl.load(line + j, mask=j < written, other=0.0)
            tl.store(line + j, before + tl.sum(e * w[:, None], axis=0), mask=j < columns)
        tl.store(row_stats + rows + i, tl.zeros_like(m), mask=in_rows)
        tl.store(row_stats + 2 * rows + i, tl.sum(r, axis=1), mask=in_rows)
        tl.store(row_stats + 3 * rows + i, w, mask=in_rows)
        tl.debug_barrier()


@triton.jit
def merge_kernel(
    scale,
    plan,
    row_stats,
    column_stats,
    partial,
    offsets,
    sizes,
    programs,
    CLASS_AXIS: tl.constexpr,
    PAIR_AXIS: tl.constexpr,
    R: tl.constexpr,
    PROGRAMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Merges the lines of `partial` relative to the largest offset; the rows' weights follow, and all are judged."""
    acc: tl.constexpr = row_stats.dtype.element_ty
    rows, columns = sizes.rows, sizes.columns
    _, _, sigma = load_scale(scale, acc)
    p = tl.arange(0, PROGRAMS)
    top = tl.max(tl.load(offsets + p, mask=p < programs, other=-largest(acc)), axis=0)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)

    is_column = at < columns
    total = tl.zeros((BLOCK,), acc)
    line = partial + at
    for q in range(programs):
        factor = tl.exp2((tl.load(offsets + q) - top) * sigma)
        total += factor * tl.load(line, mask=is_column, other=0.0)
        line += columns
    tl.store(column_stats + at, tl.zeros_like(total) + top, mask=is_column)
    tl.store(column_stats + columns + at, tl.zeros_like(total), mask=is_column)
    tl.store(column_stats + 2 * columns + at, total, mask=is_column)

    is_row = at < rows
    of_program = tl.load(offsets + (at // R) % programs, mask=is_row, other=0.0)
    w = tl.load(row_stats + 3 * rows + at, mask=is_row, other=0.0)
    tl.store(row_stats + 3 * rows + at, w * tl.exp2((of_program - top) * sigma), mask=is_row)

    untrusted = tl.zeros((BLOCK,), tl.int1)
    if PAIR_AXIS:
        untrusted = untrusted | (is_column & (is_trusted(total, rows, acc) == 0))
    if CLASS_AXIS:
        r = tl.load(row_stats + 2 * rows + at, mask=is_row, other=1.0)
        untrusted = untrusted | (is_row & (is_trusted(r, columns, acc) == 0))
    must_repair = (tl.max(untrusted.to(tl.int32), axis=0) != 0) & (tl.load(plan.header + BAD) == 0)
    tl.store(plan.header + REPAIRED, 1, mask=must_repair)
