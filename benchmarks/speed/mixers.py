"""Who mixes images: icm_fast, plain torch, timm and torchvision, the last two through their public interface."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast.testing import formulations

from . import peers
from .contenders import BOUND, COMPILED, OURS, OURSELVES, Contender, Contenders, Step
from .floor import COPY
from .truths import drawn
from .workloads import DRAWN_CLASSES, FLIPPED, PARTNERS, Spec, Workload

ALPHA = 0.8
BYTES_OF_TORCHVISION = "torchvision ToDtype, Normalize, then eager"
WHOLE_OF_TORCHVISION = "torchvision ToDtype, Normalize, MixUp"


def mix_bytes(x: Tensor, index: Tensor, lam: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalised, then mixed, as a data pipeline does it."""
    return formulations.gathered_mixup((x.float() / 255 - mean[:, None, None]) / std[:, None, None], index, lam)


def mixers(spec: Spec, compiled: bool) -> Contenders:
    """With index and lam given: the mixing alone."""
    plain = mix_bytes if spec.dtype == "uint8" else formulations.gathered_mixup
    found: Contenders = {
        OURS: Contender(_ours, OURSELVES),
        f"{OURS} out=": Contender(_into_memory, OURSELVES),
        "eager": Contender(lambda workload: lambda: plain(*workload.inputs.values())),
    }
    if compiled:
        found[f"{COMPILED} eager"] = Contender(lambda workload: _compiled(plain, *workload.inputs.values()))
    if spec.dtype == "uint8":
        found[BYTES_OF_TORCHVISION] = peers.missing("torchvision") or Contender(_torchvision_pixels)
    return found | {COPY: Contender(_copy, BOUND, judge=None)}


def _ours(workload: Workload) -> Step:
    inputs = workload.inputs
    x, index, lam = (inputs[name] for name in ("x", "index", "lam"))
    pixels = {name: inputs[name] for name in ("mean", "std") if name in inputs}
    return lambda: F_icm.mixup(x, index, lam, **pixels)


def _result(workload: Workload) -> Tensor:
    """Memory for it."""
    x: Tensor = workload.inputs["x"]
    return torch.empty(x.shape, dtype=torch.float32 if x.dtype == torch.uint8 else x.dtype)


def _into_memory(workload: Workload) -> Step:
    inputs, out = workload.inputs, _result(workload)
    x, index, lam = (inputs[name] for name in ("x", "index", "lam"))
    pixels = {name: inputs[name] for name in ("mean", "std") if name in inputs}
    return lambda: F_icm.mixup(x, index, lam, **pixels, out=out)


def _copy(workload: Workload) -> Step:
    x, out = workload.inputs["x"], _result(workload)
    return lambda: out.copy_(x)


def _compiled(function: Callable[..., Any], *arguments: Any) -> Step:
    compilation = torch.compile(function, dynamic=False)
    return lambda: compilation(*arguments)


def _torchvision_pixels(workload: Workload) -> Step:
    x, index, lam, mean, std = workload.inputs.values()
    v2 = peers.load("torchvision.transforms.v2")
    pixels = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean.tolist(), std.tolist())])
    return lambda: formulations.gathered_mixup(pixels(x), index, lam)


def whole_calls(spec: Spec, compiled: bool) -> Contenders:
    """Images and labels in, mixed images and a target out, with a lam for the batch that is drawn in the call.

    timm and torchvision return dense targets: ours is timed with either kind.
    """
    partners = PARTNERS[spec.variant]
    mix = _as_users_write_it(partners)
    pairing = "flip" if spec.variant == FLIPPED else "roll"
    found: Contenders = {
        OURS: Contender(lambda workload: _mixup(workload, pairing=pairing), OURSELVES, drawn),
        f"{OURS} target=dense": Contender(
            lambda workload: _mixup(workload, pairing=pairing, target="dense", num_classes=DRAWN_CLASSES),
            OURSELVES,
            drawn,
        ),
        "eager": Contender(lambda workload: _drawing(workload, partners, mix), judge=drawn),
    }
    if compiled:
        found[f"{COMPILED} eager"] = Contender(
            lambda workload: _drawing(workload, partners, torch.compile(mix, dynamic=False)), judge=drawn
        )
    if spec.variant == FLIPPED:
        found["timm Mixup, in place"] = peers.missing("timm") or Contender(_timm, judge=drawn)
    else:
        name = WHOLE_OF_TORCHVISION if spec.dtype == "uint8" else "torchvision MixUp"
        found[name] = peers.missing("torchvision") or Contender(_torchvision, judge=drawn)
    return found


def _mixup(workload: Workload, **options: Any) -> Step:
    x, labels = workload.inputs["x"], workload.inputs["labels"]
    pixels = {name: workload.inputs[name] for name in ("mean", "std") if name in workload.inputs}
    mix = icm.Mixup(mixup_alpha=ALPHA, **pixels, **options)
    return lambda: mix(x, labels)


def _as_users_write_it(partners: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def mix(x: Tensor, lam: Tensor, mean: Tensor | None = None, std: Tensor | None = None) -> Tensor:
        if mean is not None and std is not None:
            x = (x.float() / 255 - mean[:, None, None]) / std[:, None, None]
        return lam * x + (1 - lam) * partners(x)

    return mix


def _drawing(workload: Workload, partners: Callable[[Tensor], Tensor], mix: Callable[..., Tensor]) -> Step:
    """The lines that most programs have, with the partner's labels beside the sample's."""
    x, labels = workload.inputs["x"], workload.inputs["labels"]
    pixels = [workload.inputs[name] for name in ("mean", "std") if name in workload.inputs]

    def run() -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        lam = torch.tensor(random.betavariate(ALPHA, ALPHA))
        return mix(x, lam, *pixels), (labels, partners(labels), lam)

    return run


def _timm(workload: Workload) -> Step:
    """On images of its own, which it mixes again at every call."""
    mix = peers.load("timm.data").Mixup(mixup_alpha=ALPHA, label_smoothing=0.0, num_classes=DRAWN_CLASSES)
    x, labels = workload.inputs["x"].clone(), workload.inputs["labels"]
    return lambda: mix(x, labels)


def _torchvision(workload: Workload) -> Step:
    inputs, v2 = workload.inputs, peers.load("torchvision.transforms.v2")
    mix = v2.MixUp(alpha=ALPHA, num_classes=DRAWN_CLASSES)
    if "mean" in inputs:
        mean, std = inputs["mean"].tolist(), inputs["std"].tolist()
        mix = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std), mix])
    return lambda: mix(inputs["x"], inputs["labels"])
