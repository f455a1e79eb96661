"""`linear_icm_loss_fwd` and `_bwd`: the loss of a linear classifier, through its logits a block of rows at a time.

A block's logits go through the rectangular `icm_loss_fwd`, which knows its rows whole and its part of every column's
sum. The parts are merged; the backward pass forms the logits again and hands every block the whole sums, relative to
what that block's own were: its scores are formed by the expressions of its forward pass, repaired or not, and what
other blocks have that lies beyond its range becomes infinite, and its own share in that 0.

`row_stats` (5, rows) are those of icm_loss and the offset of the columns in the row's block; `column_sums` (3, columns)
in float64 are offset, shift and sum of the exponentials relative to both; `plan` is that of icm_loss.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ._columns import columns_of_block, merge, whole_terms
from ._composite import Composite, Options, gradient_of_terms, loss_of_terms, options_of, register
from ._library import REDUCTIONS, accumulation_type
from ._processes import Processes
from ._products import Gradients, products, without_autocast
from .icm_loss import AXES, BACKWARD, FORWARD, plan_size


def _logits(features: Tensor, weight: Tensor | None, bias: Tensor | None) -> Iterable[tuple[int, int, Tensor]]:
    """Blocks of logits; with no weight the features are the logits, in one block."""
    if weight is None:
        return [(0, features.shape[0], features)]
    if features.shape[0] == 0:
        return [(0, 0, features.new_empty([0, weight.shape[0]]))]
    return products(features, weight, bias)


@without_autocast
def forward(
    backend: str,
    features: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    logit_scale: Tensor | None,
    y_a: Tensor,
    y_b: Tensor,
    lam: Tensor,
    *options: Any,
    processes: Processes | None = None,
) -> tuple[Tensor, ...]:
    """Loss, terms, row_stats, column_sums, plan."""
    how = options_of(options)
    of_rows, of_columns, terms, plans, ranges = [], [], [], [], []
    for begin, end, logits in _logits(features, weight, bias):
        place = (how.diagonal + begin, how.class_axis, how.pair_axis, REDUCTIONS["none"])
        _, block_terms, row_stats, column_stats, block_plan = FORWARD[backend](
            logits, y_a, y_b, lam, logit_scale, *place
        )
        of_rows.append(torch.cat((row_stats, column_stats[:1, :1].expand(1, end - begin))))
        of_columns.append(column_stats)
        terms.append(block_terms)
        plans.append(block_plan)
        ranges.append((begin, end))
    column_sums, lacked = merge(of_columns, logit_scale, processes)
    owned = [more[how.diagonal + begin : how.diagonal + end] for (begin, end), more in zip(ranges, lacked, strict=True)]
    pair_terms = [whole_terms(of[1], more) for of, more in zip(terms, owned, strict=True)]
    loss, both = loss_of_terms(torch.cat([of[0] for of in terms]), torch.cat(pair_terms), how, processes)
    return loss, both, torch.cat(of_rows, 1), column_sums, plans[0]  # of the target alone: the same for every block


@without_autocast
def backward(
    backend: str,
    grad: Tensor,
    features: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    logit_scale: Tensor | None,
    y_a: Tensor,
    y_b: Tensor,
    lam: Tensor,
    row_stats: Tensor,
    column_sums: Tensor,
    plan: Tensor,
    *options: Any,
    processes: Processes | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of features, weight, bias and logit_scale; those that are not wanted are empty."""
    how, wanted = Options(*options[:4]), options[4:]
    rows = features.shape[0]
    grad = grad.to(accumulation_type(features.dtype))
    grad_row, grad_column = gradient_of_terms(grad, rows, y_a.shape[0], how, processes)
    nothing = features[:0]  # with no weight the gradient is that of the logits, and there is no product
    gradients = Gradients(nothing, nothing, wanted) if weight is None else Gradients(features, weight, wanted)
    for begin, end, logits in _logits(features, weight, bias) if rows > 0 else ():
        of_rows = grad_row if grad_row.dim() == 0 else grad_row[begin:end]
        place = (how.diagonal + begin, how.class_axis, how.pair_axis, REDUCTIONS["sum"], wanted[-1])
        of_block = row_stats[:, begin:end]
        columns = columns_of_block(of_block, column_sums, logit_scale)
        statistics = of_block[:4].contiguous(), columns, plan
        target = (y_a, y_b, lam, logit_scale)
        dlogits, of_scale = BACKWARD[backend](of_rows, grad_column, logits, *target, *statistics, *place)
        if weight is None:
            return dlogits, features.new_empty(0), features.new_empty(0), of_scale
        gradients.add(begin, end, dlogits, of_scale)
        del dlogits  # or the next block's would be beside it
    return gradients.result()


def _statistics(backend: str, features: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, ...]:
    dtype, columns = accumulation_type(features.dtype), others[2].shape[0]
    words = plan_size(backend, columns, weight.shape[0])
    return (
        features.new_empty([5, features.shape[0]], dtype=dtype),
        features.new_empty([3, columns], dtype=torch.float64),
        features.new_empty([words], dtype=torch.int32),
    )


_LOSS = register(
    Composite(
        "linear_icm_loss",
        "Tensor features, Tensor weight, Tensor? bias, Tensor? logit_scale, Tensor y_a, Tensor y_b, Tensor lam",
        "Tensor row_stats, Tensor column_sums, Tensor plan",
        forward,
        backward,
        _statistics,
    )
)


def linear_icm_loss(
    backend: str,
    features: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    logit_scale: Tensor | None,
    y_a: Tensor,
    y_b: Tensor,
    lam: Tensor,
    axis: str,
    reduction: str,
    processes: Processes | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss and its two axis terms (detached), differentiable in features, weight, bias and logit_scale.

    With no weight the features are the logits, whose loss this is; of several processes, the target is that of all.
    """
    diagonal = 0 if processes is None else processes.first
    options = Options(diagonal, *AXES[axis], REDUCTIONS[reduction])
    return _LOSS(backend, features, weight, bias, logit_scale, y_a, y_b, lam, *options, processes=processes)
