"""Sums of columns whose rows come in parts, blocks or processes: icm_loss's statistics of the parts merged.

`column_sums` (3, columns) in float64 are offset, shift and the sum of exponentials relative to both.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._processes import Processes


def _exact_difference(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a - b and its rounding error (Knuth's TwoSum)."""
    rounded = a - b
    of_b = rounded - a
    return rounded, (a - (rounded - of_b)) - (b + of_b)


def _distance(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """From offset and shift b to a: each may be large and their sum small, whose digits must not be lost."""
    (offset, first), (shift, second) = (_exact_difference(*pair) for pair in zip(a, b, strict=True))
    return (offset + shift) + (first + second)


def _magnitude(logit_scale: Tensor | None) -> Tensor | float:
    return 1.0 if logit_scale is None else logit_scale.double().abs()


def _lacked(above: Tensor, whole: Tensor, part: Tensor) -> Tensor:
    """log of a whole sum over a part of it, in nats, the part's place lying `above` the whole's."""
    # A part of nothing but -inf lacks all, unless the others have no more.
    return torch.where((part == 0) & (whole > 0), math.inf, whole.log() - part.log() - above)


def merge(
    of_columns: list[Tensor], logit_scale: Tensor | None, processes: Processes | None = None
) -> tuple[Tensor, list[Tensor]]:
    """`column_sums` of all blocks of all processes, and what each block's sums lacked of them, in nats."""
    scale = _magnitude(logit_scale)
    offsets, shifts, sums = torch.stack(of_columns, 1).double()  # (blocks, columns) each
    has_terms = sums != 0  # NaN included
    rough = torch.where(has_terms, (offsets - offsets[0]) + shifts, -torch.inf)
    highest = rough.argmax(0, keepdim=True)
    place = offsets.gather(0, highest), shifts.gather(0, highest)
    above = _distance((offsets, shifts), place) * scale
    whole = torch.where(has_terms, sums * above.exp(), 0.0).sum(0)
    lacked = _lacked(above, whole, sums)
    if processes is None:
        return torch.cat((*place, whole[None])), list(lacked)
    here = (place[0] + place[1])[0]
    there, of_all = processes.whole_columns(here, whole, scale)
    more = _lacked((here - there) * scale, of_all, whole)
    lacked = torch.where(more == math.inf, more, lacked + more)
    return torch.stack((there, torch.zeros_like(there), of_all)), list(lacked)


def columns_of_block(row_stats: Tensor, column_sums: Tensor, logit_scale: Tensor | None) -> Tensor:
    """(3, columns) for the backward pass of a block: the whole sums in its own terms."""
    *place, whole = column_sums
    offset, is_repaired = row_stats[4, 0].double().expand_as(whole), row_stats[3, 0].isnan()
    # A repaired block subtracts a shift too, which counts as it is stored.
    zero = torch.zeros_like(whole)
    shift = _distance((place[0], place[1]), (offset, zero)).to(row_stats.dtype).double()
    shift = torch.where(is_repaired, shift, zero)
    above = _distance((place[0], place[1]), (offset, shift)) * _magnitude(logit_scale)
    return torch.stack((offset, shift, whole * above.exp())).to(row_stats.dtype)


def whole_terms(terms: Tensor, lacked: Tensor) -> Tensor:
    """The columns' terms of all rows, from those of a block; NaN, of a block of -inf alone, may become infinite."""
    return torch.where(lacked == math.inf, math.inf, terms.double() + lacked).to(terms.dtype)
