"""Who is timed on a GPU. All get the same tensors; a result of the wrong value gets no time.

Families of rivals, as `--rivals` names them:

    plain           the authors' formulation and the index-gather one, and their likes for the other operations
    compile         torch.compile of those
    reduce-overhead, max-autotune    torch.compile of those in that mode
    liger           Liger's cross-entropy called twice, on Z and on its transpose, Z built by index-gather
    open_clip       ClipLoss of features and mixed classifiers, times two (it takes the mean of the axes)
    cross-entropy   F.cross_entropy with hard labels: another loss, to see what a step costs that mixes nothing
    ours            no rival: icm_fast alone
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from icm_fast import functional as F_icm
from icm_fast.testing import formulations

from ..speed.contenders import PLAIN_LOSSES
from ..speed.workloads import Workload
from .workloads import FROM_FEATURES, MIXING, RATE

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
    plain, leaves = _plain(workload), _leaves(workload)
    truth = workload.operation
    found: Contenders = {
        f"icm_fast {name}": Contender(_ours(workload, name), leaves, truth) for name in BACKENDS[device]
    }
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
            found |= _others(workload, family, leaves)
    return found


def _leaves(workload: Workload) -> tuple[Tensor, ...]:
    names = ("features", "classifier") if workload.operation == FROM_FEATURES else ("logits",)
    return tuple(workload.inputs[name] for name in names if name in workload.inputs)


def _ours(workload: Workload, backend: str) -> Callable[[], Tensor]:
    inputs = workload.inputs
    if workload.operation == MIXING:
        extra = {name: inputs[name] for name in ("mean", "std", "dtype") if name in inputs}
        return lambda: F_icm.mixup(inputs["x"], inputs["index"], inputs["lam"], backend=backend, **extra)
    target = inputs["target"]
    if workload.operation == "am_mixup_loss":
        return lambda: F_icm.am_mixup_loss(inputs["logits"], inputs["index"], RATE, target.y_a, backend=backend)
    if workload.operation == FROM_FEATURES:
        return lambda: F_icm.icm_loss(inputs["features"] @ inputs["classifier"].T, target, backend=backend)
    function = getattr(F_icm, workload.operation)
    return lambda: function(inputs["logits"], target, backend=backend)


def _plain(workload: Workload) -> dict[str, Callable[[], Tensor]]:
    """The operation as users write it, each a call without arguments that torch.compile takes too."""
    inputs = workload.inputs
    if workload.operation == MIXING:
        if "mean" in inputs:
            arguments = [inputs[name] for name in ("x", "index", "lam", "mean", "std", "dtype")]
            return {"eager": lambda: _mix_bytes(*arguments)}
        return {"eager": lambda: formulations.gathered_mixup(inputs["x"], inputs["index"], inputs["lam"])}
    target = inputs["target"]
    labels = (target.y_a, target.y_b, target.lam)
    if workload.operation == "am_mixup_loss":
        return {"eager": lambda: _mixed_rows_loss(inputs["logits"], inputs["index"], target.y_a)}
    if workload.operation == FROM_FEATURES:
        return {
            "logits, index-gather": lambda: formulations.index_gather(
                inputs["features"] @ inputs["classifier"].T, *labels
            ),
            "mixed classifiers": lambda: formulations.contrast(
                inputs["features"] @ _mixed_classifiers(inputs["classifier"], *labels).T
            ),
        }
    logits = inputs["logits"]
    losses: Mapping[str, Loss] = PLAIN_LOSSES[workload.operation]
    return {name: (lambda loss=loss: loss(logits, *labels)) for name, loss in losses.items()}  # type: ignore[misc]


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
        target = inputs["target"]
        loss = importlib.import_module("liger_kernel.transformers.cross_entropy").LigerCrossEntropyLoss()
        rows = torch.arange(len(target), device=target.device)

        def liger() -> Tensor:
            Z = formulations.gathered_scores(inputs["logits"], target.y_a, target.y_b, target.lam)
            turned = Z.T.contiguous()  # before the first call, which writes its gradient over Z
            return torch.as_tensor(loss(Z, rows) + loss(turned, rows))

        return {"Liger cross-entropy, twice": Contender(liger, leaves, operation)}
    if family == "open_clip" and operation == FROM_FEATURES:
        clip, target = importlib.import_module("open_clip.loss").ClipLoss(), inputs["target"]

        def clip_loss() -> Tensor:
            mixed = _mixed_classifiers(inputs["classifier"], target.y_a, target.y_b, target.lam)
            return torch.as_tensor(2 * clip(inputs["features"], mixed, 1.0))

        return {"open_clip ClipLoss": Contender(clip_loss, leaves, operation)}
    if family == "cross-entropy" and operation == "icm_loss" and len(inputs["target"]) <= CROSS_ENTROPY_ROWS:
        labels = inputs["target"].y_a
        call = lambda: F.cross_entropy(inputs["logits"].float(), labels)  # noqa: E731
        return {"F.cross_entropy, hard labels": Contender(call, leaves, "cross_entropy")}
    return {}


def _mixed_rows_loss(logits: Tensor, index: Tensor, labels: Tensor) -> Tensor:
    """AM-Mixup's loss at a rate of at least 1/2."""
    S = logits if logits.dtype == torch.float32 else logits.float()
    return F.cross_entropy(RATE * S + (1 - RATE) * S[index], labels)


def _mix_bytes(x: Tensor, index: Tensor, lam: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """Normalised, then mixed, as a data pipeline does it."""
    normal = (x.float() / 255 - mean[:, None, None]) / std[:, None, None]
    return formulations.gathered_mixup(normal, index, lam).to(dtype)


def _mixed_classifiers(classifier: Tensor, y_a: Tensor, y_b: Tensor, lam: Tensor) -> Tensor:
    """(B, D): the classifier of each mixed class (paper, equation 2)."""
    w: Any = lam.to(classifier.dtype).expand(len(y_a))[:, None]
    return torch.as_tensor(w * classifier[y_a] + (1 - w) * classifier[y_b])
