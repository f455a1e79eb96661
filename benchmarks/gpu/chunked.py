"""The losses in float64 where B x B does not fit: row after row of the scores, on whatever device the inputs are.

With m_j and s_j the maximum and the sum of the exponentials of column j, found in a first pass over all rows, each
block of rows is a softmax of its own on the class axis and exp(Z - m_j) / s_j on the pair axis. The same pass counts
what an implementation in another type may be off by, as icm_fast.testing.scales derives it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from icm_fast.reference import mixed_logits
from icm_fast.reference._common import MixedTargetLike, accumulation_dtype
from icm_fast.testing.scales import EXPONENTS, SUMS, rounds

CHUNK_BYTES = 2**30  # of float64 scores at a time; a handful of such arrays are alive at once


@dataclass(frozen=True)
class Columns:
    """What a first pass finds: `largest` and `sum` describe the exponentials of each column, `own` is the diagonal."""

    largest: Tensor  # (B,)
    sum: Tensor  # (B,)
    own: Tensor  # (B,)
    lse_row: Tensor  # (B,)
    spread: float  # from the least score to the largest logit, which bounds every distance that kernels form

    def loss(self) -> Tensor:
        """Mean over both axes (equation 9)."""
        lse_column = self.largest + self.sum.log()
        return (self.lse_row - self.own + lse_column - self.own).mean()


@dataclass(frozen=True)
class Rows:
    """The gradient of some rows, and how far an element may be off, in units of eps."""

    rows: slice
    dlogits: Tensor
    scale: Tensor


def blocks(batch_size: int, width: int) -> Iterator[slice]:
    """Rows of `width` float64 numbers, as many at a time as CHUNK_BYTES hold."""
    step = max(1, CHUNK_BYTES // (8 * max(width, 1)))
    for first in range(0, batch_size, step):
        yield slice(first, min(first + step, batch_size))


@torch.no_grad()
def first_pass(logits: Tensor, target: MixedTargetLike) -> Columns:
    """Sums of every row and column of the scores of logits."""
    B, C = logits.shape
    scores = lambda rows: mixed_logits(logits[rows].double(), target)  # noqa: E731
    return _first_pass(scores, blocks(B, max(B, C)), logits.new_empty(B, dtype=torch.float64), float(logits.max()))


def _first_pass(
    scores: Callable[[slice], Tensor], ranges: Iterator[slice], like: Tensor, highest: float = -torch.inf
) -> Columns:
    """Sums are rescaled whenever a column's maximum grows. `highest`: of what scores are made of."""
    largest = torch.full_like(like, -torch.inf)
    total, own, lse_row = (torch.zeros_like(like) for _ in range(3))
    least = torch.inf
    for rows in ranges:
        Z = scores(rows)
        lse_row[rows] = Z.logsumexp(1)
        own[rows] = Z.diagonal(rows.start)
        least = min(least, float(Z.amin()))
        grown = torch.maximum(largest, Z.amax(0))
        total = total * (largest - grown).exp() + (Z - grown).exp().sum(0)
        largest = grown
    return Columns(largest, total, own, lse_row, max(highest, float(largest.max())) - least)


def gradient(logits: Tensor, target: MixedTargetLike, columns: Columns, rows: slice) -> Rows:
    """dS of some rows for the mean over both axes: (P + Q - 2 I) / B, carried back through the scores."""
    B = len(columns.own)
    leaf = logits[rows].detach().double().requires_grad_()
    Z = mixed_logits(leaf, target)
    dZ, off = _of_scores(Z.detach(), columns, rows, 0.0)
    (dlogits,) = torch.autograd.grad(Z, leaf, dZ / B, retain_graph=True)
    (scale,) = torch.autograd.grad(Z, leaf, off / B)
    return Rows(rows, dlogits, scale)


def _of_scores(Z: Tensor, columns: Columns, rows: slice, score_error: float) -> tuple[Tensor, Tensor]:
    """B times dZ of some rows, and how far it may be off where each score is off by `score_error` already."""
    B = len(columns.own)
    P = (Z - columns.lse_row[rows, None]).exp()
    dZ = P + (Z - columns.largest).exp() / columns.sum
    # (1 - P) X + sum P X is at most twice the spread; the gradient of a class sums up to B entries.
    each = 2 * EXPONENTS * columns.spread + rounds(B) + 1 + SUMS * B**0.5 + 2 * score_error
    off = dZ * each + 2 * rounds(B) / B
    dZ.diagonal(rows.start).sub_(2)
    off.diagonal(rows.start).add_(2 * (1 + SUMS * B**0.5))
    return dZ, off


@dataclass(frozen=True)
class Views:
    """The loss of scale * x @ y.T and its gradients; and how far they may be off, in units of eps."""

    loss: Tensor
    dx: Tensor
    dy: Tensor
    dscale: Tensor
    loss_scale: float
    dx_scale: Tensor
    dy_scale: Tensor


@torch.no_grad()
def views(x: Tensor, y: Tensor, scale: float, dtype: torch.dtype, y_size: Tensor | None = None) -> Views:
    """As `first_pass` and `gradient`, for products of numbers in `dtype`; y is a sum of numbers of y_size in all."""
    B, depth = x.shape
    x, y = x.double(), y.double()
    y_size = y.abs() if y_size is None else y_size
    unit = torch.finfo(dtype).eps / torch.finfo(accumulation_dtype(dtype)).eps
    # As icm_fast.testing.linear has it, with a bound for what the products of magnitudes are.
    size = abs(scale) * float(x.norm(dim=1).max() * y_size.norm(dim=1).max())
    score_error = (2 * unit + SUMS * depth**0.5) * size
    scores = lambda rows: scale * (x[rows] @ y.T)  # noqa: E731
    columns = _first_pass(scores, blocks(B, B), x.new_empty(B))
    dx, dy, dx_off, dy_off = (torch.zeros_like(x) for _ in range(4))
    dscale = x.new_zeros(())
    for rows in blocks(B, B):
        Z = scores(rows)
        dZ, off = _of_scores(Z, columns, rows, score_error)
        dscale += (dZ * Z).sum()
        off += (3 * unit + SUMS * B**0.5) * dZ.abs()
        dx[rows], dx_off[rows] = dZ @ y, off @ y_size
        dy.addmm_(dZ.T, x[rows])
        dy_off.addmm_(off.T, x[rows].abs())
    loss_off = loss_scale(columns) + 4 * score_error  # of the own score and of the sum, on each axis
    factors = scale / B, scale / B, abs(scale) / B, abs(scale) / B
    found = Views(columns.loss(), dx, dy, dscale / (scale * B), loss_off, dx_off, dy_off)
    for each, factor in zip((dx, dy, dx_off, dy_off), factors, strict=True):
        each.mul_(factor)
    return found


def loss_scale(columns: Columns) -> float:
    """How far the mean loss may be off, in units of eps: each term on each axis, and the sum of all."""
    B = len(columns.own)
    each = 2 * ((2 * EXPONENTS + 1) * columns.spread + rounds(B))
    return each + (1 + SUMS * B**0.5) * float(columns.loss())
