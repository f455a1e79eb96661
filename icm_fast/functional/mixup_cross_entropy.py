"""Cross-entropy with mixed targets."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from .._validate import check_choice, check_floating, check_same_device, describe
from ..operators import mixup_cross_entropy as operator
from ..operators._library import accumulation_type
from ..target import MixedTarget
from . import _dispatch

_WHERE = "mixup_cross_entropy"


def mixup_cross_entropy(
    logits: Tensor,
    target: MixedTarget | Tensor,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    """Cross-entropy against mixed targets, fused: one pass over the logits, no (B, C) target.

    `lam` of the target is the weight of the sample ITSELF. With S the logits::

        loss_i = lam_i * CE(S_i, y_a[i]) + (1 - lam_i) * CE(S_i, y_b[i])

    and in general, with class weights w, smoothing eps and the mixed targets Y::

        loss_i = - sum_c w_c * q_ic * log_softmax(S_i)_c          q = (1 - eps) * Y + eps / C

    It is the loss of Mixup, CutMix, Manifold Mixup, RegMixup and Remix.

    Args:
        logits: (B, C) float32, float64, bfloat16 or float16, any strides, differentiable. -inf masks a class.
        target: what the batch is mixed towards, told apart by type: `MixedTarget`; a float tensor (B, C) of dense
            targets, which is F.cross_entropy in the accumulation type; an integer tensor (B,) of hard labels: the loss
            is that of F.cross_entropy, whose mean divides by the labels' weights if there are any; no label is ignored.
        weight: (C,) class weights, floating-point, not differentiable.
        label_smoothing: eps in [0, 1].
        reduction: "mean" over B, as F.cross_entropy with probability targets (class weights do not enter the
            divisor), "sum" or "none" (B,).
        backend: None or "auto", "reference", "cpu", "triton", "cuda"; see `icm_fast.backends()`.

    Returns:
        The loss in nats, float32 (float64 for float64 logits), shape () or (B,).

    Raises:
        TypeError: logits, target or weight of a wrong type, a tuple as target, a target or weight that requires grad.
        ValueError: shapes or devices that do not fit, label_smoothing outside [0, 1]; on the CPU in eager mode also a
            label outside [0, C) or a lam outside [0, 1] or NaN. Elsewhere bad values give NaN loss and NaN gradient,
            never a bad access.
        RuntimeError: an explicit backend that is not available; differentiating a fused loss twice.

    Cost:
        Two passes over logits and one write of the gradient; 2*B*C exponentials. Extra memory: the gradient (B*C) and
        O(B + C). Two calls of F.cross_entropy: two (B, C) log-softmax arrays, two gradients and their sum.

    Numerics:
        Sums in float32 (float64 for float64), gradient rounded once to the logits' type. A class of target weight
        exactly 0 enters the softmax only. The same bits from run to run and for any number of threads.

    Example:
        >>> logits = torch.zeros(2, 10, requires_grad=True)
        >>> target = MixedTarget(torch.tensor([0, 1]), torch.tensor([1, 1]), torch.tensor(0.7))
        >>> loss = mixup_cross_entropy(logits, target)
        >>> round(loss.item(), 4)                        # ln 10
        2.3026
        >>> loss.backward()
        >>> logits.grad.shape
        torch.Size([2, 10])
    """
    _dispatch.check_logits(_WHERE, logits)
    kind = _dispatch.target_kind(_WHERE, logits, target)
    if weight is not None:
        weight = _class_weight(logits, weight).to(accumulation_type(logits.dtype))
    _check_smoothing(label_smoothing)
    check_choice(_WHERE, "reduction", reduction, _dispatch.REDUCTION_NAMES)
    name = _dispatch.backend_for(_WHERE, backend, logits)
    if kind == "dense":
        return _of_dense_target(logits, cast(Tensor, target), weight, label_smoothing, reduction)
    # With class weights the mean over hard labels has another divisor.
    plain = kind == "hard" and weight is not None
    if plain or name == "reference" or _dispatch.functorch_active():
        options: dict[str, Any] = {"label_smoothing": float(label_smoothing), "reduction": reduction}
        loss = reference.mixup_cross_entropy(logits, target, weight=weight, **options)
    else:
        weight = None if weight is None else weight.contiguous()
        labels = _two_hot(logits, target)
        loss = operator.mixup_cross_entropy(name, logits, *labels, weight, float(label_smoothing), reduction)
    if _dispatch.reads_values(logits):
        _dispatch.explain_nan(_WHERE, loss, logits.shape[1], target)
    return loss


def _of_dense_target(
    logits: Tensor, target: Tensor, weight: Tensor | None, label_smoothing: float, reduction: str
) -> Tensor:
    dtype = accumulation_type(logits.dtype)
    options: dict[str, Any] = {"label_smoothing": float(label_smoothing), "reduction": reduction}
    return F.cross_entropy(logits.to(dtype), target.to(dtype), weight, **options)


def _two_hot(logits: Tensor, target: MixedTarget | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Labels and lam; a hard label is a pure class."""
    if isinstance(target, MixedTarget):
        return target.y_a, target.y_b, target.lam
    labels = target.long()
    return labels, labels, torch.ones((), device=logits.device)


def _class_weight(logits: Tensor, weight: Any) -> Tensor:
    weight = check_floating(_WHERE, "weight", weight)
    if weight.requires_grad:
        raise TypeError(f"{_WHERE}: weight requires grad, but class weights carry no gradient; pass weight.detach()")
    if weight.shape != logits.shape[1:]:
        raise ValueError(
            f"{_WHERE}: expected weight of shape ({logits.shape[1]},), one per class, got {describe(weight)}"
        )
    check_same_device(_WHERE, logits=logits, weight=weight)
    return weight


def _check_smoothing(label_smoothing: Any) -> None:
    if isinstance(label_smoothing, bool) or not isinstance(label_smoothing, (int, float)):
        raise TypeError(f"{_WHERE}: expected label_smoothing to be a number, got {describe(label_smoothing)}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"{_WHERE}: expected label_smoothing in [0, 1], got {label_smoothing!r}")
