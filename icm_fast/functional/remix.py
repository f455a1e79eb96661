"""Remix's label ratio."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from .._validate import (
    as_scalar,
    check_floating,
    check_label_values,
    check_labels,
    check_lam_values,
    check_same_device,
    check_tensor,
    describe,
)
from ._dispatch import reads_values

_WHERE = "remix_lam"


def remix_lam(
    lam: float | Tensor, y_a: Tensor, y_b: Tensor, class_counts: Tensor, kappa: float = 3.0, tau: float = 0.5
) -> Tensor:
    """Label weights of Remix from the pixel weights: the label of a mixed sample goes to the rarer class.

    `lam` is the weight of the sample ITSELF (`y_a`). With n_a and n_b the training images of the two classes
    (Chou et al., 2020)::

        lam_y = 0      if n_a / n_b >= kappa    and  lam < tau
                1      if n_a / n_b <= 1/kappa  and  1 - lam < tau
                lam    otherwise

    Args:
        lam: a number, () or (B,) in [0, 1]: the weights that the pixels were mixed with.
        y_a, y_b: (B,) integers of any width: own and partner label.
        class_counts: (C,) positive counts of training images, a tensor on the labels' device.
        kappa: how many times larger a class must be, > 0.
        tau: below which weight a sample gives its label up.

    Returns:
        (B,) in lam's type (float32 for a number).

    Raises:
        TypeError, ValueError: wrong types, shapes or devices; on the CPU in eager mode also a label outside [0, C) or
            a lam outside [0, 1]. Elsewhere these give NaN.

    Cost:
        O(B).

    Numerics:
        Ratios and comparisons in float64.

    Example:
        >>> counts = torch.tensor([300, 100, 50])
        >>> remix_lam(0.4, torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]), counts)
        tensor([0.0000, 0.4000, 0.4000])
    """
    y_a = check_labels(_WHERE, "y_a", y_a)
    y_b = check_labels(_WHERE, "y_b", y_b, shape=y_a.shape)
    weight = lam if isinstance(lam, Tensor) else as_scalar(lam, torch.float32, y_a.device)
    check_floating(_WHERE, "lam", weight)
    if weight.dim() != 0 and weight.shape != y_a.shape:
        raise ValueError(f"{_WHERE}: expected lam of shape () or ({len(y_a)},) like y_a, got {tuple(weight.shape)}")
    class_counts = check_tensor(_WHERE, "class_counts", class_counts)
    if class_counts.dim() != 1 or len(class_counts) == 0:
        raise ValueError(f"{_WHERE}: expected class_counts of shape (C,), got {describe(class_counts)}")
    check_same_device(_WHERE, y_a=y_a, y_b=y_b, lam=weight, class_counts=class_counts)
    if reads_values(y_a):
        for name, labels in (("y_a", y_a), ("y_b", y_b)):
            check_label_values(_WHERE, name, labels, len(class_counts), of="class_counts of {} classes")
        check_lam_values(_WHERE, weight)
    return reference.remix_lam(weight, y_a, y_b, class_counts, kappa, tau)
