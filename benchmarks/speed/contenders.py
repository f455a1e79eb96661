"""Who is timed: icm_fast and its rivals, each a function of no arguments that does the whole step.

A loss contender runs forward and backward and returns (loss, gradient); a mixing contender returns the batch. All
work on the same tensors. The first entry of each table is icm_fast itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from icm_fast import functional as F_icm
from icm_fast.testing import formulations

from .workloads import Workload

Step = Callable[[], Any]
OURS = "icm_fast"


def _dense(logits: Tensor, y_a: Tensor, y_b: Tensor, lam: Tensor) -> Tensor:
    """Cross-entropy with a dense two-hot target built at every step."""
    num_classes, w = logits.shape[1], lam.expand(logits.shape[0])[:, None]
    return F.cross_entropy(logits, w * F.one_hot(y_a, num_classes) + (1 - w) * F.one_hot(y_b, num_classes))


# Operation -> the loss in plain torch, called with logits, y_a, y_b and lam.
PLAIN_LOSSES: dict[str, dict[str, Callable[..., Tensor]]] = {
    "icm_loss": {"authors' formulation": formulations.authors, "index-gather": formulations.index_gather},
    "mixup_cross_entropy": {"two cross-entropies": formulations.two_cross_entropies, "dense target": _dense},
}


def contenders(workload: Workload, compiled: bool) -> dict[str, Step]:
    """Every contender for a workload; compiled ones compile at their first call."""
    if workload.operation == "mixup":
        return _mixers(workload, compiled)
    return _losses(workload, compiled)


def truth(workload: Workload) -> Any:
    """The reference's result in float64, as a contender returns it."""
    from icm_fast import reference

    inputs = workload.inputs
    if workload.operation == "mixup":
        return reference.mixup(inputs["x"].double(), inputs["index"], inputs["lam"])
    leaf = inputs["logits"].detach().double().requires_grad_()
    loss = getattr(reference, workload.operation)(leaf, inputs["target"])
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def _losses(workload: Workload, compiled: bool) -> dict[str, Step]:
    logits, target = workload.inputs["logits"], workload.inputs["target"]
    labels = (target.y_a, target.y_b, target.lam)
    fused = getattr(F_icm, workload.operation)
    plain = PLAIN_LOSSES[workload.operation]

    def step(loss_of: Callable[..., Tensor], *arguments: Any) -> Step:
        def run() -> tuple[Tensor, Tensor]:
            logits.grad = None
            loss = loss_of(logits, *arguments)
            loss.backward()
            return loss.detach(), logits.grad

        return run

    steps = {OURS: step(fused, target)}
    steps |= {name: step(loss, *labels) for name, loss in plain.items()}
    if compiled:
        steps |= {
            f"torch.compile {name}": step(torch.compile(loss, dynamic=False), *labels) for name, loss in plain.items()
        }
    return steps


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
