# mypy: allow-untyped-defs, allow-incomplete-defs
"""am_mixup_loss: cross-entropy of rows of logits mixed with their partners by one rate.

    M_i = r S_i + (1 - r) S_partner(i)          loss_i = lse(M_i) - M_i,label(i)
    dS_j = r dM_j + sum over i with partner(i) == j of (1 - r) dM_i          dM_i = g_i (p_i - onehot)

A mixed row exists only in registers: the gradient forms it again, for the row itself and for its partner.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..operators._library import REDUCTIONS
from ._launch import (
    Logits,
    Vector,
    blocks,
    check,
    check_one_device,
    check_reduction,
    launch,
    logits_of,
    on_device_of,
    vector_of,
)
from ._math import LN2, log_ratio
from ._partners import Index, index_of, lists_of, load_index
from ._rows import INVALID, incoming, load_row, new_outputs, reduce, row_tile, shifted, stats_fit


class Mixing(NamedTuple):
    """Partners, rate of the row itself and labels, as they came."""

    partner: Index
    rate: Vector
    labels: Index


@triton.jit
def _mixed_row(mixing, i, in_rows, rows, classes, acc: tl.constexpr):
    """(partner, own weight, label, valid) of mixed rows i; a row that is its own partner has weight exactly 1."""
    partner, label = load_index(mixing.partner, i, in_rows), load_index(mixing.labels, i, in_rows)
    rate = tl.load(mixing.rate.data + tl.zeros_like(i)).to(acc)
    valid = in_rows & (partner >= 0) & (partner < rows) & (label >= 0) & (label < classes)
    valid = valid & (rate >= 0) & (rate <= 1)
    other = load_index(mixing.labels, partner, valid)
    label = tl.where(rate >= 0.5, label, other)
    valid = valid & (label >= 0) & (label < classes)
    return partner, tl.where(partner == i, 1.0, rate), label, valid


@triton.jit
def _mixed_logits(logits, i, partner, w, c, mask, acc: tl.constexpr):
    """M_i of rows i, their partners and weights, all (R, 1), and classes c (1, C). A row of weight 0 is not read."""
    rest = 1 - w
    own = load_row(logits, i, c, mask & (w != 0), acc)
    other = load_row(logits, partner, c, mask & (rest != 0), acc)
    return tl.where(rest == 0, own, tl.where(w == 0, other, tl.fma(w, own, rest * other)))


@triton.jit(do_not_specialize=["rows"])
def _forward_kernel(logits, mixing, row_stats, terms, rows, classes, R: tl.constexpr, C: tl.constexpr):
    acc: tl.constexpr = row_stats.dtype.element_ty
    i = tl.program_id(0) * R + tl.arange(0, R)
    in_rows = i < rows
    partner, w, label, valid = _mixed_row(mixing, i, in_rows, rows, classes, acc)
    # NaN drops out of a maximum, the sum will show it.
    m = tl.full((R,), float("-inf"), acc)
    for first in range(0, classes, C):
        c = first + tl.arange(0, C)
        mask = valid[:, None] & (c < classes)[None, :]
        x = _mixed_logits(logits, i[:, None], partner[:, None], w[:, None], c[None, :], mask, acc)
        m = tl.maximum(m, tl.max(tl.where(mask & (x > float("-inf")), x, float("-inf")), axis=1))
    total = tl.zeros((R, C), acc)
    for first in range(0, classes, C):
        c = first + tl.arange(0, C)
        mask = valid[:, None] & (c < classes)[None, :]
        x = _mixed_logits(logits, i[:, None], partner[:, None], w[:, None], c[None, :], mask, acc)
        total += tl.where(mask, tl.exp2(shifted(x, m[:, None], acc)), 0.0)
    r = tl.sum(total, axis=1)
    t = shifted(_mixed_logits(logits, i, partner, w, label, valid, acc), m, acc)
    loss = log_ratio(r, tl.exp2(t), t) * tl.full((), LN2, tl.float64)
    tl.store(row_stats + i, m, mask=in_rows)
    tl.store(row_stats + rows + i, tl.where(valid, r, INVALID), mask=in_rows)
    tl.store(terms + i, loss.to(acc), mask=in_rows)


@triton.jit
def _mixed_gradient(
    grad, logits, mixing, row_stats, i, in_rows, c, rows, classes, IS_OWN: tl.constexpr, IS_MEAN: tl.constexpr
):
    """What mixed rows i give to the rows themselves, or to their partners: (R, C)."""
    acc: tl.constexpr = row_stats.dtype.element_ty
    partner, w, label, valid = _mixed_row(mixing, i, in_rows, rows, classes, acc)
    weight = w if IS_OWN else 1 - w
    takes_part = valid & (weight != 0)
    mask = takes_part[:, None] & (c < classes)[None, :]
    g = weight * incoming(grad, i, in_rows, rows, IS_MEAN, acc)
    m = tl.load(row_stats + i, mask=in_rows, other=0.0)
    r = tl.load(row_stats + rows + i, mask=in_rows, other=1.0)
    x = _mixed_logits(logits, i[:, None], partner[:, None], w[:, None], c[None, :], mask, acc)
    d = tl.exp2(shifted(x, m[:, None], acc)) * (g / r)[:, None]
    d -= tl.where(label[:, None] == c[None, :], g[:, None], 0.0)
    return tl.where(mask, d, 0.0)


@triton.jit(do_not_specialize=["rows"])
def _backward_kernel(
    grad,
    logits,
    mixing,
    row_stats,
    lists,
    dlogits,
    rows,
    classes,
    IS_MEAN: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    class_blocks = tl.cdiv(classes, C)
    j = tl.program_id(0) // class_blocks * R + tl.arange(0, R)
    c = tl.program_id(0) % class_blocks * C + tl.arange(0, C)
    in_rows = j < rows
    total = _mixed_gradient(grad, logits, mixing, row_stats, j, in_rows, c, rows, classes, True, IS_MEAN)
    start = tl.load(lists.starts + j, mask=in_rows, other=0)
    count = tl.load(lists.starts + j + 1, mask=in_rows, other=0) - start
    for k in range(tl.max(count, axis=0)):  # 1 for a permutation
        key = tl.load(lists.keys + start + k, mask=k < count, other=0)
        i = (key & 0xFFFFFFFF).to(tl.int32)
        total += _mixed_gradient(grad, logits, mixing, row_stats, i, k < count, c, rows, classes, False, IS_MEAN)
    is_bad = tl.load(row_stats + rows + j, mask=in_rows, other=1.0) < 0
    total = tl.where(is_bad[:, None], float("nan"), total)
    at = (j.to(tl.int64) * classes)[:, None] + c[None, :]
    tl.store(dlogits + at, total.to(dlogits.dtype.element_ty), mask=in_rows[:, None] & (c < classes)[None, :])


def _checked(
    op: str, logits: Tensor, index: Tensor, rate: Tensor, labels: Tensor, reduction: int
) -> tuple[Logits, Mixing]:
    S = logits_of(op, logits)
    rows = logits.shape[0]
    check(rate.dim() == 0, op, "rate of shape ()")
    check_reduction(op, reduction)
    weights = vector_of(op, "rate", rate, rows)
    return S, Mixing(index_of(op, "index", index, rows), weights, index_of(op, "labels", labels, rows))


def forward(logits: Tensor, index: Tensor, rate: Tensor, labels: Tensor, reduction: int) -> tuple[Tensor, Tensor]:
    """am_mixup_loss_fwd.triton."""
    op = "am_mixup_loss_fwd"
    S, mixing = _checked(op, logits, index, rate, labels, reduction)
    check_one_device(op, logits, index, rate, labels)
    rows, classes = logits.shape
    outputs = new_outputs(logits, reduction)
    tile = row_tile(classes, outputs.loss.dtype)
    with on_device_of(logits):
        launch(
            *(_forward_kernel, blocks(rows, tile.rows), S, mixing, outputs.row_stats, outputs.terms, rows, classes),
            R=tile.rows,
            C=tile.classes,
            num_warps=tile.warps,
        )
        reduce(outputs, rows, reduction)
    return outputs.loss, outputs.row_stats


def backward(
    grad: Tensor, logits: Tensor, index: Tensor, rate: Tensor, labels: Tensor, row_stats: Tensor, reduction: int
) -> Tensor:
    """am_mixup_loss_bwd.triton."""
    op = "am_mixup_loss_bwd"
    S, mixing = _checked(op, logits, index, rate, labels, reduction)
    check_one_device(op, grad, logits, index, rate, labels, row_stats)
    check(stats_fit(row_stats, logits), op, "the statistics that the forward operator returned for these logits")
    rows, classes = logits.shape
    g = vector_of(op, "grad", grad, rows)
    dlogits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    tile = row_tile(classes, row_stats.dtype)
    with on_device_of(logits):
        launch(
            *(_backward_kernel, blocks(rows, tile.rows) * blocks(classes, tile.classes)),
            *(g, S, mixing, row_stats, lists_of(mixing.partner, rows), dlogits, rows, classes),
            IS_MEAN=reduction == REDUCTIONS["mean"],
            R=tile.rows,
            C=tile.classes,
            num_warps=tile.warps,
        )
    return dlogits


OPERATORS = {"am_mixup_loss_fwd": forward, "am_mixup_loss_bwd": backward}
