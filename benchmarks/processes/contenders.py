"""Ways to the loss of a batch whose rows several processes hold: ours, and those that gather features or logits.

Every way gives this process a loss and the gradients of its features and of the classifier. As DistributedDataParallel
has it, the mean over processes of what depends on the gradients is that of one process with the whole batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
import torch.nn.functional as F
from torch import Tensor

import icm_fast as icm
from icm_fast import functional as F_icm

OURS = "icm_loss, process_group"
FEATURES = "features gathered"


class Problem(NamedTuple):
    """Rows of one process, or of all."""

    features: Tensor
    weight: Tensor
    target: icm.MixedTarget


Way = Callable[[Problem], Tensor]


def problem(rows: int, depth: int, classes: int, rank: int, dtype: torch.dtype) -> Problem:
    """The part of a rank; the classifier is the same on all."""
    generator = torch.Generator().manual_seed(1 + rank)
    features = torch.randn(rows, depth, generator=generator).to(dtype)
    y_a = torch.randint(classes, (rows,), generator=generator)
    target = icm.MixedTarget(y_a, y_a.roll(1), torch.rand(rows, generator=generator))
    weight = torch.randn(classes, depth, generator=torch.Generator().manual_seed(0)).to(dtype) / depth**0.5
    return Problem(features, weight, target)


def whole(parts: list[Problem]) -> Problem:
    """Of all ranks."""
    targets = [part.target for part in parts]
    joined = (torch.cat([getattr(target, name) for target in targets]) for name in ("y_a", "y_b", "lam"))
    return Problem(torch.cat([part.features for part in parts]), parts[0].weight, icm.MixedTarget(*joined))


def one_process(batch: Problem, axis: Any = "both") -> Tensor:
    """The truth."""
    logits = F.linear(batch.features, batch.weight)
    loss: Tensor = F_icm.icm_loss(logits, batch.target, axis=axis, backend="reference")
    return loss


def ours(part: Problem) -> Tensor:
    """Logits, then the loss."""
    loss: Tensor = F_icm.icm_loss(F.linear(part.features, part.weight), part.target, process_group=dist.group.WORLD)
    return loss


def ours_class_axis(part: Problem) -> Tensor:
    """The class axis alone, whose sums are local."""
    loss: Tensor = F_icm.icm_loss(
        F.linear(part.features, part.weight), part.target, axis="class", process_group=dist.group.WORLD
    )
    return loss


def ours_linear(part: Problem) -> Tensor:
    """Features and classifier given."""
    loss: Tensor = F_icm.linear_icm_loss(part.features, part.weight, part.target, process_group=dist.group.WORLD)
    return loss


def ours_dense(part: Problem) -> Tensor:
    """The same targets as a (B, C) array, which all must know whole."""
    dense = part.target.dense(len(part.weight), part.features.dtype)
    loss: Tensor = F_icm.icm_loss(F.linear(part.features, part.weight), dense, process_group=dist.group.WORLD)
    return loss


def features_gathered(part: Problem) -> Tensor:
    """The whole loss on every process: open_clip's local_loss=False."""
    loss: Tensor = F_icm.linear_icm_loss(_gathered(part.features), part.weight, _gathered_target(part.target))
    return loss


def features_gathered_local_loss(part: Problem) -> Tensor:
    """Own rows against all classifiers, own classifiers against all rows: open_clip's local_loss=True."""
    target = _gathered_target(part.target)
    every = _gathered(part.features)
    first = dist.get_rank() * len(part.features)
    own = torch.arange(first, first + len(part.features))
    classifiers = _mixed(part.weight, target)
    of_rows = F.cross_entropy(part.features @ classifiers.T, own)
    return of_rows + F.cross_entropy(classifiers[own] @ every.T, own)


def logits_gathered(part: Problem) -> Tensor:
    """The whole loss of gathered logits on every process."""
    logits = _gathered(F.linear(part.features, part.weight))
    loss: Tensor = F_icm.icm_loss(logits, _gathered_target(part.target))
    return loss


WAYS: dict[str, Way] = {
    OURS: ours,
    "linear_icm_loss, process_group": ours_linear,
    "icm_loss of dense targets, process_group": ours_dense,
    FEATURES: features_gathered,
    "features gathered, local loss": features_gathered_local_loss,
    "logits gathered": logits_gathered,
}
# Another loss: not raced.
CLASS_AXIS: dict[str, Way] = {"icm_loss of the class axis, process_group": ours_class_axis}


def step(way: Way, part: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, and gradients of features and classifier."""
    features, weight = (leaf.detach().requires_grad_() for leaf in (part.features, part.weight))
    loss = way(Problem(features, weight, part.target))
    of_features, of_weight = torch.autograd.grad(loss, (features, weight))
    return loss.detach(), of_features, of_weight


def _mixed(weight: Tensor, target: icm.MixedTarget) -> Tensor:
    lam = target.lam.to(weight.dtype)[:, None]
    return lam * weight[target.y_a] + (1 - lam) * weight[target.y_b]


def _gathered(rows: Tensor) -> Tensor:
    """What all have, with the gradient of what all did with it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch is about to rename it
        return torch.cat(differentiable.all_gather(rows))


def _gathered_target(target: icm.MixedTarget) -> icm.MixedTarget:
    return icm.MixedTarget(*map(_gathered_plainly, (target.y_a, target.y_b, target.lam)))


def _gathered_plainly(rows: Tensor) -> Tensor:
    of_all = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(of_all, rows)
    return torch.cat(of_all)
