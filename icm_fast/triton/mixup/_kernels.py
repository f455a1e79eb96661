# mypy: allow-untyped-defs, allow-incomplete-defs
"""The kernels of mixing. A program owns a chunk of one sample; samples run fastest, so that a partner's chunk is likely
still in the cache.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._math import as_number


@triton.jit
def _weights(partners, i, batch, acc: tl.constexpr):
    """(partner, weight of the sample itself, weight of the partner, whether it may have a box) of sample i.

    Both weights are NaN for a bad lam or index. A sample that is its own partner is copied: lam * x + (1 - lam) * x
    is not always x.
    """
    at = i.to(tl.int64)
    partner = tl.load(partners.partner.data + at * partners.partner.stride)
    lam = tl.load(partners.lam.data + at * partners.lam.stride).to(acc)
    is_good = (lam >= 0) & (lam <= 1) & (partner >= 0) & (partner < batch)
    w_own = tl.where(is_good, tl.where(partner == i, 1.0, lam), float("nan"))
    return partner, w_own.to(acc), (1 - w_own).to(acc), is_good & (partner != i)


@triton.jit
def _in_box(box, layout, i, e, may_box):
    """Whether elements e of sample i lie in its box; in a box without pixels none does."""
    at = box.data + i.to(tl.int64) * box.stride
    width = layout.row // layout.pixel
    y1 = _clamped(tl.load(at), layout.rows)
    y2 = tl.where(may_box, _clamped(tl.load(at + box.element_stride), layout.rows), 0)
    x1 = _clamped(tl.load(at + 2 * box.element_stride), width)
    x2 = _clamped(tl.load(at + 3 * box.element_stride), width)
    line = e // layout.row
    x, y = (e - line * layout.row) // layout.pixel, line % layout.rows
    return (y >= y1) & (y < y2) & (x >= x1) & (x < x2)


@triton.jit
def _clamped(edge, most):
    return tl.where(edge < 0, 0, tl.where(edge > most, most, edge)).to(tl.int32)


@triton.jit
def _element_weights(partners, layout, i, e, w_own, w_partner, may_box):
    """Weights of elements e: those of the sample, but in its box the partner alone."""
    is_boxed = tl.zeros_like(e) != 0
    if partners.box is not None:
        is_boxed = _in_box(partners.box, layout, i, e, may_box)
    return tl.where(is_boxed, 0.0, w_own), tl.where(is_boxed, 1.0, w_partner)


@triton.jit
def pixel_table_kernel(mean, std, table, channels, BLOCK: tl.constexpr):
    """(mix / 255 - mean) / std as one multiply-add: scale and shift of each channel, rounded once from float64."""
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = c < channels
    deviation = tl.load(std.data + c * std.stride, mask=mask, other=1.0).to(tl.float64)
    shift = -tl.load(mean.data + c * mean.stride, mask=mask, other=0.0).to(tl.float64) / deviation
    acc: tl.constexpr = table.dtype.element_ty
    tl.store(table + c, (1.0 / (255.0 * deviation)).to(acc), mask=mask)
    tl.store(table + channels + c, shift.to(acc), mask=mask)


@triton.jit
def _normalised(value, table, layout, e, mask):
    """uint8 pixels become numbers; others are as they are."""
    if table is not None:
        c = e // layout.channel_stride % layout.channels
        scale = tl.load(table + c, mask=mask, other=0.0)
        value = tl.fma(value, scale, tl.load(table + layout.channels + c, mask=mask, other=0.0))
    return value


@triton.jit(do_not_specialize=["batch"])
def forward_kernel(
    samples,
    out,
    partners,
    layout,
    table,
    batch,
    KEEP_CLEAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    dtype: tl.constexpr = out.data.dtype.element_ty
    acc: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    i = tl.program_id(0) % batch
    e = tl.program_id(0) // batch * BLOCK + tl.arange(0, BLOCK)
    mask = e < layout.size
    partner, w_own, w_partner, may_box = _weights(partners, i, batch, acc)
    is_bad = w_own != w_own
    w_own, w_partner = _element_weights(partners, layout, i, e, w_own, w_partner, may_box)

    mine = samples.data + i.to(tl.int64) * samples.stride + e
    other = samples.data + tl.where(is_bad, 0, partner) * samples.stride + e
    # A source of weight 0 takes no part; alone, the other is copied.
    own = tl.load(mine, mask=mask if KEEP_CLEAN else mask & (w_own != 0), other=0).to(acc)
    theirs = tl.load(other, mask=mask & (w_partner > 0), other=0).to(acc)
    mixed = tl.fma(w_own, own, w_partner * theirs)
    mixed = tl.where(w_partner == 0, own, tl.where(w_own == 0, theirs, mixed))
    mixed = tl.where(is_bad, float("nan"), _normalised(mixed, table, layout, e, mask))
    target = out.data + i.to(tl.int64) * out.stride + e
    if KEEP_CLEAN:
        tl.store(target, _normalised(own, table, layout, e, mask).to(dtype), mask=mask)
        target += as_number(batch, tl.int64) * out.stride
    tl.store(target, mixed.to(dtype), mask=mask)


@triton.jit
def _add(total, grad, w, e, mask):
    """total + w * grad; where w is 0 the gradient takes no part."""
    g = tl.load(grad + e, mask=mask & (w != 0), other=0.0).to(total.dtype)
    return tl.where(w != 0, tl.fma(w, g, total), total)


@triton.jit(do_not_specialize=["batch"])
def backward_kernel(
    grad,
    dx,
    partners,
    layout,
    lists,
    batch,
    KEEP_CLEAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    dtype: tl.constexpr = dx.data.dtype.element_ty
    acc: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    i = tl.program_id(0) % batch
    e = tl.program_id(0) // batch * BLOCK + tl.arange(0, BLOCK)
    mask = e < layout.size
    total = tl.zeros((BLOCK,), acc)
    mixed = grad.data
    if KEEP_CLEAN:
        total = _add(total, mixed + i.to(tl.int64) * grad.stride, tl.full((BLOCK,), 1.0, acc), e, mask)
        mixed += as_number(batch, tl.int64) * grad.stride
    _, w_own, w_partner, may_box = _weights(partners, i, batch, acc)
    w = _element_weights(partners, layout, i, e, w_own, w_partner, may_box)[0]
    total = _add(total, mixed + i.to(tl.int64) * grad.stride, w, e, mask)
    for at in range(tl.load(lists.starts + i), tl.load(lists.starts + i + 1)):
        k = (tl.load(lists.keys + at) & 0xFFFFFFFF).to(tl.int32)
        _, k_own, k_partner, k_may_box = _weights(partners, k, batch, acc)
        w_k = _element_weights(partners, layout, k, e, k_own, k_partner, k_may_box)[1]
        total = _add(total, mixed + k.to(tl.int64) * grad.stride, w_k, e, mask)
    tl.store(dx.data + i.to(tl.int64) * dx.stride + e, total.to(dtype), mask=mask)
