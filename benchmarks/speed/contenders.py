"""Who is timed: icm_fast and its rivals, each a function of no arguments that does the whole step.

A loss contender runs forward and backward and returns the loss and the gradients; a mixing contender returns the batch.
All work on the same tensors. The first is icm_fast itself; what else has its name are its options, or what it offers to
the same end. One that cannot run stands there with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast import reference
from icm_fast.operators._library import REDUCTIONS, accumulation_type, overload
from icm_fast.operators.icm_loss import AXES
from icm_fast.testing import formulations

from . import peers
from .floor import FLOOR, MEASURED, floor
from .suite import is_of_ours_alone
from .truths import Judge, Labels, Loss, against, function, given, of_loss, sampled, truth
from .workloads import ONE_LAM, PARTNERS, Spec, Workload

Step = Callable[[], Any]
OURS = "icm_fast"
COMPILED = "torch.compile"
KERNELS = f"{OURS} kernels alone"
UNMIXED = "F.cross_entropy, labels unmixed"

# What a contender is.
RIVAL, OURSELVES, BOUND = "rival", "ours", "floor"
OTHER = "another task"  # in the same run, to compare a step with: nobody's rival


@dataclass(frozen=True)
class Contender:
    """`make` builds the step for a workload; `judge` tells its result's error, None of what has no result."""

    make: Callable[[Workload], Step]
    role: str = RIVAL
    judge: Judge | None = truth


Contenders = dict[str, Contender | str]


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


def contenders(spec: Spec, compiled: bool = True) -> Contenders:
    """Every contender for a workload, rivals where they take no minutes; compiled ones compile at their first call."""
    from . import mixers  # which needs Contender

    if is_of_ours_alone(spec):
        loss = _making(F_icm.icm_loss, given)
        return {OURS: Contender(loss, OURSELVES, sampled)}
    if spec.operation != "mixup":
        return _losses(spec, compiled)
    return (mixers.whole_calls if spec.variant in PARTNERS else mixers.mixers)(spec, compiled)


def labels(workload: Workload) -> tuple[Tensor, ...]:
    """The target, as plain torch takes it."""
    (target,) = given(workload) or (None,)
    if isinstance(target, icm.MixedTarget):
        return target.y_a, target.y_b, target.lam
    return () if target is None else (target,)


def _lam_of_batch(workload: Workload) -> list[icm.MixedTarget]:
    """The target with one lam."""
    target = workload.inputs["target"]
    return [icm.MixedTarget(target.y_a, target.y_b, target.lam.mean())]


def _own_labels(workload: Workload) -> tuple[Tensor]:
    """Those of the samples, unmixed."""
    return (workload.inputs["target"].y_a,)


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


def plain_steps(workload: Workload) -> dict[str, Step]:
    """A step of each loss in plain torch."""
    plain = PLAIN_LOSSES[workload.operation]
    return {name: step(loss, workload.leaves, *labels(workload)) for name, loss in plain.items()}


def _making(loss: Loss, target: Labels = labels, **options: Any) -> Callable[[Workload], Step]:
    return lambda workload: step(loss, workload.leaves, *target(workload), **options)


def _compiling(loss: Loss) -> Callable[[Workload], Step]:
    return lambda workload: _making(torch.compile(loss, dynamic=False))(workload)


def _losses(spec: Spec, compiled: bool) -> Contenders:
    fused, plain = function(spec.operation), PLAIN_LOSSES[spec.operation]
    found: Contenders = {OURS: Contender(_making(fused, given), OURSELVES)}
    if spec.operation == "linear_icm_loss":
        found[f"{OURS} sparse_grad=True"] = Contender(_making(fused, given, sparse_grad=True), OURSELVES)
        full = _making(_of_full_logits(F_icm.icm_loss), given)
        found[f"{OURS} icm_loss of full logits"] = Contender(full, OURSELVES)
    if spec.operation == "icm_loss":
        found |= _other_tasks(spec)
    found |= {name: Contender(_making(loss)) for name, loss in plain.items()}
    if compiled:
        found |= {f"{COMPILED} {name}": Contender(_compiling(loss)) for name, loss in plain.items()}
    found |= _of_others(spec)
    if spec.operation in MEASURED:
        found[FLOOR] = Contender(floor, BOUND, judge=None)
    return found


def _other_tasks(spec: Spec) -> Contenders:
    """Ours without Python, on one axis, or with one lam for the batch, and what a step costs that mixes nothing."""
    found: Contenders = {KERNELS: Contender(_kernels, OTHER)}
    for axis in ("class", "pair"):
        exact = against(of_loss(reference.icm_loss, given, axis=axis))
        found[f"{OURS} axis={axis}"] = Contender(_making(F_icm.icm_loss, given, axis=axis), OTHER, exact)
    if spec.variant != ONE_LAM:
        exact = against(of_loss(reference.icm_loss, _lam_of_batch))
        found[f"{OURS} one lam for the batch"] = Contender(_making(F_icm.icm_loss, _lam_of_batch), OTHER, exact)
    exact = against(of_loss(F.cross_entropy, _own_labels))
    found[UNMIXED] = Contender(_making(_wide_cross_entropy, _own_labels), OTHER, exact)
    return found


def _kernels(workload: Workload) -> Step:
    """The two calls of operators, below autograd."""
    logits, target = workload.inputs["logits"].detach(), workload.inputs["target"]
    given_to_both = (logits, target.y_a, target.y_b, target.lam, None)
    options = (0, *AXES["both"], REDUCTIONS["mean"])
    forward, backward = overload("icm_loss_fwd", "cpu"), overload("icm_loss_bwd", "cpu")
    grad = torch.ones((), dtype=accumulation_type(logits.dtype))
    icm.backends()  # loads the kernels

    def run() -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            loss, _, *saved = forward(*given_to_both, *options)
            dlogits, _ = backward(grad, grad, *given_to_both, *saved, *options, False)
        return loss, dlogits

    return run


def _wide_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """In float32, as under autocast."""
    return F.cross_entropy(logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits, y)


def _of_others(spec: Spec) -> Contenders:
    """Programs of other libraries."""
    if spec.operation == "icm_loss":
        return {"Liger cross-entropy, twice": "not run: needs a GPU, its kernels are Triton's"}
    if spec.operation == "contrastive_loss":
        name = "open_clip ClipLoss"
        return {name: peers.missing("open_clip") or Contender(_clip)}
    return {}


def _clip(workload: Workload) -> Step:
    """Times two: it takes the mean of the axes."""
    clip = peers.load_file("open_clip", "loss.py").ClipLoss()
    return step(lambda x, y, scale: 2 * clip(x, y, scale), workload.leaves)
