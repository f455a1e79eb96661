"""The loss in float64 where B x B does not fit: row after row of the scores, on whatever device the logits are.

With m_j and s_j the maximum and the sum of the exponentials of column j, found in a first pass over all rows, each
block of rows is a softmax of its own on the class axis and exp(Z - m_j) / s_j on the pair axis. The same pass counts
what an implementation in another type may be off by, as icm_fast.testing.scales derives it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from icm_fast.reference import mixed_logits
from icm_fast.reference._common import MixedTargetLike
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
    """Sums of every row and column, rescaled whenever a column's maximum grows."""
    B, C = logits.shape
    largest = logits.new_full((B,), -torch.inf, dtype=torch.float64)
    total, own, lse_row = (torch.zeros_like(largest) for _ in range(3))
    least = torch.inf
    for rows in blocks(B, max(B, C)):
        Z = mixed_logits(logits[rows].double(), target)
        lse_row[rows] = Z.logsumexp(1)
        own[rows] = Z.diagonal(rows.start)
        least = min(least, float(Z.amin()))
        grown = torch.maximum(largest, Z.amax(0))
        total = total * (largest - grown).exp() + (Z - grown).exp().sum(0)
        largest = grown
    return Columns(largest, total, own, lse_row, float(logits.max()) - least)


def gradient(logits: Tensor, target: MixedTargetLike, columns: Columns, rows: slice) -> Rows:
    """dS of some rows for the mean over both axes: (P + Q - 2 I) / B, carried back through the scores."""
    B = len(columns.own)
    leaf = logits[rows].detach().double().requires_grad_()
    Z = mixed_logits(leaf, target)
    with torch.no_grad():
        P = (Z - columns.lse_row[rows, None]).exp()
        dZ = P + (Z - columns.largest).exp() / columns.sum
        # (1 - P) X + sum P X is at most twice the spread; the gradient of a class sums up to B entries.
        each = 2 * EXPONENTS * columns.spread + rounds(B) + 1 + SUMS * B**0.5
        off = dZ * each + 2 * rounds(B) / B
        dZ.diagonal(rows.start).sub_(2)
        off.diagonal(rows.start).add_(2 * (1 + SUMS * B**0.5))
    (dlogits,) = torch.autograd.grad(Z, leaf, dZ / B, retain_graph=True)
    (scale,) = torch.autograd.grad(Z, leaf, off / B)
    return Rows(rows, dlogits, scale)


def loss_scale(columns: Columns) -> float:
    """How far the mean loss may be off, in units of eps: each term on each axis, and the sum of all."""
    B = len(columns.own)
    each = 2 * ((2 * EXPONENTS + 1) * columns.spread + rounds(B))
    return each + (1 + SUMS * B**0.5) * float(columns.loss())
