"""Cross-entropy with mixed targets: the loss of Mixup, CutMix, Remix and RegMixup (spec §3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ._common import Reduction, Target, accumulation_dtype, columns, dense_target, hard_labels, one, reduce


def mixup_cross_entropy(
    logits: Tensor,
    target: Target,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy against mixed targets; lam weighs the sample itself (y_a).

        loss_i = lam_i CE(S_i, y_a[i]) + (1 - lam_i) CE(S_i, y_b[i])                     (spec §3, Mixup)

    and, with class weights w and smoothing eps,

        loss_i = - sum_c w_c q_ic log softmax(S_i)_c        q = (1 - eps) Y + eps/C

    the mean being taken over B, as F.cross_entropy does with probability targets.

    Args:
        logits: S (B, C), any floating type and strides; differentiable, also twice.
        target: a mixed target, dense Y (B, C), or integer labels (B,): the last is F.cross_entropy,
            whose mean divides by the sum of the weights, and which has no ignored label here. Bad
            labels or lam give NaN everywhere (spec §2.6).
        weight: class weights (C,), not differentiable.
        label_smoothing: eps in [0, 1].
        reduction: "mean", "sum" or "none" (B,).

    Returns:
        The loss in nats, float32 or float64 for float64 logits.

    Raises:
        TypeError: logits not floating-point, or an unknown kind of target.
        ValueError: an unknown reduction, a wrong shape, a target that requires a gradient.

    Cost:
        One log-softmax array (B, C).

    Numerics:
        Sums in float32, or float64 for float64 logits. A class of target weight exactly 0 enters the
        softmax only; without smoothing its log-probability may be -inf.

    Example:
        >>> import torch
        >>> from icm_fast.reference import TwoHot, mixup_cross_entropy
        >>> target = TwoHot(torch.tensor([0, 1]), torch.tensor([1, 1]), torch.tensor(0.7))
        >>> mixup_cross_entropy(torch.zeros(2, 10), target)  # ln 10
        tensor(2.3026)
    """
    dtype = accumulation_dtype(logits.dtype)
    scores = logits.to(dtype)
    num_classes = scores.shape[1]
    w = scores.new_ones(num_classes) if weight is None else weight.to(dtype)
    if isinstance(target, Tensor) and not target.is_floating_point():
        labels, valid = hard_labels(target, num_classes)
        class_weight = None if weight is None else w
        return F.cross_entropy(
            scores * one(valid), labels, weight=class_weight, label_smoothing=label_smoothing, reduction=reduction
        )
    if isinstance(target, Tensor):
        nll = -w * F.log_softmax(scores, dim=1)
        terms = (dense_target(target, dtype) * nll).sum(1)
    else:
        cols = columns(target, num_classes, dtype)
        nll = -w * F.log_softmax(scores * one(cols.valid), dim=1)
        own, partner = (nll.gather(1, label[:, None]).squeeze(1) for label in (cols.first, cols.second))
        terms = cols.blend(own, partner)
    if label_smoothing != 0.0:  # 0 * inf: a masked class must not enter by a weight of zero
        terms = (1 - label_smoothing) * terms + label_smoothing / num_classes * nll.sum(1)
    return reduce(terms, reduction)
