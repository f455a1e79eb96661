"""Blocks of scores, and what `score_sums` and `score_gradient` make of them by plain formulae in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from icm_fast.operators._library import accumulation_type
from icm_fast.testing import budget
from icm_fast.testing.scales import EXPONENTS, rounds

INF, NAN = float("inf"), float("nan")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(1, 1, 0), (61, 67, 3), (67, 67, 0), (150, 200, 50)]  # rows, columns, diagonal
SCALES = [None, 2.0, -1.5, 0.0]
AXES = [(True, True), (True, False), (False, True), (False, False)]
MASKED_COLUMN = 2


class Grads(NamedTuple):
    row: Tensor
    column: Tensor


class Results(NamedTuple):
    row_stats: Tensor
    column_stats: Tensor
    dscores: Tensor
    dscale: Tensor


def masked_column(scores: Tensor, diagonal: int) -> Tensor:
    scores[:, MASKED_COLUMN % scores.shape[1]] = -INF
    return scores


def masked_row(scores: Tensor, diagonal: int) -> Tensor:
    scores[-1] = -INF
    return scores


def masked_entries(scores: Tensor, diagonal: int) -> Tensor:
    others = torch.rand(scores.shape) < 0.3
    others.diagonal(diagonal).fill_(False)
    return scores.masked_fill_(others, -INF)


def masked_own(scores: Tensor, diagonal: int) -> Tensor:
    scores.diagonal(diagonal)[::3] = -INF
    return scores


def one_value(value: float) -> Callable[[Tensor, int], Tensor]:
    def put(scores: Tensor, diagonal: int) -> Tensor:
        scores[scores.shape[0] // 2, scores.shape[1] // 3] = value
        return scores

    return put


def confident(scores: Tensor, diagonal: int) -> Tensor:
    scores.diagonal(diagonal).add_(30)
    return scores


REGIMES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "normal": lambda scores, _: scores,
    "offset": lambda scores, _: scores + 1e4,
    "range_200": lambda scores, _: torch.rand(scores.shape, dtype=scores.dtype) * 200 - 100,
    "range_1e4": lambda scores, _: torch.rand(scores.shape, dtype=scores.dtype) * 2e4 - 1e4,
    "constant": lambda scores, _: torch.full_like(scores, 3.0),
    "confident": confident,
    "masked_column": masked_column,
    "masked_row": masked_row,
    "masked_entries": masked_entries,
    "masked_own": masked_own,
    "nan": one_value(NAN),
    "inf": one_value(INF),
}


def scores_of(regime: str, shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    rows, columns, diagonal = shape
    return REGIMES[regime](torch.randn(rows, columns, dtype=torch.float64), diagonal).to(dtype)


def grads_of(rows: int, columns: int, dtype: torch.dtype) -> Grads:
    return Grads(torch.randn(rows).to(accumulation_type(dtype)), torch.randn(columns).to(accumulation_type(dtype)))


def number(scale: float | None, dtype: torch.dtype) -> Tensor | None:
    return None if scale is None else torch.tensor(scale, dtype=accumulation_type(dtype))


def ours(
    backend: str,
    scores: Tensor,
    scale: Tensor | None,
    grads: Grads,
    diagonal: int,
    axes: tuple[bool, bool],
    *,
    gradient_of_scale: bool = True,
) -> Results:
    """The scores lie inside a larger block, around which nothing may change."""
    operator = torch.ops.icm_fast
    around = torch.full((scores.shape[0] + 2, scores.shape[1]), 7.0, dtype=scores.dtype)
    inside = around[1:-1]
    inside.copy_(scores)
    stats = getattr(operator.score_sums, backend)(inside, scale, diagonal)
    budget.check_same_bits(inside, scores, "scores, which the sums only read")
    gradient = getattr(operator.score_gradient, backend)
    dscale = gradient(inside, scale, *grads, *stats, diagonal, *axes, gradient_of_scale)
    assert (around[0] == 7).all() and (around[-1] == 7).all()
    return Results(*stats, inside, dscale)


def plain(
    scores: Tensor, scale: Tensor | None, grads: Grads, diagonal: int, axes: tuple[bool, bool], dtype: torch.dtype
) -> Results:
    z = scores.to(dtype)
    factor = 1.0 if scale is None else scale.to(dtype)
    t, g_row, g_column = z * factor, grads.row.to(dtype).expand(z.shape[0]), grads.column.to(dtype).expand(z.shape[1])
    known = torch.where(t.isnan(), -INF, t)
    of_rows, of_columns = known.amax(1), known.amax(0)
    row_sums = (t - of_rows[:, None]).exp().sum(1)
    column_sums = (t - torch.where(of_columns == -INF, 0.0, of_columns)).exp().sum(0)
    d, target = torch.zeros_like(t), torch.zeros_like(g_row)
    if axes[0]:
        d += g_row[:, None] * ((t - of_rows[:, None]).exp() / row_sums[:, None])
        target += g_row
    if axes[1]:
        column = g_column * ((t - of_columns).exp() / column_sums)
        # Without an incoming gradient a column of nothing but -inf is 0; a score that is itself NaN or inf shows.
        d += torch.where(g_column != 0, column, torch.where(t < INF, 0.0, NAN))
        target += g_column[diagonal : diagonal + z.shape[0]]
    d.diagonal(diagonal).sub_(target)
    dscale = torch.where((d != 0) & (z != -INF), d * z, 0.0).sum()
    row_stats = torch.stack((of_rows, row_sums, t.diagonal(diagonal)))
    return Results(row_stats, torch.stack((of_columns, column_sums)), d * factor, dscale)


def softmax_errors(t: Tensor, rounded: bool) -> tuple[Tensor, Tensor]:
    """Of every row: the sum's error relative to it, and that of each probability, in units of eps; see scales.py.

    A logit_scale rounds each t, by half an eps of its magnitude.
    """
    n = t.shape[1]
    finite = torch.where(t.isfinite(), t, 0.0)
    size = finite.abs().amax(1, keepdim=True) * rounded
    most = torch.where(t.isfinite(), t, -INF).amax(1, keepdim=True)
    X = torch.where(t.isfinite(), most - t, 0.0)
    P = t.softmax(1).nan_to_num(0.0)
    mean = (P * X).sum(1, keepdim=True)
    relative = EXPONENTS * ((1 - P) * X + mean - P * X) + size * (1 - P) + rounds(n)
    return (EXPONENTS * mean + size + rounds(n))[:, 0], P * relative


def check(
    results: Results,
    scores: Tensor,
    scale: Tensor | None,
    grads: Grads,
    diagonal: int,
    axes: tuple[bool, bool],
    what: str,
) -> None:
    acc = accumulation_type(scores.dtype)
    inputs = (scores, scale, grads, diagonal, axes)
    truth, eager = plain(*inputs, torch.float64), plain(*inputs, acc)
    factor = 1.0 if scale is None else scale.double()
    z = scores.double()
    by_row, p_error = softmax_errors(z * factor, scale is not None)
    by_column, q_error = softmax_errors((z * factor).T, scale is not None)

    # A maximum and an own score are one rounding away; the budget grants that one by itself.
    row_scale = torch.stack((torch.zeros_like(by_row), by_row * truth.row_stats[1], torch.zeros_like(by_row)))
    column_scale = torch.stack((torch.zeros_like(by_column), by_column * truth.column_stats[1]))
    d_error = torch.zeros_like(z)
    added = torch.zeros_like(z)  # what the operators add up, before the target is subtracted
    g_row = grads.row.double().expand(z.shape[0]).abs()[:, None]
    g_column = grads.column.double().expand(z.shape[1]).abs()[None, :]
    own = torch.zeros_like(z)
    own.diagonal(diagonal).fill_(1)
    if axes[0]:
        d_error += g_row * (p_error + own)
        added += g_row * ((z * factor).softmax(1) + own)
    if axes[1]:
        d_error += g_column * (q_error.T + own)
        added += g_column * ((z * factor).softmax(0) + own)
    size = torch.where(z.isfinite(), z.abs(), 0.0)
    dscale_scale = (size * (d_error + rounds(z.shape[1]) * added.nan_to_num(0.0))).sum()
    dscores_scale = abs(factor) * d_error + truth.dscores.abs().nan_to_num(0.0, posinf=0.0)

    sums = {"out_dtype": acc, "acc_dtype": acc}
    for name, allowed, kinds in (
        ("row_stats", row_scale, sums),
        ("column_stats", column_scale, sums),
        ("dscores", dscores_scale, {"out_dtype": scores.dtype, "acc_dtype": acc}),
    ):
        of = (getattr(each, name) for each in (results, eager, truth))
        budget.check(*of, scale=allowed.nan_to_num(0.0), what=f"{what}: {name}", **kinds)
    all_of_scale = (results.dscale, eager.dscale, truth.dscale)
    budget.check(*all_of_scale, scale=dscale_scale, what=f"{what}: dscale", eager_error=0.0, **sums)
