"""Accuracy of a training batch, whose labels are mixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._validate import describe
from .functional._dispatch import check_logits, check_values, reads_values, target_kind
from .target import MixedTarget

__all__ = ["mixup_accuracy"]

_WHERE = "mixup_accuracy"
# Weight 1. Integers in units of 2^-32 add up to the same in any order; int64 holds the sum of 2^31 samples.
UNIT = 1 << 32


def mixup_accuracy(logits: Tensor, target: MixedTarget | Tensor, topk: Sequence[int] = (1,)) -> Tensor:
    """Accuracy that a batch of mixed images is expected to have, if each showed one of its two classes.

    `lam` of the target is the weight of the sample ITSELF. With T_k(i) the k classes that image i scores highest::

        accuracy_k = mean_i( lam_i * [y_a[i] in T_k(i)] + (1 - lam_i) * [y_b[i] in T_k(i)] )

    in [0, 1], not in per cent. Where y_a differs from y_b a perfect model reaches max(lam, 1 - lam) for k = 1, so it is
    to be compared with itself, not with validation accuracy. Of integer labels it is the ordinary accuracy, of dense
    targets Y the mean of the sum of Y[i, c] over c in T_k(i).

    Args:
        logits: (B, C) scores or probabilities, floating-point; no gradient is taken. For a target with `clean` labels
            also (2B, C), the clean half first: the mean is over all 2B.
        target: `MixedTarget`; a float tensor (B, C) of dense targets; an integer tensor (B,) of labels.
        topk: the values of k, each in 1..C.

    Returns:
        (len(topk),) float32: `.item()` for one k, `top1, top5 = mixup_accuracy(..., topk=(1, 5))` for two. NaN for an
        empty batch.

    Raises:
        TypeError: logits, target or topk of a wrong type, a tuple as target.
        ValueError: shapes that do not fit, a k outside 1..C; on the CPU also a label outside [0, C) or a lam outside
            [0, 1]. Elsewhere those give NaN, and a dense weight outside [0, 1] does everywhere.

    Cost:
        Two comparisons of the logits for each label, more where scores are equal. For dense targets and a k above 1
        every row is sorted; `MixedTarget.from_dense(target)` is cheaper. Waits for no GPU.

    Numerics:
        Weights are rounded to multiples of 2^-32 and added as integers: the same for any order of the samples. Of equal
        scores the class of lower index comes first, as in argmax. NaN ranks above every number and is never right.

    Example:
        >>> logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 2.0, 1.0]])    # the classes in order: 0 2 1 and 1 2 0
        >>> target = MixedTarget(torch.tensor([0, 2]), torch.tensor([2, 0]), torch.tensor(0.75))
        >>> mixup_accuracy(logits, target, topk=(1, 2))                 # (0.75 + 0) / 2 and (1 + 0.75) / 2
        tensor([0.3750, 0.8750])
        >>> mixup_accuracy(logits, torch.tensor([0, 2])).item()
        0.5
    """
    hits, samples, invalid = count_hits(_WHERE, logits, target, topk)
    return (hits.double() / (samples * UNIT)).where(invalid == 0, torch.nan).float()


@torch.no_grad()
def count_hits(
    where: str, logits: Tensor, target: MixedTarget | Tensor, topk: Sequence[int]
) -> tuple[Tensor, int, Tensor]:
    """(K,) weights of right answers in units of 2^-32, the number of rows, () how many rows have bad values."""
    logits = check_logits(where, logits)
    _check_topk(where, topk, logits.shape[1])
    clean = target.clean if isinstance(target, MixedTarget) else None
    if clean is None or logits.shape[0] != 2 * len(target):
        hits, invalid = _hits(where, logits, target, topk)
        return hits, logits.shape[0], invalid
    of_clean = _hits(where, logits[: len(clean)], clean, topk)
    of_mixed = _hits(where, logits[len(clean) :], target, topk)
    return of_clean[0] + of_mixed[0], logits.shape[0], of_clean[1] + of_mixed[1]


def _hits(where: str, logits: Tensor, target: MixedTarget | Tensor, topk: Sequence[int]) -> tuple[Tensor, Tensor]:
    if target_kind(where, logits, target) == "dense":
        assert isinstance(target, Tensor)
        weights, ranks, valid = _dense_ranks(logits, target, max(topk))
    else:
        weights, ranks, valid = _label_ranks(where, logits, target)
    valid = valid & ((weights >= 0) & (weights <= 1)).all(dim=1)
    whole = (weights * UNIT).round().where(valid[:, None], 0.0).long()
    return torch.stack([(whole * (ranks < k)).sum() for k in topk]), (~valid).sum()


def _label_ranks(where: str, logits: Tensor, target: MixedTarget | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights and ranks of the labels of each row, one or two, and whether they are classes."""
    classes = logits.shape[1]
    if isinstance(target, MixedTarget):
        lam = target.lam.double().expand(len(target))
        labels, weights = torch.stack([target.y_a, target.y_b], dim=1), torch.stack([lam, 1 - lam], dim=1)
    else:
        labels = target.long()[:, None]
        weights = torch.ones(labels.shape, dtype=torch.float64, device=labels.device)
    if reads_values(logits):
        check_values(where, target, classes)
    inside = (labels >= 0) & (labels < classes)
    return weights, _ranks(logits, labels.clamp(0, classes - 1)), inside.all(dim=1)


def _ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, K) how many classes come before each label: those of higher score, and of equal score and lower index."""
    classes, rows, scores = logits.shape[1], logits[:, None, :], logits.gather(1, labels)[..., None]
    not_above = _count(rows <= scores)  # a NaN is above all, itself included
    ranks = classes - not_above
    if reads_values(logits) and bool((not_above - _count(rows < scores) <= 1).all()):
        return ranks  # no ties
    before = torch.arange(classes, device=logits.device) < labels[..., None]
    return ranks + _count(before & (rows == scores))


def _count(where: Tensor) -> Tensor:
    return where.sum(dim=-1, dtype=torch.int32)


def _dense_ranks(logits: Tensor, target: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights and ranks of the first classes of each row; NaN scores come first and weigh nothing."""
    if most == 1:
        classes = logits.argmax(dim=1, keepdim=True)
    else:
        classes = logits.argsort(dim=1, descending=True, stable=True)[:, :most]
    weights = target.gather(1, classes).double().where(~logits.gather(1, classes).isnan(), 0.0)
    valid = ((target >= 0) & (target <= 1)).all(dim=1)
    return weights, torch.arange(most, device=logits.device).expand_as(classes), valid


def _check_topk(where: str, topk: Any, classes: int) -> None:
    if not isinstance(topk, (tuple, list)) or not topk:
        raise TypeError(f"{where}: expected topk to be a tuple such as (1, 5), got {describe(topk)}")
    for k in topk:
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= classes:
            raise ValueError(f"{where}: expected each of topk to be an integer in 1..{classes}, got {k!r}")
