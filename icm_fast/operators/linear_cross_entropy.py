"""`linear_cross_entropy_fwd` and `_bwd`: cross-entropy of a linear classifier, a block of rows at a time.

What `linear_icm_loss` is for hard labels. The logits of a block go through `mixup_cross_entropy_fwd` with one class a
row, whose `row_stats` (2, rows) these are; the backward pass forms them again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._composite import Composite, Options, gradient_of_terms, loss_of_terms, options_of, register
from ._library import REDUCTIONS, accumulation_type
from ._products import Gradients, products, without_autocast
from .mixup_cross_entropy import BACKWARD, FORWARD

# No class weights, no label smoothing, a term for every row.
_PLAIN = (0.0, REDUCTIONS["none"])


def _pure(labels: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return labels, labels, torch.ones((), device=labels.device), None


def _scaled(logits: Tensor, logit_scale: Tensor | None) -> Tensor:
    if logit_scale is None:
        return logits
    dtype = accumulation_type(logits.dtype)
    return (logits.to(dtype) * logit_scale.to(dtype)).to(logits.dtype)


def _one_if_valid(labels: Tensor, classes: int) -> Tensor:
    """NaN if a label of any block is out of range: the whole loss and gradient are then."""
    return torch.where(((labels >= 0) & (labels < classes)).all(), 1.0, float("nan"))


@without_autocast
def forward(
    backend: str,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    logit_scale: Tensor | None,
    labels: Tensor,
    *options: Any,
    processes: None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, terms (the class axis only), row_stats."""
    torch._check(labels.shape == features.shape[:1], lambda: "linear_cross_entropy: expected a label for each row")
    dtype = accumulation_type(features.dtype)
    terms = features.new_empty([features.shape[0]], dtype=dtype)
    row_stats = features.new_empty([2, features.shape[0]], dtype=dtype)
    for begin, end, logits in products(features, weight, bias):
        part = FORWARD[backend](_scaled(logits, logit_scale), *_pure(labels[begin:end]), *_PLAIN)
        terms[begin:end], row_stats[:, begin:end] = part
    terms *= _one_if_valid(labels, weight.shape[0])
    loss, both = loss_of_terms(terms, terms, options_of(options))
    return loss, both, row_stats


@without_autocast
def backward(
    backend: str,
    grad: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    logit_scale: Tensor | None,
    labels: Tensor,
    row_stats: Tensor,
    *options: Any,
    processes: None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of features, weight, bias and logit_scale; those that are not wanted are empty."""
    how, wanted = Options(*options[:4]), options[4:]
    rows, dtype = features.shape[0], accumulation_type(features.dtype)
    grad, _ = gradient_of_terms(grad.to(dtype), rows, rows, how)
    grad = grad * _one_if_valid(labels, weight.shape[0])
    gradients = Gradients(features, weight, wanted)
    of_scale = grad.new_zeros([])
    for begin, end, logits in products(features, weight, bias):
        given = grad if grad.dim() == 0 else grad[begin:end]
        *target, no_weight = _pure(labels[begin:end])
        scaled = _scaled(logits, logit_scale)
        dlogits = BACKWARD[backend](given, scaled, *target, no_weight, row_stats[:, begin:end].contiguous(), *_PLAIN)
        if wanted[-1]:
            each = dlogits.to(dtype) * logits.to(dtype)
            of_scale = each.masked_fill_(dlogits == 0, 0.0).sum()
        gradients.add(begin, end, _scaled(dlogits, logit_scale), of_scale)
        del scaled, dlogits  # or the next block's would be beside them
    return gradients.result()


def _statistics(backend: str, features: Tensor, *_: Tensor | None) -> tuple[Tensor]:
    return (features.new_empty([2, features.shape[0]], dtype=accumulation_type(features.dtype)),)


_LOSS = register(
    Composite(
        "linear_cross_entropy",
        "Tensor features, Tensor weight, Tensor? bias, Tensor? logit_scale, Tensor labels",
        "Tensor row_stats",
        forward,
        backward,
        _statistics,
    )
)


def linear_cross_entropy(
    backend: str,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    logit_scale: Tensor | None,
    labels: Tensor,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """The loss and its terms (class, 0), differentiable in features, weight, bias and logit_scale."""
    options = Options(0, True, False, REDUCTIONS[reduction])
    return _LOSS(backend, features, weight, bias, logit_scale, labels, *options)
