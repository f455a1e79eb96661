"""The two-view form of the loss: images against anything that scores them, as CLIP's image and text."""

from __future__ import annotations

from torch import Tensor

from ._common import Axis, Reduction, accumulation_dtype, without_autocast
from .icm_loss import Terms, scaled, score_loss


def contrastive_loss(
    x: Tensor,
    y: Tensor,
    logit_scale: Tensor | float | None = None,
    *,
    bias: Tensor | None = None,
    axis: Axis = "both",
    reduction: Reduction = "mean",
    return_terms: bool = False,
) -> Tensor | Terms:
    """Cross-entropy of two views with the identity, over both axes of their scores.

        Z[i, j] = s * (x_i . y_j + bias_j)            s: logit_scale, 1 by default

    and then equations 5, 7 and 9, see `score_loss`. With x the features and y the mixed classifiers it is the
    Infinite Class Mixup loss (eq. 2 and 3); with two normalised embeddings it is twice CLIP's loss, which
    halves the sum of the axes.

    Args:
        x: (B, K), floating-point, differentiable.
        y: (B, K) of the same type; its row i belongs to row i of x.
        logit_scale: float or 0-d tensor that multiplies the scores, bias included; differentiable.
        bias: (B,), one for each row of y.
        axis: "class" (softmax over the rows of y), "pair" (over the rows of x) or "both".
        reduction: "mean", "sum" = B * mean, or "none" (B,).
        return_terms: also return the class and the pair term, detached.

    Returns:
        The loss in nats, float32 or float64 for float64 input; or (loss, class term, pair term).

    Raises:
        ValueError: an unknown axis or reduction, numbers of rows that differ.

    Cost:
        About ten B x B arrays, forward and backward together.

    Numerics:
        The products and all sums in float32, or float64 for float64.

    Example:
        >>> import torch
        >>> from icm_fast.reference import contrastive_loss
        >>> contrastive_loss(torch.zeros(8, 3), torch.zeros(8, 3))  # 2 ln 8
        tensor(4.1589)
    """
    if x.shape != y.shape or x.ndim != 2:
        raise ValueError(f"contrastive_loss: expected two (B, K), got {tuple(x.shape)} and {tuple(y.shape)}")
    dtype = accumulation_dtype(x.dtype)
    with without_autocast(x.device):
        Z = x.to(dtype) @ y.to(dtype).T
    if bias is not None:
        Z = Z + bias.to(dtype)
    return score_loss(scaled(Z, logit_scale), axis=axis, reduction=reduction, return_terms=return_terms)
