"""The losses as users write them in plain torch: rivals of the benchmarks, and torch's own error.

Scores of half-precision logits are formed in float32, as autocast does for cross-entropy. None of these
knows the rules for a weight of exactly 0 or for bad values: use the reference for those.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def authors(
    logits: Tensor, y_a: Tensor, y_b: Tensor, lam: Tensor, axis: str = "both", reduction: str = "mean"
) -> Tensor:
    """Infinite Class Mixup as released by its authors: one-hot targets, matmul, identity on both axes.

    lam weighs y_a. A (B, C) target, a (B, B) product and a (B, B) identity are built at every step.
    """
    S = _wide(logits)
    batch_size, num_classes = S.shape
    w = lam.to(S.dtype).expand(batch_size)[:, None]
    Y = w * F.one_hot(y_a, num_classes) + (1 - w) * F.one_hot(y_b, num_classes)
    Z = S @ Y.T
    eye = torch.eye(batch_size, dtype=Z.dtype, device=Z.device)
    by_class = F.cross_entropy(Z, eye, reduction=reduction) if axis != "pair" else 0
    by_pair = F.cross_entropy(Z.T, eye, reduction=reduction) if axis != "class" else 0
    return torch.as_tensor(by_class + by_pair)


def contrast(Z: Tensor, axis: str = "both", reduction: str = "mean", diagonal: int = 0) -> Tensor:
    """Cross-entropy of given scores with integer targets; row i owns column diagonal + i."""
    rows = torch.arange(Z.shape[0], device=Z.device)
    own = Z[:, diagonal : diagonal + Z.shape[0]]
    by_class = F.cross_entropy(Z, rows + diagonal, reduction=reduction) if axis != "pair" else 0
    by_pair = F.cross_entropy(own.T, rows, reduction=reduction) if axis != "class" else 0
    return torch.as_tensor(by_class + by_pair)


def index_gather(
    logits: Tensor, y_a: Tensor, y_b: Tensor, lam: Tensor, axis: str = "both", reduction: str = "mean"
) -> Tensor:
    """The stronger plain form: gather two columns per mixed class, integer targets. lam weighs y_a."""
    return contrast(gathered_scores(logits, y_a, y_b, lam), axis, reduction)


def gathered_scores(logits: Tensor, y_a: Tensor, y_b: Tensor, lam: Tensor) -> Tensor:
    """Z by two gathers of logits columns. lam weighs y_a."""
    S = _wide(logits)
    w = lam.to(S.dtype)
    return w * S[:, y_a] + (1 - w) * S[:, y_b]


def two_cross_entropies(
    logits: Tensor,
    y_a: Tensor,
    y_b: Tensor,
    lam: Tensor,
    reduction: str = "mean",
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mixup's loss as everybody writes it: lam CE(y_a) + (1 - lam) CE(y_b)."""
    S = _wide(logits)
    w = lam.to(S.dtype)

    def each(y: Tensor) -> Tensor:
        # Not F.cross_entropy(weight=...) with smoothing and a mean: that divides by the sum of the weights.
        return F.cross_entropy(S, y, weight=weight, label_smoothing=label_smoothing, reduction="none")

    terms = w * each(y_a) + (1 - w) * each(y_b)
    return terms if reduction == "none" else terms.sum() if reduction == "sum" else terms.mean()


def gathered_mixup(x: Tensor, index: Tensor, lam: Tensor) -> Tensor:
    """Mixup's mixing as everybody writes it; half-precision samples in float32, rounded once."""
    wide = _wide(x)
    w = lam.to(wide.dtype).reshape(-1, *(1,) * (x.ndim - 1))
    return (w * wide + (1 - w) * wide[index]).to(x.dtype)
