# mypy: allow-untyped-defs, allow-incomplete-defs
"""contrastive_loss: the loss of a block of scores that torch formed, and its gradient in their place.

    t_ij = logit_scale Z_ij          dZ_ij = logit_scale (g_i (P_ij - 1[own]) + g_j (Q_ij - 1[own]))

The sums read every score once: a program per tile writes what its rows and its columns have there, and a second launch
merges these parts in order. The gradient is a program per tile, which reads no other.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..operators._library import accumulation_type
from ._launch import FLOATING, Vector, blocks, check, check_memory, check_one_device, launch, on_device_of, vector_of
from ._math import load_scale, load_vector
from ._rows import shifted


class Tile(NamedTuple):
    """Rows and columns of a tile. No measurement chose them, only arithmetic."""

    rows: int
    columns: int


def sums_tile(dtype: torch.dtype) -> Tile:
    """Kept in registers, 16 numbers a thread (8 of float64): 1/16 as many are written as read."""
    return Tile(32 if dtype == torch.float64 else 64, 64)


def gradient_tile(dtype: torch.dtype) -> Tile:
    """8 numbers a thread; rows long enough to be read in whole sectors of memory."""
    return Tile(8, 128 if dtype == torch.float64 else 256)


# Parts that are merged at once, and the rows or columns of a program that merges.
_PARTS, _LINES = 16, 64


@triton.jit
def _load_tile(scores, i, j, mask, columns):
    return tl.load(scores + (i.to(tl.int64) * columns)[:, None] + j[None, :], mask=mask, other=0.0)


@triton.jit
def _offset_of(maximum):
    """That of nothing but -inf would turn its exponentials 0 into NaN."""
    return tl.where(maximum == float("-inf"), 0.0, maximum)


@triton.jit(do_not_specialize=["rows"])
def _sums_kernel(
    scores,
    scale,
    row_parts,
    column_parts,
    rows,
    columns,
    R: tl.constexpr,
    J: tl.constexpr,
):
    """row_parts (column blocks, 2, rows), column_parts (row blocks, 2, columns): largest t of the tile, and the sum."""
    acc: tl.constexpr = row_parts.dtype.element_ty
    factor, _, _ = load_scale(scale, acc)
    column_blocks = tl.cdiv(columns, J)
    row_block, column_block = tl.program_id(0) // column_blocks, tl.program_id(0) % column_blocks
    i = row_block * R + tl.arange(0, R)
    j = column_block * J + tl.arange(0, J)
    mask = (i < rows)[:, None] & (j < columns)[None, :]
    t = tl.where(mask, _load_tile(scores, i, j, mask, columns).to(acc) * factor, float("-inf"))
    known = tl.where(t > float("-inf"), t, float("-inf"))  # NaN drops out of a maximum, the sum will show it

    m = tl.max(known, axis=1)
    at = row_parts + column_block.to(tl.int64) * 2 * rows + i
    tl.store(at, m, mask=i < rows)
    e = tl.exp2(shifted(t, _offset_of(m)[:, None], acc))
    tl.store(at + rows, tl.sum(e, axis=1), mask=i < rows)

    m = tl.max(known, axis=0)
    at = column_parts + row_block.to(tl.int64) * 2 * columns + j
    tl.store(at, m, mask=j < columns)
    e = tl.exp2(shifted(t, _offset_of(m)[None, :], acc))
    tl.store(at + columns, tl.sum(e, axis=0), mask=j < columns)


@triton.jit
def _merge(parts, number, count, at, is_column: tl.constexpr, P: tl.constexpr):
    """(largest, sum) of rows or columns `at` from so many parts (number, 2, count)."""
    acc: tl.constexpr = parts.dtype.element_ty
    m = tl.full((1, at.shape[0]), float("-inf"), acc)
    for first in range(0, number, P):
        p = first + tl.arange(0, P)[:, None]
        mask = (p < number) & (at < count)[None, :]
        of = tl.load(parts + p.to(tl.int64) * 2 * count + at[None, :], mask=mask, other=float("-inf"))
        m = tl.maximum(m, tl.max(of, axis=0, keep_dims=True))
    # A row of nothing but -inf has no softmax: its sum is NaN. A column may have others in other blocks.
    offset = _offset_of(m) if is_column else m
    total = tl.zeros((P, at.shape[0]), acc)
    for first in range(0, number, P):
        p = first + tl.arange(0, P)[:, None]
        mask = (p < number) & (at < count)[None, :]
        line = parts + p.to(tl.int64) * 2 * count + at[None, :]
        of = tl.load(line, mask=mask, other=float("-inf"))
        sums = tl.load(line + count, mask=mask, other=0.0)
        total += tl.where(mask, sums * tl.exp2(shifted(of, offset, acc)), 0.0)
    return tl.max(m, axis=0), tl.sum(total, axis=0)


@triton.jit(do_not_specialize=["rows", "diagonal"])
def _merge_kernel(
    scores,
    scale,
    row_parts,
    column_parts,
    row_stats,
    column_stats,
    rows,
    columns,
    diagonal,
    R: tl.constexpr,
    J: tl.constexpr,
    P: tl.constexpr,
    L: tl.constexpr,
):
    """The first programs merge rows, the others columns."""
    acc: tl.constexpr = row_stats.dtype.element_ty
    of_rows = tl.cdiv(rows, L)
    if tl.program_id(0) < of_rows:
        i = tl.program_id(0) * L + tl.arange(0, L)
        m, total = _merge(row_parts, tl.cdiv(columns, J), rows, i, False, P)
        factor, _, _ = load_scale(scale, acc)
        own = tl.load(scores + i.to(tl.int64) * columns + (diagonal + i), mask=i < rows, other=0.0)
        tl.store(row_stats + i, m, mask=i < rows)
        tl.store(row_stats + rows + i, total, mask=i < rows)
        tl.store(row_stats + 2 * rows + i, own.to(acc) * factor, mask=i < rows)
    else:
        j = (tl.program_id(0) - of_rows) * L + tl.arange(0, L)
        m, total = _merge(column_parts, tl.cdiv(rows, R), columns, j, True, P)
        tl.store(column_stats + j, m, mask=j < columns)
        tl.store(column_stats + columns + j, total, mask=j < columns)


@triton.jit(do_not_specialize=["rows", "diagonal"])
def _gradient_kernel(
    scores,
    scale,
    grad_row,
    grad_column,
    row_stats,
    column_stats,
    dscale,
    rows,
    columns,
    diagonal,
    CLASS_AXIS: tl.constexpr,
    PAIR_AXIS: tl.constexpr,
    R: tl.constexpr,
    J: tl.constexpr,
):
    """dscale, if not None: one number a program, its part of sum_ij dt_ij Z_ij."""
    acc: tl.constexpr = row_stats.dtype.element_ty
    factor, _, _ = load_scale(scale, acc)
    column_blocks = tl.cdiv(columns, J)
    i = tl.program_id(0) // column_blocks * R + tl.arange(0, R)
    j = tl.program_id(0) % column_blocks * J + tl.arange(0, J)
    own = diagonal + i
    mask = (i < rows)[:, None] & (j < columns)[None, :]
    z = _load_tile(scores, i, j, mask, columns).to(acc)
    d, target = tl.zeros((R, J), acc), tl.zeros((R,), acc)  # target: what is subtracted at each row's own column
    if CLASS_AXIS:
        g = load_vector(grad_row, i, i < rows, acc)
        m = tl.load(row_stats + i, mask=i < rows, other=0.0)
        of_row = g / tl.load(row_stats + rows + i, mask=i < rows, other=1.0)
        d += tl.exp2(shifted(z * factor, m[:, None], acc)) * of_row[:, None]
        target += g
    if PAIR_AXIS:
        g = load_vector(grad_column, j, j < columns, acc)
        # A column that no row here owns may have no score but -inf, and then has no gradient either.
        takes_part = (j < columns) & (g != 0)
        m = tl.load(column_stats + j, mask=takes_part, other=float("inf"))
        of_column = g / tl.load(column_stats + columns + j, mask=takes_part, other=1.0)
        d += tl.exp2(shifted(z * factor, m[None, :], acc)) * of_column[None, :]
        target += load_vector(grad_column, own, i < rows, acc)
    d -= tl.where(own[:, None] == j[None, :], target[:, None], 0.0)  # p - 1 before it is rounded
    if dscale is not None:  # a score of zero gradient adds nothing, nor does -inf, which any positive scale leaves
        part = tl.sum(tl.where(mask & (d != 0) & (z != float("-inf")), d * z, 0.0), axis=1).to(tl.float64)
        tl.store(dscale + tl.program_id(0), tl.sum(part, axis=0))
    at = (i.to(tl.int64) * columns)[:, None] + j[None, :]
    tl.store(scores + at, (d * factor).to(scores.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["count"])
def _reduce_scale_kernel(parts, dscale, count, BLOCK: tl.constexpr):
    """One program: the gradient of the scale from the parts, in order."""
    total = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, count, BLOCK):
        at = first + tl.arange(0, BLOCK)
        total += tl.load(parts + at, mask=at < count, other=0.0)
    tl.store(dscale, tl.sum(total, axis=0).to(dscale.dtype.element_ty))


def _check_block(op: str, scores: Tensor, logit_scale: Tensor | None, diagonal: int) -> None:
    fits = scores.dim() == 2 and scores.dtype in FLOATING and scores.is_contiguous()
    check(fits, op, "contiguous floating-point scores of shape (rows, columns)")
    check_memory(op, scores)
    rows, columns = scores.shape
    check(columns < 2**30, op, "at most 2^30 columns")
    check(0 <= diagonal <= columns - rows, op, f"the diagonal of {rows} rows to lie inside {columns} columns")
    if logit_scale is not None:
        check(logit_scale.dim() == 0, op, "logit_scale of shape ()")
        vector_of(op, "logit_scale", logit_scale, 1)


def sums(scores: Tensor, logit_scale: Tensor | None, diagonal: int) -> tuple[Tensor, Tensor]:
    """score_sums.triton."""
    op = "score_sums"
    _check_block(op, scores, logit_scale, diagonal)
    check_one_device(op, scores, logit_scale)
    rows, columns = scores.shape
    dtype = accumulation_type(scores.dtype)
    tile = sums_tile(dtype)
    new = scores.new_empty
    row_stats, column_stats = new([3, rows], dtype=dtype), new([2, columns], dtype=dtype)
    row_blocks, column_blocks = blocks(rows, tile.rows), blocks(columns, tile.columns)
    parts = new([column_blocks, 2, rows], dtype=dtype), new([row_blocks, 2, columns], dtype=dtype)
    shape = {"R": tile.rows, "J": tile.columns}
    with on_device_of(scores):
        launch(
            *(_sums_kernel, row_blocks * column_blocks, scores, logit_scale, *parts, rows, columns),
            **{**shape, "num_warps": 8},
        )
        launch(
            *(_merge_kernel, blocks(rows, _LINES) + blocks(columns, _LINES), scores, logit_scale, *parts),
            *(row_stats, column_stats, rows, columns, diagonal),
            **{**shape, "P": _PARTS, "L": _LINES, "num_warps": 4},
        )
    return row_stats, column_stats


def _check_statistics(op: str, scores: Tensor, row_stats: Tensor, column_stats: Tensor) -> None:
    rows, columns = scores.shape
    for given, shape in ((row_stats, (3, rows)), (column_stats, (2, columns))):
        fits = given.shape == shape and given.dtype == accumulation_type(scores.dtype) and given.is_contiguous()
        check(fits, op, "the statistics that score_sums returned for these scores")


def gradient(
    scores: Tensor,
    logit_scale: Tensor | None,
    grad_row: Tensor,
    grad_column: Tensor,
    row_stats: Tensor,
    column_stats: Tensor,
    diagonal: int,
    class_axis: bool,
    pair_axis: bool,
    gradient_of_scale: bool,
) -> Tensor:
    """score_gradient.triton."""
    op = "score_gradient"
    _check_block(op, scores, logit_scale, diagonal)
    check_one_device(op, scores, logit_scale, grad_row, grad_column, row_stats, column_stats)
    _check_statistics(op, scores, row_stats, column_stats)
    rows, columns = scores.shape
    grads: tuple[Vector, Vector] = (
        vector_of(op, "grad_row", grad_row, rows),
        vector_of(op, "grad_column", grad_column, columns),
    )
    tile = gradient_tile(row_stats.dtype)
    programs = blocks(rows, tile.rows) * blocks(columns, tile.columns)
    dscale = scores.new_zeros([], dtype=row_stats.dtype)
    parts = scores.new_empty([programs], dtype=torch.float64) if gradient_of_scale else None
    with on_device_of(scores):
        launch(
            *(_gradient_kernel, programs, scores, logit_scale, *grads, row_stats, column_stats, parts),
            *(rows, columns, diagonal),
            CLASS_AXIS=class_axis,
            PAIR_AXIS=pair_axis,
            R=tile.rows,
            J=tile.columns,
            num_warps=8,
        )
        if gradient_of_scale:
            launch(_reduce_scale_kernel, 1, parts, dscale, programs, 1024, num_warps=8)
    return dscale


OPERATORS = {"score_sums": sums, "score_gradient": gradient}
