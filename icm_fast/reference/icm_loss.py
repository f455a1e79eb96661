"""The Infinite Class Mixup loss: equations 5, 7 and 9 (arXiv 2305.10293), on the scores of equation 3."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import Axis, Reduction, Target, accumulation_dtype, hard_labels, one, reduce
from .mixed_logits import mixed_logits

Terms = tuple[Tensor, Tensor, Tensor]


def score_loss(
    Z: Tensor, *, axis: Axis = "both", reduction: Reduction = "mean", diagonal: int = 0, return_terms: bool = False
) -> Tensor | Terms:
    """The loss of given scores: image i against its own mixed class, on either axis or both.

    Image i owns column d + i, where d is `diagonal`. With i, k over the rows and j over the columns:

        class term_i = log sum_j exp Z[i, j]     - Z[i, d+i]      softmax over the classifiers     (eq. 5)
        pair term_i  = log sum_k exp Z[k, d+i]   - Z[i, d+i]      softmax over the images          (eq. 7)
        L = mean_i class term_i + mean_i pair term_i              a sum: no half, no temperature   (eq. 9)

    With P the softmax of each row and Q that of each column, dL/dZ = (P + Q - 2I)/B.

    Args:
        Z: (R, N) with N >= d + R; floating-point, differentiable.
        axis: "class", "pair", or "both" for the sum.
        reduction: "mean" over the R rows, "sum" = R * mean, "none" for R entries: the class term of
            image i plus the pair term of the column that it owns.
        diagonal: the column of image 0. Columns that no row owns take part in the class axis only.
        return_terms: also return both axis terms, reduced alike and detached; an axis that is not
            part of the loss has term 0, so the terms always add up to the loss.

    Returns:
        The loss in Z's type, in nats; or (loss, class term, pair term).

    Raises:
        ValueError: an unknown axis or reduction, or a row without a column of its own.

    Cost:
        Two log-softmax arrays of the size of Z.

    Numerics:
        A score of -inf has probability 0. A row or column of nothing but -inf has term NaN.

    Example:
        >>> import torch
        >>> from icm_fast.reference import score_loss
        >>> score_loss(torch.zeros(8, 8))  # 2 ln 8
        tensor(4.1589)
    """
    if axis not in ("both", "class", "pair"):
        raise ValueError(f"expected axis 'both', 'class' or 'pair', got {axis!r}")
    rows = Z.shape[0]
    if diagonal < 0 or diagonal + rows > Z.shape[1]:
        raise ValueError(f"score_loss: {rows} rows from column {diagonal} on do not fit {Z.shape[1]} columns")
    own = Z[:, diagonal : diagonal + rows]  # a square: only columns with an owner have a pair term
    class_terms = pair_terms = Z.new_zeros(rows)
    # log_softmax subtracts the maximum first; LSE - Z[i, i] would cancel when the scores share an offset.
    if axis != "pair":
        class_terms = -F.log_softmax(Z, dim=1).diagonal(diagonal)
    if axis != "class":
        pair_terms = -F.log_softmax(own, dim=0).diagonal()
    loss = reduce(class_terms + pair_terms, reduction)
    if not return_terms:
        return loss
    return loss, reduce(class_terms, reduction).detach(), reduce(pair_terms, reduction).detach()


def scaled(Z: Tensor, logit_scale: Tensor | float | None) -> Tensor:
    """logit_scale * Z; a score of -inf adds nothing to the gradient of a positive scale (spec §2.9)."""
    if logit_scale is None:
        return Z
    s = torch.as_tensor(logit_scale, dtype=Z.dtype, device=Z.device)
    # Its probability is 0 at every positive scale, but dZ * Z would be 0 * (-inf).
    masked = torch.isneginf(Z) & (s > 0)
    return torch.where(masked, Z * s.detach(), Z.masked_fill(masked, 0.0) * s)


def icm_loss(
    logits: Tensor,
    target: Target,
    *,
    axis: Axis = "both",
    reduction: Reduction = "mean",
    logit_scale: Tensor | float | None = None,
    return_terms: bool = False,
) -> Tensor | Terms:
    """Infinite Class Mixup loss; lam weighs the sample itself (y_a), its partner weighs 1 - lam.

    Every mixed image is a class of its own. Equation 3 scores all B images by all B mixed classes of
    the batch, and cross-entropy with the identity asks each image to find its class among the classes
    (eq. 5), each class its image among the images (eq. 7), or both (eq. 9): see `score_loss`. Then

        dL/dS[i, c] = sum_j dL/dZ[i, j] Y[j, c]

    Equal mixed classes in a batch count as negatives of each other (spec §2.5). The loss is not a sum
    over samples: splitting a batch changes it (spec §2.11).

    Args:
        logits: S (B, C) for the original classes, bias included; any floating type and strides;
            differentiable, also twice.
        target: a mixed target of length B, dense Y (B, C), or integer labels (B,): those mean plain
            cross-entropy whatever the axis, so that one criterion serves training and evaluation.
            Bad values are not looked for on the host: every loss entry and the whole gradient are NaN
            (spec §2.6).
        axis: "class", "pair" or "both".
        reduction: "mean", "sum" = B * mean, or "none" (B,).
        logit_scale: float or 0-d tensor that multiplies Z (the logits, for integer labels);
            differentiable; 0 and negative values too.
        return_terms: also return the class and the pair term, detached; cross-entropy is a class term.

    Returns:
        The loss in nats, float32 or float64 for float64 logits; or (loss, class term, pair term).

    Raises:
        TypeError: logits not floating-point, or an unknown kind of target.
        ValueError: an unknown axis or reduction, a wrong length, a target that requires a gradient.

    Cost:
        About ten B x B arrays, forward and backward together.

    Numerics:
        All sums in float32, or float64 for float64 logits; the gradient is rounded once to the type of
        the logits. What -inf and NaN do: spec §2.7.

    Example:
        >>> import torch
        >>> from icm_fast.reference import TwoHot, icm_loss
        >>> logits = torch.zeros(4, 10, requires_grad=True)
        >>> target = TwoHot(torch.tensor([0, 1, 2, 3]), torch.tensor([1, 0, 3, 2]), torch.tensor(0.7))
        >>> icm_loss(logits, target)  # 2 ln 4
        tensor(2.7726, grad_fn=<MeanBackward0>)
    """
    if isinstance(target, Tensor) and not target.is_floating_point():
        labels, valid = hard_labels(target, logits.shape[1])
        scores = logits.to(accumulation_dtype(logits.dtype)) * one(valid)
        loss = F.cross_entropy(scaled(scores, logit_scale), labels, reduction=reduction)
        return (loss, loss.detach(), torch.zeros_like(loss)) if return_terms else loss
    Z = mixed_logits(logits, target)
    if Z.shape[0] != Z.shape[1]:
        raise ValueError(f"icm_loss: logits has {Z.shape[0]} rows but target has {Z.shape[1]}")
    return score_loss(scaled(Z, logit_scale), axis=axis, reduction=reduction, return_terms=return_terms)
