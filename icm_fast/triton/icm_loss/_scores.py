# mypy: allow-untyped-defs, allow-incomplete-defs
"""A tile of scores x_ij (eq. 3). Every pass forms them here: the repair subtracts maxima of x from x."""

from __future__ import annotations

import triton
import triton.language as tl

from .._math import largest


@triton.jit
def distance(x, offset, sigma, IS_REPAIR: tl.constexpr, acc: tl.constexpr):
    """(x - offset) * sigma: subtracted first, so that it is never positive beside a maximum (icm_math.h).

    For a repair it stays in units of the logits, and of a finite logit it is finite, so that equal masks such as the
    type's lowest number stay equal scores.
    """
    t = x - offset
    if IS_REPAIR:
        most = largest(acc) / 4
        is_finite = (x > float("-inf")) & (x < float("inf"))
        t = tl.where(is_finite, tl.where(t > most, most, tl.where(t < -most, -most, t)), t)
    else:
        t = t * sigma
    return t


@triton.jit
def tile_scores(
    logits,
    i,
    in_rows,
    mixed,
    offset,
    sign,
    sigma,
    IS_REPAIR: tl.constexpr,
    acc: tl.constexpr,
):
    """x of rows i (R,) and the columns whose `mixed_class` is given (J,), and where it means anything: (R, J) both.

    `offset` (R, 1) or a scalar.
    """
    a, b, w_a, w_b, valid = mixed
    rows = logits.data + (i.to(tl.int64) * logits.row_stride)[:, None]
    mask = in_rows[:, None] & valid[None, :]
    # The partner of a pure class takes no part, NaN and -inf included.
    is_mixed = mask & (w_b != 0)[None, :]
    s_a = tl.load(rows + (a * logits.class_stride)[None, :], mask=mask, other=0.0).to(acc) * sign
    s_b = tl.load(rows + (b * logits.class_stride)[None, :], mask=is_mixed, other=0.0).to(acc) * sign
    t_a = distance(s_a, offset, sigma, IS_REPAIR, acc)
    t_b = tl.where(is_mixed, distance(s_b, offset, sigma, IS_REPAIR, acc), 0.0)
    return tl.fma(w_a[None, :], t_a, w_b[None, :] * t_b), mask
