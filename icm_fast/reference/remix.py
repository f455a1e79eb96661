"""Remix: a label ratio that favours the rarer class (spec §3)."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import in_range, is_weight


def remix_lam(
    lam: Tensor, y_a: Tensor, y_b: Tensor, class_counts: Tensor, kappa: float = 3.0, tau: float = 0.5
) -> Tensor:
    """Label weights of Remix from the pixel weights; lam weighs the sample itself (y_a).

    With n_a, n_b the training images of the two classes:

        lam_y = 0      if n_a / n_b >= kappa    and  lam < tau
                1      if n_a / n_b <= 1/kappa  and  1 - lam < tau
                lam    otherwise                                                                (spec §3)

    (The Infinite Class Mixup paper prints "lam < kappa", a misprint.)

    Args:
        lam: () or (B,) in [0, 1], the weights that the pixels were mixed with.
        y_a, y_b: (B,) own and partner label.
        class_counts: (C,) positive.
        kappa, tau: thresholds of imbalance and of mixing.

    Returns:
        (B,) in lam's type. A bad label or lam gives NaN in its entry, which the losses turn into NaN.

    Cost:
        O(B).

    Numerics:
        Ratios and comparisons in float64.

    Example:
        >>> import torch
        >>> from icm_fast.reference import remix_lam
        >>> counts = torch.tensor([300, 100, 50])
        >>> remix_lam(torch.tensor(0.4), torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]), counts)
        tensor([0.0000, 0.4000, 0.4000])
    """
    counts = class_counts.to(torch.float64)
    y_a, y_b = y_a.long(), y_b.long()
    last = counts.shape[0] - 1
    ratio = counts[y_a.clamp(0, last)] / counts[y_b.clamp(0, last)]
    lam = lam.expand(y_a.shape)
    pixels = lam.to(torch.float64)
    to_partner = (ratio >= kappa) & (pixels < tau)
    to_own = (ratio <= 1 / kappa) & (1 - pixels < tau)
    labels = torch.where(to_partner, 0.0, torch.where(to_own, 1.0, lam)).to(lam.dtype)
    valid = in_range(y_a, last + 1) & in_range(y_b, last + 1) & is_weight(lam)
    return labels.masked_fill(~valid, float("nan"))
