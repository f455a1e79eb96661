"""The loss of a linear classifier from its features and weights: equations 1 to 9, nothing saved."""

from __future__ import annotations

from torch import Tensor

from ._common import Axis, MixedTargetLike, Reduction, Target, accumulation_dtype, columns, one, without_autocast
from .icm_loss import Terms, icm_loss


def mixed_classifiers(weight: Tensor, target: MixedTargetLike) -> Tensor:
    """The classifiers of the mixed classes; lam weighs the sample itself (y_a).

        w~_j = sum_c Y[j, c] w_c = lam_j w_{y_a[j]} + (1 - lam_j) w_{y_b[j]}                  (eq. 2)

    Args:
        weight: (C, ...) floating-point, differentiable: a row for each original class (its bias, for (C,)).
        target: a mixed target with y_a (N,), y_b (N,), lam () or (N,). Values are not checked: a bad label or lam
            makes every number and the whole gradient NaN (spec §2.6).

    Returns:
        (N, ...), float32 or float64 for float64.

    Raises:
        ValueError: a lam that requires a gradient.

    Cost:
        A few arrays of the size of the result.

    Numerics:
        A class of weight exactly 0 takes no part (spec §2.4).

    Example:
        >>> import torch
        >>> from icm_fast.reference import TwoHot, mixed_classifiers
        >>> target = TwoHot(torch.tensor([0]), torch.tensor([1]), torch.tensor(0.75))
        >>> mixed_classifiers(torch.tensor([[0.0], [4.0]]), target)
        tensor([[1.]])
    """
    dtype = accumulation_dtype(weight.dtype)
    cols = columns(target, weight.shape[0], dtype)
    rows = weight.to(dtype) * one(cols.valid)
    first, second = (rows.index_select(0, index).movedim(0, -1) for index in (cols.first, cols.second))
    return cols.blend(first, second).movedim(-1, 0)


def linear_icm_loss(
    features: Tensor,
    weight: Tensor,
    target: Target,
    bias: Tensor | None = None,
    *,
    axis: Axis = "both",
    reduction: Reduction = "mean",
    logit_scale: Tensor | float | None = None,
    return_terms: bool = False,
) -> Tensor | Terms:
    """Infinite Class Mixup loss of the logits features @ weight.T + bias; lam weighs the sample itself.

    See `icm_loss`. By linearity the scores of the mixed classes are those of the mixed classifiers (eq. 2, 3):

        Z[i, j] = r_i . w~_j + b~_j = sum_c S[i, c] Y[j, c]        S = R W^T + b

    Args:
        features: R (B, D), floating-point, differentiable.
        weight: W (C, D), as nn.Linear keeps it; of the same type.
        target: a mixed target of length B, dense Y (B, C), or integer labels (B,): plain cross-entropy.
        bias: b (C,).
        axis: "class", "pair" or "both".
        reduction: "mean", "sum" = B * mean, or "none" (B,).
        logit_scale: float or 0-d tensor that multiplies Z; differentiable.
        return_terms: also return the class and the pair term, detached.

    Returns:
        The loss in nats, float32 or float64 for float64 features; or (loss, class term, pair term).

    Raises:
        TypeError: features not floating-point, or an unknown kind of target.
        ValueError: an unknown axis or reduction, a wrong length, a target that requires a gradient.

    Cost:
        The logits (B, C) and about ten B x B arrays.

    Numerics:
        The logits and all sums in float32, or float64 for float64.

    Example:
        >>> import torch
        >>> from icm_fast.reference import TwoHot, linear_icm_loss
        >>> target = TwoHot(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor(0.7))
        >>> linear_icm_loss(torch.ones(2, 3), torch.zeros(5, 3), target)  # 2 ln 2
        tensor(1.3863)
    """
    dtype = accumulation_dtype(features.dtype)
    with without_autocast(features.device):
        logits = features.to(dtype) @ weight.to(dtype).T
    if bias is not None:
        logits = logits + bias.to(dtype)
    return icm_loss(logits, target, axis=axis, reduction=reduction, logit_scale=logit_scale, return_terms=return_terms)
