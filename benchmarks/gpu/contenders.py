"""Who is timed on a GPU. All get the same tensors; a result of the wrong value gets no time.

Families of rivals, as `--rivals` names them:

    plain           the authors' formulation and the index-gather one, and their likes for the other operations
    compile         torch.compile of those
    reduce-overhead, max-autotune    torch.compile of those in that mode
    liger           Liger's cross-entropy called twice, on Z and on its transpose, Z built by index-gather; of features
                    and mixed classifiers, or two views, its fused linear one, either as the classifier of the other
    open_clip       ClipLoss of such views, times two (it takes the mean of the axes)
    cross-entropy   F.cross_entropy with hard labels: another loss, to see what a step costs that mixes nothing
    ours            no rival: icm_fast alone. For linear_icm_loss F.linear and icm_loss take part as well
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from icm_fast import functional as F_icm
from icm_fast.testing import formulations

from ..speed.contenders import PLAIN_LOSSES
from ..speed.mixers import mix_bytes
from ..speed.workloads import Workload
from .workloads import LINEAR, MIXING, PRODUCTS, RATE, VIEWS, backends_of

OURS = "ours"
COMPILED = {"compile": "default", "reduce-overhead": "reduce-overhead", "max-autotune": "max-autotune"}
FAMILIES = ("plain", "liger", "open_clip", "cross-entropy", *COMPILED)
MODULES = {"liger": "liger_kernel", "open_clip": "open_clip"}
BACKENDS = {"cuda": ("cuda", "triton"), "cpu": ("cpu",)}
CROSS_ENTROPY_ROWS = 1024  # beyond, B x B decides and the comparison says nothing
Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Contender:
    """`forward` makes the loss of the leaves, or mixes. `truth` names what its result must be equal to."""

    forward: Callable[[], Tensor]
    leaves: tuple[Tensor, ...]
    truth: str
    is_graph: bool = False  # it replays a graph of its own, so that none is captured around it


Contenders = dict[str, Contender | str]


def contenders(workload: Workload, families: Iterable[str], device: str) -> Contenders:
    """Ours, then those of the families; a reason instead of one that cannot run."""
    plain, leaves = _plain(workload), tuple(workload.leaves)
    truth = workload.operation
    ours = _ours(workload, BACKENDS[device])
    found: Contenders = {f"icm_fast {name}": Contender(call, leaves, truth) for name, call in ours.items()}
    for family in families:
        if family == OURS:
            continue
        if family in MODULES and importlib.util.find_spec(MODULES[family]) is None:
            found[family] = f"not run: {MODULES[family]} is not installed"
        elif family == "plain":
            found |= {name: Contender(call, leaves, truth) for name, call in plain.items()}
        elif family in COMPILED:
            found |= _compiled(plain, leaves, truth, family)
        else:
            try:
                found |= _others(workload, family, leaves)
            except (ImportError, RuntimeError) as error:  # it is there, but what it needs itself is not
                found[family] = f"not run: {MODULES.get(family, family)} is not usable: {error}"
    return found


def _ours(workload: Workload, backends: Sequence[str]) -> dict[str, Callable[[], Tensor]]:
    """Calls by backend, with what else of ours comes to the same."""
    call = _call(workload)
    found: dict[str, Callable[[], Tensor]] = {
        name: functools.partial(call, backend=name) for name in backends_of(workload.operation, backends)
    }
    if workload.operation == LINEAR:
        features, weight, target = (workload.inputs[name] for name in ("features", "weight", "target"))
        for name in backends:
            found[f"{name}, icm_loss of full logits"] = functools.partial(
                lambda backend: F_icm.icm_loss(F.linear(features, weight), target, backend=backend), name
            )
    return found


def _call(workload: Workload) -> Callable[..., Tensor]:
    """Our function, but for its backend."""
    inputs = workload.inputs
    if workload.operation == MIXING:
        extra = {name: inputs[name] for name in ("mean", "std", "dtype") if name in inputs}
        return functools.partial(F_icm.mixup, inputs["x"], inputs["index"], inputs["lam"], **extra)
    if workload.operation == VIEWS:
        return functools.partial(F_icm.contrastive_loss, *workload.leaves)
    target = inputs["target"]
    if workload.operation == "am_mixup_loss":
        return functools.partial(F_icm.am_mixup_loss, inputs["logits"], inputs["index"], RATE, target.y_a)
    function: Callable[..., Tensor] = getattr(F_icm, workload.operation)
    return functools.partial(function, *workload.leaves, target)


def _plain(workload: Workload) -> dict[str, Callable[[], Tensor]]:
    """The operation as users write it, each a call without arguments that torch.compile takes too."""
    inputs = workload.inputs
    if workload.operation == MIXING:
        if "mean" in inputs:
            arguments = [inputs[name] for name in ("x", "index", "lam", "mean", "std")]
            return {"eager": lambda: mix_bytes(*arguments).to(inputs["dtype"])}
        return {"eager": lambda: formulations.gathered_mixup(inputs["x"], inputs["index"], inputs["lam"])}
    if workload.operation == VIEWS:
        return {"two cross-entropies": lambda: _contrast(*workload.leaves)}
    target = inputs["target"]
    if workload.operation == "am_mixup_loss":
        return {"eager": lambda: _mixed_rows_loss(inputs["logits"], inputs["index"], target.y_a)}
    given = [*workload.leaves, *([None] if workload.operation == LINEAR else []), target.y_a, target.y_b, target.lam]
    losses: Mapping[str, Loss] = PLAIN_LOSSES[workload.operation]
    found: dict[str, Callable[[], Tensor]] = {
        name: (lambda loss=loss: loss(*given))  # type: ignore[misc]
        for name, loss in losses.items()
    }
    if workload.operation == LINEAR:
        found["mixed classifiers"] = lambda: _contrast(*_views(workload))
    return found


def _views(workload: Workload) -> tuple[Tensor, Tensor, Tensor | float]:
    """Two views and their scale; of a classifier, the features and the mixed classifiers (paper, equation 2)."""
    if workload.operation == VIEWS:
        x, y, scale = workload.leaves
        return x, y, scale
    features, weight = workload.leaves
    target = workload.inputs["target"]
    w = target.lam.expand(len(target))[:, None]
    return features, (w * weight[target.y_a] + (1 - w) * weight[target.y_b]).to(weight.dtype), 1.0


def _contrast(x: Tensor, y: Tensor, scale: Tensor | float) -> Tensor:
    """Softmax in float32, as autocast has it."""
    return formulations.contrast((x @ y.T).float() * scale)


def _compiled(
    plain: Mapping[str, Callable[[], Tensor]], leaves: tuple[Tensor, ...], truth: str, family: str
) -> Contenders:
    """torch.compile in one mode; all but the default replay graphs of their own."""
    mode = COMPILED[family]
    return {
        f"torch.compile {name} ({mode})": Contender(
            torch.compile(call, mode=mode, dynamic=False), leaves, truth, is_graph=mode != "default"
        )
        for name, call in plain.items()
    }


def _others(workload: Workload, family: str, leaves: tuple[Tensor, ...]) -> Contenders:
    """Programs of others, where they compute the same loss or one to compare a step with."""
    inputs, operation = workload.inputs, workload.operation
    if family == "liger" and operation == "icm_loss":
        return {"Liger cross-entropy, twice": Contender(_liger(workload), leaves, operation)}
    if family == "liger" and operation in PRODUCTS:
        return {"Liger fused linear cross-entropy, twice": Contender(_liger_linear(workload), leaves, operation)}
    if family == "open_clip" and operation in PRODUCTS:
        clip = importlib.import_module("open_clip.loss").ClipLoss()
        return {"open_clip ClipLoss": Contender(lambda: 2 * clip(*_views(workload)), leaves, operation)}
    if family == "cross-entropy" and operation == "icm_loss" and len(inputs["target"]) <= CROSS_ENTROPY_ROWS:
        labels = inputs["target"].y_a
        call = lambda: F.cross_entropy(inputs["logits"].float(), labels)  # noqa: E731
        return {"F.cross_entropy, hard labels": Contender(call, leaves, "cross_entropy")}
    return {}


def _liger(workload: Workload) -> Callable[[], Tensor]:
    loss = importlib.import_module("liger_kernel.transformers.cross_entropy").LigerCrossEntropyLoss()
    target = workload.inputs["target"]
    rows = torch.arange(len(target), device=target.device)

    def call() -> Tensor:
        Z = formulations.gathered_scores(workload.inputs["logits"], target.y_a, target.y_b, target.lam)
        turned = Z.T.contiguous()  # before the first call, which writes its gradient over Z
        return torch.as_tensor(loss(Z, rows) + loss(turned, rows))

    return call


def _liger_linear(workload: Workload) -> Callable[[], Tensor]:
    """It has no logit_scale: one view is scaled."""
    module = importlib.import_module("liger_kernel.transformers.fused_linear_cross_entropy")
    loss = module.LigerFusedLinearCrossEntropyLoss()
    rows = torch.arange(workload.size[0], device=workload.leaves[0].device)

    def call() -> Tensor:
        x, y, scale = _views(workload)
        scaled = (x * scale).to(x.dtype)
        return torch.as_tensor(loss(y, scaled, rows) + loss(scaled, y, rows))

    return call


def _mixed_rows_loss(logits: Tensor, index: Tensor, labels: Tensor) -> Tensor:
    """AM-Mixup's loss at a rate of at least 1/2."""
    S = logits if logits.dtype == torch.float32 else logits.float()
    return F.cross_entropy(RATE * S + (1 - RATE) * S[index], labels)
