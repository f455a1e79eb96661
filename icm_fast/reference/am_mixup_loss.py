"""Asymptotic Midpoint Mixup (arXiv 2401.14696) on the logits of a linear head (spec §3)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import Reduction, accumulation_dtype, hard_labels, in_range, is_weight, one
from .mixup import mixup


def am_mixup_rate(accuracy: float, beta: float = 0.67) -> float:
    """The rate r = exp(-beta * accuracy), accuracy in [0, 1]: from 1 down to 0.51 (inferred: eq. 6).

    Inferred: the original equation was not available and was pieced together from secondary sources.

    Example:
        >>> from icm_fast.reference import am_mixup_rate
        >>> am_mixup_rate(0.0), round(am_mixup_rate(1.0), 2)
        (1.0, 0.51)
    """
    return math.exp(-beta * accuracy)


def am_mixup_loss(
    logits: Tensor, index: Tensor, rate: Tensor | float, labels: Tensor, *, reduction: Reduction = "mean"
) -> Tensor:
    """Cross-entropy of features mixed by ONE rate against ONE hard label; rate weighs the sample itself.

        z_i = r f_i + (1 - r) f_index(i)        label_i = y_i if r >= 1/2 else y_index(i)       (spec §3)

    on the features f before the head. The head is linear, so the logits mix alike and the features
    need not be touched: loss_i = CE(r S_i + (1 - r) S_index(i), label_i).

    Args:
        logits: S (B, C) of the unmixed features, any floating type; differentiable, also twice.
        index: (B,) partner of each sample.
        rate: r in [0, 1], float or 0-d tensor; see `am_mixup_rate`.
        labels: (B,) integer labels of the unmixed samples.
        reduction: "mean", "sum" or "none" (B,).

    Returns:
        The loss in nats, float32 or float64 for float64 logits. A bad label, index or rate gives NaN in
        every entry and in the whole gradient (spec §2.6).

    Cost:
        A few arrays (B, C).

    Numerics:
        Mixing and sums in float32, or float64 for float64 logits; the laws of `mixup` hold.

    Example:
        >>> import torch
        >>> from icm_fast.reference import am_mixup_loss
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> am_mixup_loss(logits, torch.tensor([1, 0]), 0.5, torch.tensor([0, 1]))  # equal logits: ln 2
        tensor(0.6931)
    """
    dtype = accumulation_dtype(logits.dtype)
    batch_size, num_classes = logits.shape
    r = torch.as_tensor(rate, dtype=dtype, device=logits.device)
    own, labels_valid = hard_labels(labels, num_classes)
    valid = labels_valid & in_range(index, batch_size).all() & is_weight(r)
    partner = index.long().clamp(0, max(batch_size - 1, 0))
    mixed = mixup(logits.to(dtype) * one(valid), partner, r)
    return F.cross_entropy(mixed, torch.where(r >= 0.5, own, own.index_select(0, partner)), reduction=reduction)
