"""Who is timed: icm_fast and its rivals, each a function of no arguments that does the whole step.

A loss contender runs forward and backward and returns the loss and the gradients; a mixing contender returns the batch.
All work on the same tensors. The first entry of each table is icm_fast itself; others with its name are its options, or
what it offers to the same end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast import reference
from icm_fast.testing import formulations

from .floor import FLOOR, floor
from .workloads import Workload

Step = Callable[[], Any]
Loss = Callable[..., Tensor]
OURS = "icm_fast"


def _dense(logits: Tensor, y_a: Tensor, y_b: Tensor, lam: Tensor) -> Tensor:
    """Cross-entropy with a dense two-hot target built at every step."""
    num_classes, w = logits.shape[1], lam.expand(logits.shape[0])[:, None]
    return F.cross_entropy(logits, w * F.one_hot(y_a, num_classes) + (1 - w) * F.one_hot(y_b, num_classes))


def _of_full_logits(loss: Loss) -> Loss:
    """The loss of a classifier, from a loss of its logits."""
    return lambda features, weight, bias, *target: loss(F.linear(features, weight, bias), *target)


def _of_views(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    return formulations.contrast(x @ y.T * scale)


def _of_dense_target(logits: Tensor, target: Tensor) -> Tensor:
    return formulations.contrast(logits @ target.T)


# Operation -> the loss in plain torch, called with the leaves of the workload and its labels: y_a, y_b and lam, or a
# dense target.
PLAIN_LOSSES: dict[str, dict[str, Loss]] = {
    "icm_loss": {"authors' formulation": formulations.authors, "index-gather": formulations.index_gather},
    "mixup_cross_entropy": {"two cross-entropies": formulations.two_cross_entropies, "dense target": _dense},
    "linear_icm_loss": {
        "authors' formulation": _of_full_logits(formulations.authors),
        "index-gather": _of_full_logits(formulations.index_gather),
    },
    "contrastive_loss": {"two cross-entropies": _of_views},
    "icm_loss_dense": {"two cross-entropies": _of_dense_target},
}


def contenders(workload: Workload, compiled: bool) -> dict[str, Step]:
    """Every contender for a workload; compiled ones compile at their first call."""
    if workload.operation == "mixup":
        return _mixers(workload, compiled)
    return _losses(workload, compiled)


def truth(workload: Workload) -> Any:
    """The reference's result in float64, as a contender returns it."""
    inputs = workload.inputs
    if workload.operation == "mixup":
        return reference.mixup(inputs["x"].double(), inputs["index"], inputs["lam"])
    leaves = [leaf.detach().double().requires_grad_() for leaf in workload.leaves]
    loss = function(workload.operation, reference)(*leaves, *_target(workload))
    return loss.detach(), *torch.autograd.grad(loss, leaves)


def function(operation: str, functions: Any = F_icm) -> Loss:
    """The function of an operation, ours or the reference's, called with the leaves and the target."""
    if operation == "linear_icm_loss":
        loss = functions.linear_icm_loss
        return lambda features, weight, bias, target, **options: loss(features, weight, target, bias, **options)
    found: Loss = getattr(functions, operation.removesuffix("_dense"))
    return found


def _target(workload: Workload) -> list[Any]:
    return [workload.inputs["target"]] if "target" in workload.inputs else []


def _labels(target: icm.MixedTarget | Tensor | None = None) -> tuple[Tensor, ...]:
    """A target as plain torch takes it."""
    if isinstance(target, icm.MixedTarget):
        return target.y_a, target.y_b, target.lam
    return () if target is None else (target,)


def step(loss_of: Loss, leaves: Sequence[Tensor], *target: Any, **options: Any) -> Step:
    """Forward and backward; returns the loss and the gradients of the leaves."""

    def run() -> tuple[Tensor | None, ...]:
        loss = loss_of(*leaves, *target, **options)
        loss.backward()
        result = loss.detach(), *(leaf.grad for leaf in leaves)
        # Here, not before the next call: what a call holds when it ends would be no extra memory of the next.
        for leaf in leaves:
            leaf.grad = None
        return result

    return run


def _losses(workload: Workload, compiled: bool) -> dict[str, Step]:
    leaves, given = workload.leaves, _target(workload)
    labels = _labels(*given)
    fused = function(workload.operation)
    plain = PLAIN_LOSSES[workload.operation]

    steps = {OURS: step(fused, leaves, *given)}
    if workload.operation == "linear_icm_loss":
        steps[f"{OURS} sparse_grad=True"] = step(fused, leaves, *given, sparse_grad=True)
        steps[f"{OURS} icm_loss of full logits"] = step(_of_full_logits(F_icm.icm_loss), leaves, *given)
    steps |= {name: step(loss, leaves, *labels) for name, loss in plain.items()}
    if compiled:
        for name, loss in plain.items():
            steps[f"torch.compile {name}"] = step(torch.compile(loss, dynamic=False), leaves, *labels)
    least = floor(workload)
    return steps if least is None else steps | {FLOOR: least}


def _mixers(workload: Workload, compiled: bool) -> dict[str, Step]:
    x, index, lam = (workload.inputs[name] for name in ("x", "index", "lam"))
    steps: dict[str, Step] = {
        OURS: lambda: F_icm.mixup(x, index, lam),
        "eager": lambda: formulations.gathered_mixup(x, index, lam),
    }
    if compiled:
        compiled_mix = torch.compile(formulations.gathered_mixup, dynamic=False)
        steps["torch.compile eager"] = lambda: compiled_mix(x, index, lam)
    return steps
