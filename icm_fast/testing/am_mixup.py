"""The budget of the AM-Mixup loss: truth, torch's own error and scale, then budget.check."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from icm_fast import reference
from icm_fast.reference import TwoHot
from icm_fast.reference._common import Reduction, accumulation_dtype

from . import budget
from .checks import Differentiated, differentiate
from .scales import Scales, cross_entropy_scales


def check_am_mixup_loss(
    loss: Tensor,
    dlogits: Tensor,
    logits: Tensor,
    index: Tensor,
    rate: float,
    labels: Tensor,
    *,
    reduction: Reduction = "mean",
    grad_output: Tensor | None = None,
    what: str = "am_mixup_loss",
) -> None:
    """Assert that a loss and its gradient are within the budget.

    Args:
        rate: as the type of the results holds it.
        grad_output: the gradient that came in, () or (B,); ones if None.
    """
    acc = accumulation_dtype(logits.dtype)

    def reference_loss(S: Tensor, _: Tensor | None, how: Reduction) -> Tensor:
        return reference.am_mixup_loss(S, index, rate, labels, reduction=how)

    def plain_loss(S: Tensor, _: Tensor | None, how: Reduction) -> Tensor:
        mixed = rate * S + (1 - rate) * S[index]
        return F.cross_entropy(mixed, labels if rate >= 0.5 else labels[index], reduction=how)

    truth = differentiate(reference_loss, logits, torch.float64, reduction, grad_output)
    eager = differentiate(plain_loss, logits, acc, reduction, grad_output)
    scales = _scales(logits, index, rate, labels, truth, reduction, grad_output)
    error = (eager.terms.double() - truth.terms).abs()
    error = error[error.isfinite()]
    eager_error = None if reduction == "none" else error.sum() / (len(truth.terms) if reduction == "mean" else 1)
    budget.check(
        loss,
        eager.loss,
        truth.loss,
        out_dtype=acc,
        acc_dtype=acc,
        scale=scales.loss,
        what=f"{what} loss",
        eager_error=eager_error,
    )
    budget.check(
        dlogits,
        eager.dlogits,
        truth.dlogits,
        out_dtype=logits.dtype,
        acc_dtype=acc,
        scale=scales.dlogits,
        what=f"{what} dlogits",
    )


def _scales(
    logits: Tensor,
    index: Tensor,
    rate: float,
    labels: Tensor,
    truth: Differentiated,
    reduction: Reduction,
    grad_output: Tensor | None,
) -> Scales:
    """As cross-entropy of the mixed logits, which are rounded themselves: their magnitude counts in every type.

    The transpose of the mixing, whose weights are not negative, then takes the error of their gradient to that
    of the logits.
    """
    S = logits.detach().double()
    mixed = reference.mixup(S, index, rate)
    own = labels if rate >= 0.5 else labels[index]
    target = TwoHot(own, own, torch.ones(()))
    scales = cross_entropy_scales(
        mixed, target, truth.terms, reduction=reduction, acc_dtype=torch.float64, grad_output=grad_output
    )
    leaf = torch.zeros_like(S).requires_grad_()
    (dlogits,) = torch.autograd.grad(reference.mixup(leaf, index, rate), leaf, scales.dlogits)
    return scales._replace(dlogits=dlogits)
