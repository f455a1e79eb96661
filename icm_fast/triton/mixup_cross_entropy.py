# mypy: allow-untyped-defs, allow-incomplete-defs
"""mixup_cross_entropy: cross-entropy against two classes a row.

    loss_i = sum_c u_ic (lse_i - S_ic)          u_ic = w_c q_ic: class weight times smoothed target
    dS_ic  = g_i (W_i p_ic - u_ic)              W_i = sum_c u_ic

Forward a program per block of rows, backward one per tile of logits, which do not depend on each other.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..operators._library import REDUCTIONS, accumulation_type
from ._launch import (
    Logits,
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
from ._math import LN2, as_number, log_ratio, mixed_class
from ._rows import INVALID, incoming, load_row, new_outputs, reduce, row_tile, shifted, stats_fit


@triton.jit
def _smoothing(weight, c, mask, classes, SMOOTHING: tl.constexpr, acc: tl.constexpr):
    """What label smoothing adds to the target of each class, its weight included."""
    share = tl.full((), SMOOTHING, tl.float64) / as_number(classes, tl.float64)
    if weight is None:
        part = tl.where(mask, share, 0.0)
    else:
        part = share * tl.load(weight + c, mask=mask, other=0.0).to(tl.float64)
    return part.to(acc)


@triton.jit
def _total_smoothing(total_weight, classes, SMOOTHING: tl.constexpr, acc: tl.constexpr):
    total = tl.full((), SMOOTHING, tl.float64)
    if total_weight is not None:
        total = total * tl.load(total_weight) / as_number(classes, tl.float64)
    return total.to(acc)


@triton.jit
def _own_weights(labels, weight, i, in_rows, classes, SMOOTHING: tl.constexpr, acc: tl.constexpr):
    """The mixed class of each row, class weights included: (a, b, w_a, w_b, valid, is b another class)."""
    a, b, w_a, w_b, valid = mixed_class(labels, i, in_rows, classes, acc)
    is_mixed = valid & (w_b != 0)
    kept = tl.full((), 1.0 - SMOOTHING, acc)
    w_a, w_b = kept * w_a, kept * w_b
    if weight is not None:
        w_a *= tl.load(weight + a, mask=valid, other=0.0)
        w_b *= tl.load(weight + b, mask=is_mixed, other=0.0)
    return a, b, w_a, w_b, valid, is_mixed


@triton.jit(do_not_specialize=["rows"])
def _forward_kernel(
    logits,
    labels,
    weight,
    total_weight,
    row_stats,
    terms,
    rows,
    classes,
    SMOOTHING: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    acc: tl.constexpr = row_stats.dtype.element_ty
    i = tl.program_id(0) * R + tl.arange(0, R)
    in_rows = i < rows
    # NaN drops out of a maximum, the sum will show it.
    m = tl.full((R,), float("-inf"), acc)
    for first in range(0, classes, C):
        c = first + tl.arange(0, C)
        mask = in_rows[:, None] & (c < classes)[None, :]
        x = load_row(logits, i[:, None], c[None, :], mask, acc)
        m = tl.maximum(m, tl.max(tl.where(mask & (x > float("-inf")), x, float("-inf")), axis=1))
    total, smoothed = tl.zeros((R, C), acc), tl.zeros((R, C), acc)
    for first in range(0, classes, C):
        c = first + tl.arange(0, C)
        mask = in_rows[:, None] & (c < classes)[None, :]
        t = shifted(load_row(logits, i[:, None], c[None, :], mask, acc), m[:, None], acc)
        total += tl.where(mask, tl.exp2(t), 0.0)
        if SMOOTHING > 0:
            smoothing = _smoothing(weight, c, c < classes, classes, SMOOTHING, acc)
            smoothed += tl.where(mask, smoothing[None, :] * t, 0.0)
    r = tl.sum(total, axis=1)

    a, b, w_a, w_b, valid, is_mixed = _own_weights(labels, weight, i, in_rows, classes, SMOOTHING, acc)
    t_a = shifted(load_row(logits, i, a, valid, acc), m, acc)
    t_b = shifted(load_row(logits, i, b, is_mixed, acc), m, acc)
    loss = w_a.to(tl.float64) * log_ratio(r, tl.exp2(t_a), t_a)
    loss += tl.where(is_mixed, w_b.to(tl.float64) * log_ratio(r, tl.exp2(t_b), t_b), 0.0)
    if SMOOTHING > 0:
        share = _total_smoothing(total_weight, classes, SMOOTHING, acc).to(tl.float64)
        loss += tl.log2(r.to(tl.float64)) * share - tl.sum(smoothed, axis=1).to(tl.float64)
    tl.store(row_stats + i, m, mask=in_rows)
    tl.store(row_stats + rows + i, tl.where(valid, r, INVALID), mask=in_rows)
    tl.store(terms + i, (loss * tl.full((), LN2, tl.float64)).to(acc), mask=in_rows)


@triton.jit(do_not_specialize=["rows"])
def _backward_kernel(
    grad,
    logits,
    labels,
    weight,
    total_weight,
    row_stats,
    dlogits,
    rows,
    classes,
    SMOOTHING: tl.constexpr,
    IS_MEAN: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    acc: tl.constexpr = row_stats.dtype.element_ty
    class_blocks = tl.cdiv(classes, C)
    i = tl.program_id(0) // class_blocks * R + tl.arange(0, R)
    c = tl.program_id(0) % class_blocks * C + tl.arange(0, C)
    in_rows = i < rows
    mask = in_rows[:, None] & (c < classes)[None, :]
    g = incoming(grad, i, in_rows, rows, IS_MEAN, acc)
    m = tl.load(row_stats + i, mask=in_rows, other=0.0)
    r = tl.load(row_stats + rows + i, mask=in_rows, other=1.0)
    a, b, w_a, w_b, _, is_mixed = _own_weights(labels, weight, i, in_rows, classes, SMOOTHING, acc)

    u = tl.where(a[:, None] == c[None, :], w_a[:, None], 0.0)
    u += tl.where((b[:, None] == c[None, :]) & is_mixed[:, None], w_b[:, None], 0.0)
    share = w_a + tl.where(is_mixed, w_b, 0.0)
    if SMOOTHING > 0:
        u += _smoothing(weight, c, c < classes, classes, SMOOTHING, acc)[None, :]
        share += _total_smoothing(total_weight, classes, SMOOTHING, acc)
    # p - q is formed before it is rounded to the logits' type.
    e = tl.exp2(shifted(load_row(logits, i[:, None], c[None, :], mask, acc), m[:, None], acc))
    d = e * (g * share / r)[:, None] - g[:, None] * u
    d = tl.where((r < 0)[:, None], float("nan"), d)
    at = (i.to(tl.int64) * classes)[:, None] + c[None, :]
    tl.store(dlogits + at, d.to(dlogits.dtype.element_ty), mask=mask)


def _checked(
    op: str, logits: Tensor, y_a: Tensor, weight: Tensor | None, label_smoothing: float, reduction: int
) -> Logits:
    S = logits_of(op, logits)
    rows, classes = logits.shape
    check(y_a.shape == (rows,), op, f"{rows} labels, one per row of logits")
    check(0 <= label_smoothing <= 1, op, "label_smoothing in [0, 1]")
    if weight is not None:
        fits = weight.shape == (classes,) and weight.is_contiguous()
        check(fits, op, f"a contiguous weight of shape ({classes},)")
        right = weight.dtype == accumulation_type(logits.dtype)
        check(right, op, "weight in float64 for float64 logits, else float32")
    check_reduction(op, reduction)
    return S


def _total(weight: Tensor | None, label_smoothing: float) -> Tensor | None:
    """What smoothing shares out; without weights one per class."""
    return None if weight is None or label_smoothing == 0 else weight.sum(dtype=torch.float64)


def forward(
    logits: Tensor,
    y_a: Tensor,
    y_b: Tensor,
    lam: Tensor,
    weight: Tensor | None,
    label_smoothing: float,
    reduction: int,
) -> tuple[Tensor, Tensor]:
    """mixup_cross_entropy_fwd.triton."""
    op = "mixup_cross_entropy_fwd"
    labels = labels_of(op, y_a, y_b, lam)
    S = _checked(op, logits, y_a, weight, label_smoothing, reduction)
    check_one_device(op, logits, y_a, y_b, lam, weight)
    rows, classes = logits.shape
    outputs = new_outputs(logits, reduction)
    tile = row_tile(classes, outputs.loss.dtype)
    with on_device_of(logits):
        launch(
            *(_forward_kernel, blocks(rows, tile.rows), S, labels, weight, _total(weight, label_smoothing)),
            *(outputs.row_stats, outputs.terms, rows, classes),
            SMOOTHING=label_smoothing,
            R=tile.rows,
            C=tile.classes,
            num_warps=tile.warps,
        )
        reduce(outputs, rows, reduction)
    return outputs.loss, outputs.row_stats


def backward(
    grad: Tensor,
    logits: Tensor,
    y_a: Tensor,
    y_b: Tensor,
    lam: Tensor,
    weight: Tensor | None,
    row_stats: Tensor,
    label_smoothing: float,
    reduction: int,
) -> Tensor:
    """mixup_cross_entropy_bwd.triton."""
    op = "mixup_cross_entropy_bwd"
    labels = labels_of(op, y_a, y_b, lam)
    S = _checked(op, logits, y_a, weight, label_smoothing, reduction)
    check_one_device(op, grad, logits, y_a, y_b, lam, weight, row_stats)
    check(stats_fit(row_stats, logits), op, "the statistics that the forward operator returned for these logits")
    rows, classes = logits.shape
    g = vector_of(op, "grad", grad, rows)
    dlogits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    tile = row_tile(classes, row_stats.dtype)
    with on_device_of(logits):
        launch(
            *(_backward_kernel, blocks(rows, tile.rows) * blocks(classes, tile.classes)),
            *(g, S, labels, weight, _total(weight, label_smoothing), row_stats, dlogits, rows, classes),
            SMOOTHING=label_smoothing,
            IS_MEAN=reduction == REDUCTIONS["mean"],
            R=tile.rows,
            C=tile.classes,
            num_warps=tile.warps,
        )
    return dlogits


OPERATORS = {"mixup_cross_entropy_fwd": forward, "mixup_cross_entropy_bwd": backward}
