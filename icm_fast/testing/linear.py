"""check_linear_icm_loss: the budget of a loss whose scores are a matrix product, elementwise for every gradient.

The floor is that of the loss on given logits (scales.py), carried through the products. A product of n terms rounds as
a sum does; what it errs by, the exponents err by as well: an error d of every score changes P by at most 2 P d.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from icm_fast import reference
from icm_fast.reference import TwoHot
from icm_fast.reference._common import Axis, Reduction, Target, accumulation_dtype

from . import budget, formulations
from .checks import reduced_error
from .scales import EXPONENTS, SUMS, cross_entropy_scales, icm_loss_scales, on_cpu


class Inputs(NamedTuple):
    """What is differentiated: features (B, D), weight (C, D), bias (C,), logit_scale ()."""

    features: Tensor
    weight: Tensor
    bias: Tensor | None = None
    logit_scale: Tensor | None = None

    def leaves(self, dtype: torch.dtype) -> Inputs:
        """Copies in a type."""
        copies = (None if each is None else each.detach().to("cpu", dtype).requires_grad_() for each in self)
        return Inputs(*cast(tuple[Tensor, Tensor], tuple(copies)))


class Results(NamedTuple):
    """What is under test; None is not checked."""

    loss: Tensor | None
    dfeatures: Tensor | None = None
    dweight: Tensor | None = None
    dbias: Tensor | None = None
    dlogit_scale: Tensor | None = None


def pairs(rows: int) -> TwoHot:
    """The target of a loss of two views: row i of one is class i of the other."""
    own = torch.arange(rows)
    return TwoHot(own, own, torch.ones(()))


def _plain(given: Inputs, target: Target, axis: Axis, reduction: Reduction) -> Tensor:
    """As users write it: nn.Linear in the type of the features, then the loss in the type of sums."""
    logits = F.linear(*given[:3]).to(accumulation_dtype(given.features.dtype))
    s = given.logit_scale
    if isinstance(target, Tensor) and not target.is_floating_point():
        return F.cross_entropy(logits if s is None else s * logits, target.long(), reduction=reduction)
    if isinstance(target, Tensor):
        Z = logits @ target.to(logits.dtype).T
    else:
        Z = formulations.gathered_scores(logits, target.y_a.long(), target.y_b.long(), target.lam)
    return formulations.contrast(Z if s is None else s * Z, axis, reduction)


def _truth(given: Inputs, target: Target, axis: Axis, reduction: Reduction) -> Tensor:
    features, weight, bias, logit_scale = given
    options = {"axis": axis, "reduction": reduction, "logit_scale": logit_scale}
    return cast(Tensor, reference.linear_icm_loss(features, weight, target, bias, **options))  # type: ignore[arg-type]


def _differentiate(
    loss_of: object, leaves: Inputs, target: Target, axis: Axis, reduction: Reduction, grad: Tensor | None
) -> tuple[Results, Tensor]:
    """Results and the unreduced terms."""
    loss = loss_of(leaves, target, axis, reduction)  # type: ignore[operator]
    g = torch.ones_like(loss) if grad is None else grad.detach().to("cpu", loss.dtype).expand_as(loss)
    gradients = iter(torch.autograd.grad(loss, [each for each in leaves if each is not None], g))
    found = [None if each is None else next(gradients) for each in leaves]
    with torch.no_grad():
        terms = loss_of(leaves, target, axis, "none")  # type: ignore[operator]
    return Results(loss.detach(), *found), terms


def check_linear_icm_loss(
    ours: Results,
    given: Inputs,
    target: Target,
    *,
    axis: Axis = "both",
    reduction: Reduction = "mean",
    grad_output: Tensor | None = None,
    what: str = "linear_icm_loss",
) -> None:
    """Assert that a loss and its gradients are within the budget; contrastive_loss is the case of target pairs(B).

    Args:
        ours: the results under test.
        given: the inputs that they were computed from.
        target: mixed, dense or hard.
        grad_output: the gradient that came in, () or (B,); ones if None.
    """
    home, dtype = on_cpu(target) if not _is_hard(target) else cast(Tensor, target).cpu(), given.features.dtype
    acc = accumulation_dtype(dtype)
    how = (home, axis, reduction, grad_output)
    truth, terms = _differentiate(_truth, given.leaves(torch.float64), *how)
    narrow = given.leaves(dtype)
    scale_leaf = None if given.logit_scale is None else given.logit_scale.detach().to(acc).requires_grad_()
    eager, eager_terms = _differentiate(_plain, narrow._replace(logit_scale=scale_leaf), *how)
    scales = _scales(given.leaves(torch.float64), home, terms, axis, reduction, acc, dtype, grad_output)
    loss_error = reduced_error(eager_terms, terms, reduction)
    for name, result, plain, true, scale in zip(Results._fields, ours, eager, truth, scales, strict=True):
        if result is None or plain is None or true is None or scale is None:
            continue
        out = acc if name in ("loss", "dlogit_scale") else dtype
        numbers = {"out_dtype": out, "acc_dtype": acc, "scale": scale}
        if name == "loss":
            numbers["eager_error"] = loss_error
        budget.check(result, plain, true, what=f"{what} {name}", **numbers)  # type: ignore[arg-type]


def _is_hard(target: Target) -> bool:
    return isinstance(target, Tensor) and not target.is_floating_point()


def _scales(
    given: Inputs,
    target: Target,
    terms: Tensor,
    axis: Axis,
    reduction: Reduction,
    acc: torch.dtype,
    dtype: torch.dtype,
    grad_output: Tensor | None,
) -> Results:
    """Allowed errors in units of eps of the type of sums."""
    features, weight, bias, logit_scale = (None if each is None else each.detach() for each in given)
    assert features is not None and weight is not None
    # Of a product in the type of the features: its own rounding, that of what is multiplied, the sum.
    unit = torch.finfo(dtype).eps / torch.finfo(acc).eps
    rows, depth, classes = *features.shape, weight.shape[0]
    magnitude = features.abs() @ weight.abs().T + (0 if bias is None else bias.abs())
    error = (2 * unit + SUMS * depth**0.5) * magnitude.max().item() if rows else 0.0
    logits = features @ weight.T + (0 if bias is None else bias)
    s = 1.0 if logit_scale is None else logit_scale.item()
    common = {"reduction": reduction, "acc_dtype": acc, "grad_output": grad_output}
    if _is_hard(target):
        of_logits = cross_entropy_scales(s * logits, target, terms, **common)  # type: ignore[arg-type]
    else:
        more = {"axis": axis, "logit_scale": s, "score_error": abs(s) * error / EXPONENTS}
        of_logits = icm_loss_scales(logits, target, terms, **common, **more)  # type: ignore[arg-type]
    leaf = logits.requires_grad_()
    with torch.enable_grad():
        options = {"axis": axis, "reduction": reduction, "logit_scale": logit_scale}
        loss = cast(Tensor, reference.icm_loss(leaf, target, **options))  # type: ignore[arg-type]
    g = torch.ones_like(loss) if grad_output is None else grad_output.detach().to("cpu", torch.float64).expand_as(loss)
    (dlogits,) = torch.autograd.grad(loss, leaf, g)
    exact = dlogits.abs()
    allowed = of_logits.dlogits * (abs(s) if _is_hard(target) else 1.0) + unit * exact
    if _is_hard(target):
        allowed = allowed + 2 * abs(s) * error * exact
    product = 2 * unit + SUMS * max(classes, rows) ** 0.5
    both = allowed + product * exact
    return Results(
        of_logits.loss + (2 * abs(s) * error if reduction != "sum" else 2 * abs(s) * error * rows),
        both @ weight.abs(),
        both.T @ features.abs(),
        both.sum(0),
        of_logits.dscale + (both * magnitude).sum() / max(abs(s), 1e-30),
    )
