"""One call per operation: truth, torch's own error and scale are worked out here, then budget.check asserts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from icm_fast import reference
from icm_fast.reference._common import Axis, Reduction, Target, accumulation_dtype
from icm_fast.reference.icm_loss import scaled

from . import budget, formulations
from .scales import Scales, cross_entropy_scales, icm_loss_scales, on_cpu, rounds

# (logits, logit_scale, reduction) -> loss
Loss = Callable[[Tensor, Tensor | None, Reduction], Tensor]


class Differentiated(NamedTuple):
    """A loss, its unreduced terms and its gradients."""

    loss: Tensor
    terms: Tensor
    dlogits: Tensor
    dscale: Tensor | None


def differentiate(
    loss_of: Loss,
    logits: Tensor,
    dtype: torch.dtype,
    reduction: Reduction,
    grad_output: Tensor | None,
    logit_scale: float | None = None,
) -> Differentiated:
    """Forward and backward on a CPU copy of the logits in the given type."""
    leaf = logits.detach().to("cpu", dtype).requires_grad_()
    scale = None if logit_scale is None else torch.tensor(logit_scale, dtype=dtype, requires_grad=True)
    loss = loss_of(leaf, scale, reduction)
    g = torch.ones_like(loss) if grad_output is None else grad_output.detach().to("cpu", dtype).expand_as(loss)
    dlogits, *dscale = torch.autograd.grad(loss, [leaf] if scale is None else [leaf, scale], g)
    with torch.no_grad():
        terms = loss_of(leaf, scale, "none")
    return Differentiated(loss.detach(), terms, dlogits, dscale[0] if dscale else None)


def check_icm_loss(
    loss: Tensor | None,
    dlogits: Tensor | None,
    logits: Tensor,
    target: Target,
    *,
    axis: Axis = "both",
    reduction: Reduction = "mean",
    grad_output: Tensor | None = None,
    logit_scale: float | None = None,
    dscale: Tensor | None = None,
    diagonal: int = 0,
    what: str = "icm_loss",
) -> None:
    """Assert that a loss and its gradients are within the budget, for a mixed or a dense target.

    Args:
        loss, dlogits, dscale: the results under test; None is not checked.
        logits, target: the input; the target's columns may outnumber the rows (`diagonal`: column of row 0).
        grad_output: the gradient that came in, () or (B,); ones if None.
        logit_scale: the value used, a float; dscale is the gradient with respect to it.
    """
    home, acc = on_cpu(target), accumulation_dtype(logits.dtype)

    def reference_loss(S: Tensor, scale: Tensor | None, how: Reduction) -> Tensor:
        Z = scaled(reference.mixed_logits(S, home), scale)
        return cast(Tensor, reference.score_loss(Z, axis=axis, reduction=how, diagonal=diagonal))

    def plain_loss(S: Tensor, scale: Tensor | None, how: Reduction) -> Tensor:
        if isinstance(home, Tensor):
            Z = S @ home.to(S.dtype).T
        else:
            Z = formulations.gathered_scores(S, home.y_a.long(), home.y_b.long(), home.lam)
        return formulations.contrast(Z if scale is None else scale * Z, axis, how, diagonal)

    truth = differentiate(reference_loss, logits, torch.float64, reduction, grad_output, logit_scale)
    eager = differentiate(plain_loss, logits, acc, reduction, grad_output, logit_scale)
    scales = icm_loss_scales(
        logits,
        home,
        truth.terms,
        axis=axis,
        reduction=reduction,
        acc_dtype=acc,
        grad_output=grad_output,
        logit_scale=1.0 if logit_scale is None else logit_scale,
        diagonal=diagonal,
    )
    _check(Results(loss, dlogits, dscale), eager, truth, scales, logits.dtype, reduction, what)


def check_mixup_cross_entropy(
    loss: Tensor | None,
    dlogits: Tensor | None,
    logits: Tensor,
    target: Target,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    grad_output: Tensor | None = None,
    what: str = "mixup_cross_entropy",
) -> None:
    """Assert that a mixed cross-entropy and its gradient are within the budget; arguments as check_icm_loss."""
    home, acc = on_cpu(target), accumulation_dtype(logits.dtype)
    w = None if weight is None else weight.detach().cpu()

    def reference_loss(S: Tensor, _: Tensor | None, how: Reduction) -> Tensor:
        return reference.mixup_cross_entropy(S, home, weight=w, label_smoothing=label_smoothing, reduction=how)

    def plain_loss(S: Tensor, _: Tensor | None, how: Reduction) -> Tensor:
        class_weight = None if w is None else w.to(S.dtype)
        if isinstance(home, Tensor):
            return torch.nn.functional.cross_entropy(
                S, home.to(S.dtype), class_weight, label_smoothing=label_smoothing, reduction=how
            )
        labels = (home.y_a.long(), home.y_b.long(), home.lam)
        return formulations.two_cross_entropies(S, *labels, how, class_weight, label_smoothing)

    truth = differentiate(reference_loss, logits, torch.float64, reduction, grad_output)
    eager = differentiate(plain_loss, logits, acc, reduction, grad_output)
    scales = cross_entropy_scales(
        logits,
        home,
        truth.terms,
        reduction=reduction,
        acc_dtype=acc,
        weight=w,
        label_smoothing=label_smoothing,
        grad_output=grad_output,
    )
    _check(Results(loss, dlogits, None), eager, truth, scales, logits.dtype, reduction, what)


class Results(NamedTuple):
    """What is under test; None is not checked."""

    loss: Tensor | None
    dlogits: Tensor | None
    dscale: Tensor | None


def _check(
    ours: Results,
    eager: Differentiated,
    truth: Differentiated,
    scales: Scales,
    dtype: torch.dtype,
    reduction: Reduction,
    what: str,
) -> None:
    acc = accumulation_dtype(dtype)
    if ours.loss is not None:
        budget.check(
            ours.loss,
            eager.loss,
            truth.loss,
            out_dtype=acc,
            acc_dtype=acc,
            scale=scales.loss,
            what=f"{what} loss",
            eager_error=reduced_error(eager.terms, truth.terms, reduction),
        )
    if ours.dlogits is not None:
        budget.check(
            ours.dlogits,
            eager.dlogits,
            truth.dlogits,
            out_dtype=dtype,
            acc_dtype=acc,
            scale=scales.dlogits,
            what=f"{what} dlogits",
        )
    if ours.dscale is not None and eager.dscale is not None and truth.dscale is not None:
        budget.check(
            ours.dscale,
            eager.dscale,
            truth.dscale,
            out_dtype=ours.dscale.dtype,
            acc_dtype=acc,
            scale=scales.dscale,
            what=f"{what} dscale",
        )


def reduced_error(eager: Tensor, truth: Tensor, reduction: Reduction) -> Tensor | None:
    """Error of torch's reduced loss without the luck of signs that cancel."""
    if reduction == "none":
        return None
    error = (eager.double() - truth.double()).abs()
    error = error[error.isfinite()]
    if error.numel() == 0:
        return torch.zeros((), dtype=torch.float64)
    return error.mean() * (1 if reduction == "mean" else truth.numel())


def check_mixup(
    mixed: Tensor | None,
    dx: Tensor | None,
    x: Tensor,
    index: Tensor,
    lam: Tensor,
    *,
    box: Tensor | None = None,
    grad_output: Tensor | None = None,
    what: str = "mixup",
) -> None:
    """Assert that mixed floating-point samples and their gradient are within the budget."""
    acc = accumulation_dtype(x.dtype)
    index, lam = index.cpu(), lam.cpu()
    box = None if box is None else box.cpu()
    g = torch.ones(x.shape) if grad_output is None else grad_output.detach().cpu()

    def run(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        leaf = x.detach().to("cpu", dtype).requires_grad_()
        if dtype == torch.float64 or box is not None:
            out = reference.mixup(leaf, index, lam, box=box)
        else:
            out = formulations.gathered_mixup(leaf, index, lam)
        return out.detach(), torch.autograd.grad(out, leaf, g.to(dtype))[0]

    truth, truth_dx = run(torch.float64)
    eager, eager_dx = run(acc)
    # Mixing is linear with weights >= 0, so absolute values in give magnitudes out, for the gradient too. Roundings:
    # 1 - lam, two products, a sum: 4 u = 2 eps. A gradient sums what all samples with the same partner return.
    leaf = x.detach().to("cpu", torch.float64).abs().requires_grad_()
    scale = 2 * reference.mixup(leaf, index, lam, box=box)
    partners = int(index.bincount().max()) if index.numel() else 0
    scale_dx = rounds(partners) * torch.autograd.grad(scale, leaf, g.double().abs())[0]
    if mixed is not None:
        budget.check(mixed, eager, truth, out_dtype=x.dtype, acc_dtype=acc, scale=scale.detach(), what=what)
    if dx is not None:
        budget.check(dx, eager_dx, truth_dx, out_dtype=x.dtype, acc_dtype=acc, scale=scale_dx, what=f"{what} dx")


def check_byte_mixup(
    mixed: Tensor,
    x: Tensor,
    index: Tensor,
    lam: Tensor,
    mean: Tensor,
    std: Tensor,
    *,
    box: Tensor | None = None,
    keep_clean: bool = False,
    what: str = "mixup of bytes",
) -> None:
    """Assert that mixed and normalised uint8 samples, in mixed's own type, are within the budget."""
    acc = accumulation_dtype(mixed.dtype)
    home = (x.cpu(), index.cpu(), lam.cpu())
    box, mean, std = None if box is None else box.cpu(), mean.cpu(), std.cpu()

    def run(dtype: torch.dtype, shift: Tensor) -> Tensor:
        return reference.mixup(*home, box=box, mean=shift, std=std, keep_clean=keep_clean, dtype=dtype)

    # With the mean's sign turned the two parts add: (mix / 255 + |mean|) / std. Roundings: 4 u to mix, 1 u for each of
    # 1/255, 1/std, mean/std and their products and sum: 10 u = 5 eps.
    scale = 5 * run(torch.float64, -mean.abs()).abs()
    truth, eager = run(torch.float64, mean), run(acc, mean)
    budget.check(mixed, eager, truth, out_dtype=mixed.dtype, acc_dtype=acc, scale=scale, what=what)
