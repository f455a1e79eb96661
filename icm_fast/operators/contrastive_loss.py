"""`score_sums` and `score_gradient`: the loss of a block of given scores; `contrastive_loss_fwd`, `_bwd`: made of them.

The scores are a matrix product, Z = x @ y.T + bias, formed by torch a block of rows at a time and never whole. With
t = logit_scale * Z, `row_stats` (3, rows) holds each row's largest t, the sum of exponentials relative to it and the t
of its own column; `column_stats` (2, columns) largest and sum of each column. Image i owns column `diagonal + i`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._composite import Composite, Options, gradient_of_terms, loss_of_terms, options_of, register
from ._library import BACKENDS, REDUCTIONS, accumulation_type, check_one_device, declare, overload
from ._processes import Processes
from ._products import Gradients, are_kept, products, without_autocast
from .icm_loss import AXES


def _fake_sums(scores: Tensor, logit_scale: Tensor | None, diagonal: int) -> tuple[Tensor, Tensor]:
    rows, columns = scores.shape
    dtype = accumulation_type(scores.dtype)
    return scores.new_empty([3, rows], dtype=dtype), scores.new_empty([2, columns], dtype=dtype)


def _fake_gradient(
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
    check_one_device(scores, grad_row, grad_column, row_stats, column_stats)
    return scores.new_empty([], dtype=accumulation_type(scores.dtype))


declare(
    "contrastive_loss",
    BACKENDS,
    {
        "score_sums": (
            "(Tensor scores, Tensor? logit_scale, int diagonal) -> (Tensor row_stats, Tensor column_stats)",
            _fake_sums,
        ),
        # Replaces the scores by their gradient.
        "score_gradient": (
            (
                "(Tensor(a!) scores, Tensor? logit_scale, Tensor grad_row, Tensor grad_column, Tensor row_stats, "
                "Tensor column_stats, int diagonal, bool class_axis, bool pair_axis, bool gradient_of_scale) "
                "-> Tensor dlogit_scale"
            ),
            _fake_gradient,
        ),
    },
)
_SUMS = {backend: overload("score_sums", backend) for backend in BACKENDS}
_GRADIENT = {backend: overload("score_gradient", backend) for backend in BACKENDS}


def merge_sums(a: Tensor, b: Tensor) -> Tensor:
    """Largest number and sum of exponentials relative to it, (2, columns), of two sets of rows together."""
    largest = torch.maximum(a[0], b[0])
    offset = torch.where(largest == -torch.inf, 0.0, largest)  # of nothing but -inf: 0 exponentials, not NaN
    return torch.stack((largest, a[1] * (a[0] - offset).exp() + b[1] * (b[0] - offset).exp()))


@without_autocast
def forward(
    backend: str,
    x: Tensor,
    y: Tensor,
    bias: Tensor | None,
    logit_scale: Tensor | None,
    *options: Any,
    processes: Processes | None = None,
) -> tuple[Tensor, ...]:
    """Loss, terms, row_stats, column_stats and the scores, where these are few."""
    how = options_of(options)
    rows, columns = x.shape[0], y.shape[0]
    dtype = accumulation_type(x.dtype)
    row_stats = x.new_empty([3, rows], dtype=dtype)
    column_stats = x.new_zeros([2, columns], dtype=dtype)
    for begin, end, scores in products(x, y, bias):
        row_stats[:, begin:end], sums = _SUMS[backend](scores, logit_scale, how.diagonal + begin)
        column_stats = sums if begin == 0 else merge_sums(column_stats, sums)
    if processes is not None:
        place, part = column_stats.double()
        column_stats = torch.stack(processes.whole_columns(place, part, 1.0)).to(dtype)
    largest, sums, own = row_stats
    owned = column_stats[:, how.diagonal : how.diagonal + rows]
    loss, terms = loss_of_terms((largest - own) + sums.log(), (owned[0] - own) + owned[1].log(), how, processes)
    kept = scores if are_kept(rows, columns) and rows > 0 else x.new_empty([0, columns])
    return loss, terms, row_stats, column_stats, kept


@without_autocast
def backward(
    backend: str,
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    bias: Tensor | None,
    logit_scale: Tensor | None,
    row_stats: Tensor,
    column_stats: Tensor,
    kept: Tensor,
    *options: Any,
    processes: Processes | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, y, bias and logit_scale; those that are not wanted are empty."""
    how, wanted = Options(*options[:4]), options[4:]
    rows, columns = x.shape[0], y.shape[0]
    grad = grad.to(accumulation_type(x.dtype))
    grad_row, grad_column = gradient_of_terms(grad, rows, columns, how, processes)
    gradients = Gradients(x, y, wanted)
    # A copy: their gradient takes the scores' place, and another backward pass may follow.
    whole = [(0, rows, kept.clone())] if kept.shape[0] > 0 else None
    for begin, end, scores in whole or products(x, y, bias):
        of_rows = grad_row if grad_row.dim() == 0 else grad_row[begin:end]
        statistics = row_stats[:, begin:end].contiguous(), column_stats
        place = (how.diagonal + begin, how.class_axis, how.pair_axis, wanted[-1])
        of_scale = _GRADIENT[backend](scores, logit_scale, of_rows, grad_column, *statistics, *place)
        gradients.add(begin, end, scores, of_scale)
    return gradients.result()


def _statistics(backend: str, x: Tensor, y: Tensor, *_: Tensor | None) -> tuple[Tensor, ...]:
    dtype, rows, columns = accumulation_type(x.dtype), x.shape[0], y.shape[0]
    kept = x.new_empty([rows if are_kept(rows, columns) else 0, columns])
    return x.new_empty([3, rows], dtype=dtype), x.new_empty([2, columns], dtype=dtype), kept


_LOSS = register(
    Composite(
        "contrastive_loss",
        "Tensor x, Tensor y, Tensor? bias, Tensor? logit_scale",
        "Tensor row_stats, Tensor column_stats, Tensor kept",
        forward,
        backward,
        _statistics,
    )
)


def contrastive_loss(
    backend: str,
    x: Tensor,
    y: Tensor,
    bias: Tensor | None,
    logit_scale: Tensor | None,
    axis: str,
    reduction: str,
    processes: Processes | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss and its two axis terms (detached), differentiable in x, y, bias and logit_scale; of one type.

    Of several processes, x are the rows of this one and y those of all.
    """
    diagonal = 0 if processes is None else processes.first
    options = Options(diagonal, *AXES[axis], REDUCTIONS[reduction])
    return _LOSS(backend, x, y, bias, logit_scale, *options, processes=processes)
