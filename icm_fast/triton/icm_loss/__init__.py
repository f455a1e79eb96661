"""icm_loss: the Infinite Class Mixup loss and its gradient, forward in six launches and a sort, backward in one.

The (B, B) scores exist only as tiles, formed in each pass and never stored. A program gathers what it needs of a row
through the cache: slower than the compiled kernels, which keep rows in shared memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...operators._library import REDUCTIONS, accumulation_type
from ...operators.icm_loss import plan_size
from .._launch import (
    blocks,
    check,
    check_one_device,
    check_reduction,
    labels_of,
    launch,
    logits_of,
    on_device_of,
    vector_of,
)
from . import _gradient, _plan, _repair, _sums, _terms
from ._plan import Sizes


@dataclass(frozen=True)
class Tiles:
    """Block sizes. No measurement chose them, only arithmetic: 8 numbers a thread, which leaves registers for 16 warps
    on a multiprocessor.
    """

    rows: int  # of every tile
    columns: int  # of a tile of sums
    classes: int  # per step of the rows' maxima
    warps: int  # of the sums, whose programs are few
    # Of the gradient per step: (rows, entries, gradient_classes) is its inner product. 16 entries by 16 classes of
    # float64 crash the compiler of Triton 3.6.
    entries: int = 32
    gradient_classes: int = 16  # a row of them fills a sector of memory, 32 bytes
    programs: int = 128  # lines of partial column sums, a power of two: about as many as multiprocessors


def tiles_for(rows: int, dtype: torch.dtype) -> Tiles:
    """Few rows are cut finer, so that they occupy more multiprocessors; numbers of twice the size, half as many."""
    if dtype == torch.float64:
        return Tiles(rows=8, columns=128, classes=64, warps=8)
    if rows <= 1024:
        return Tiles(rows=8, columns=256, classes=128, warps=8)
    return Tiles(rows=16, columns=256, classes=128, warps=16)


def _sizes(op: str, logits: Tensor, columns: int, diagonal: int) -> Sizes:
    rows, classes = logits.shape
    check(0 <= diagonal <= columns - rows, op, f"the diagonal of {rows} rows to lie inside {columns} columns")
    return Sizes(rows, columns, classes, diagonal)


def forward(
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
    """icm_loss_fwd.triton."""
    op = "icm_loss_fwd"
    S, labels = logits_of(op, logits), labels_of(op, y_a, y_b, lam)
    sizes = _sizes(op, logits, y_a.shape[0], diagonal)
    check(logit_scale is None or logit_scale.dim() == 0, op, "logit_scale of shape ()")
    check_one_device(op, logits, y_a, y_b, lam, logit_scale)
    check_reduction(op, reduction)
    rows, columns = sizes.rows, sizes.columns
    dtype = accumulation_type(logits.dtype)
    tiles = tiles_for(rows, dtype)
    is_none = reduction == REDUCTIONS["none"]
    new = logits.new_empty
    loss = new([rows] if is_none else [], dtype=dtype)
    terms = new([2, rows] if is_none else [2], dtype=dtype)
    row_stats, column_stats = new([4, rows], dtype=dtype), logits.new_zeros([3, columns], dtype=dtype)
    programs = min(tiles.programs, blocks(rows, tiles.rows))
    partial, offsets = new([programs, columns], dtype=dtype), new([programs], dtype=dtype)
    terms_of_rows = terms if is_none else new([2, rows], dtype=dtype)
    axes = {"CLASS_AXIS": class_axis, "PAIR_AXIS": pair_axis}
    with on_device_of(logits):
        plan = _plan.make(labels, sizes, dtype)
        parts = _plan.views(plan, columns)
        launch(
            *(_sums.sums_kernel, programs, S, labels, logit_scale, parts, row_stats, partial, offsets, sizes),
            R=tiles.rows,
            J=tiles.columns,
            U=tiles.classes,
            num_warps=tiles.warps,
        )
        if rows > 0:
            launch(
                *(_sums.merge_kernel, blocks(max(rows, columns), 256)),
                *(logit_scale, parts, row_stats, column_stats, partial, offsets, sizes, programs),
                **{**axes, "R": tiles.rows, "PROGRAMS": tiles.programs, "BLOCK": 256, "num_warps": 4},
            )
            half = tiles.columns // 2  # it keeps a maximum beside each number
            launch(
                *(_repair.repair_kernel, blocks(rows, tiles.rows) + blocks(columns, half)),
                *(S, labels, logit_scale, parts, row_stats, column_stats, sizes),
                R=tiles.rows,
                J=half,
                num_warps=tiles.warps,
            )
        launch(
            *(_terms.terms_kernel, blocks(rows, 256), S, labels, logit_scale, parts, row_stats, column_stats),
            *(terms_of_rows, loss if is_none else None, sizes),
            **{**axes, "BLOCK": 256, "num_warps": 4},
        )
        if not is_none:
            is_mean = reduction == REDUCTIONS["mean"]
            launch(_terms.reduce_kernel, 1, terms_of_rows, parts, terms, loss, sizes, is_mean, 1024, num_warps=8)
    return loss, terms, row_stats, column_stats, plan


def backward(
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
    """icm_loss_bwd.triton."""
    op = "icm_loss_bwd"
    S, labels = logits_of(op, logits), labels_of(op, y_a, y_b, lam)
    sizes = _sizes(op, logits, y_a.shape[0], diagonal)
    rows, columns, classes, _ = sizes
    dtype = accumulation_type(logits.dtype)
    check(logit_scale is None or logit_scale.dim() == 0, op, "logit_scale of shape ()")
    check_one_device(op, logits, y_a, y_b, lam, logit_scale, row_stats, column_stats, plan, grad_row, grad_column)
    check_reduction(op, reduction)
    for given, shape, of in (
        (row_stats, (4, rows), dtype),
        (column_stats, (3, columns), dtype),
        (plan, (plan_size("triton", columns, classes),), torch.int32),
    ):
        fits = given.shape == shape and given.dtype == of and given.is_contiguous()
        check(fits, op, "the statistics that icm_loss_fwd returned for these logits")
    grads = vector_of(op, "grad_row", grad_row, rows), vector_of(op, "grad_column", grad_column, columns)
    tiles = tiles_for(rows, dtype)
    dlogits = torch.zeros(logits.shape, dtype=logits.dtype, device=logits.device)  # classes that no column uses
    dscale = logits.new_zeros([], dtype=dtype)
    class_blocks = blocks(min(classes, 2 * columns), tiles.gradient_classes)
    programs = blocks(rows, tiles.rows) * class_blocks
    parts_of_scale = logits.new_empty([programs], dtype=torch.float64) if gradient_of_scale else None
    parts = _plan.views(plan, columns)
    with on_device_of(logits):
        launch(
            *(_gradient.gradient_kernel, programs, S, labels, logit_scale, parts, row_stats, column_stats),
            *(*grads, dlogits, parts_of_scale, sizes),
            CLASS_AXIS=class_axis,
            PAIR_AXIS=pair_axis,
            IS_MEAN=reduction == REDUCTIONS["mean"],
            R=tiles.rows,
            K=tiles.entries,
            U=tiles.gradient_classes,
            num_warps=4,
        )
        if gradient_of_scale:
            launch(_gradient.reduce_scale_kernel, 1, parts_of_scale, parts, dscale, programs, 1024, num_warps=8)
    return dlogits, dscale


OPERATORS = {"icm_loss_fwd": forward, "icm_loss_bwd": backward}
