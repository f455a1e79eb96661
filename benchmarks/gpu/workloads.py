"""What is timed, by name: an operation, a size, a type, and whether the batch has one lam.

icm_loss-4096x1000, icm_loss-16384x1000-one_lam, icm_loss-65536x21841-bfloat16, mixup-256x3x224x224-uint8-bfloat16.
linear_icm_loss-4096x1000x512 is of features (B, D) and a classifier (C, D), contrastive_loss-4096x512 of views (B, K).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..speed.workloads import Workload, loss_workload, mixup_workload

LOSSES = ("icm_loss", "mixup_cross_entropy", "am_mixup_loss")
LINEAR, VIEWS = "linear_icm_loss", "contrastive_loss"
PRODUCTS = (LINEAR, VIEWS)  # made of matrix products, which are the framework's
MIXING = "mixup"
DIMENSIONS = {**dict.fromkeys(LOSSES, 2), LINEAR: 3, VIEWS: 2, MIXING: 4}
DTYPES = ("float32", "bfloat16", "float16", "uint8")
ONE_LAM = "one_lam"
RATE = 0.75  # of AM-Mixup
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def backends_of(operation: str, names: Iterable[str]) -> tuple[str, ...]:
    """Those of the backends that an operation has; `auto` for cuda, where it takes kernels of cuda for a part only."""
    if operation in PRODUCTS:
        names = ("auto" if name == "cuda" else name for name in names if name != "cuda" or operation == LINEAR)
    return tuple(names)


@dataclass(frozen=True)
class Spec:
    """One workload. `out_dtype`: what bytes are mixed to."""

    operation: str
    size: tuple[int, ...]
    dtype: str = "float32"
    out_dtype: str | None = None
    one_lam: bool = False

    @property
    def name(self) -> str:
        """As in the first lines of this file."""
        parts = [self.operation, "x".join(map(str, self.size))]
        parts += [self.dtype] if self.dtype != "float32" else []
        parts += [self.out_dtype] if self.out_dtype else []
        parts += [ONE_LAM] if self.one_lam else []
        return "-".join(parts)

    @property
    def result_dtype(self) -> torch.dtype:
        """Of what is written: a gradient, or mixed samples."""
        dtype: torch.dtype = getattr(torch, self.out_dtype or ("float32" if self.dtype == "uint8" else self.dtype))
        return dtype

    @property
    def has_gradient(self) -> bool:
        """Whether forward and backward are timed."""
        return self.operation != MIXING

    @classmethod
    def parse(cls, name: str) -> Spec:
        """The workload of that name.

        Raises:
            ValueError: a name of another form.
        """
        operation, _, tail = name.partition("-")
        size_text, *rest = tail.split("-")
        try:
            size = tuple(int(part) for part in size_text.split("x"))
        except ValueError:
            size = ()
        one_lam = ONE_LAM in rest
        dtypes = [word for word in rest if word != ONE_LAM]
        if len(size) != DIMENSIONS.get(operation) or min(size) < 1 or not set(dtypes) <= set(DTYPES) or len(dtypes) > 2:
            raise ValueError(
                f"unknown workload {name!r}; expected OPERATION-SIZE[-TYPE][-{ONE_LAM}] such as {TARGETS[0].name} "
                f"with an operation of {', '.join(DIMENSIONS)} and types of {', '.join(DTYPES)}"
            )
        dtype, out_dtype = (*dtypes, *("float32", "")[len(dtypes) :])
        return cls(operation, size, dtype, out_dtype or None, one_lam)


# The sizes that targets are set for (README, design).
TARGETS: tuple[Spec, ...] = (
    Spec("icm_loss", (128, 100)),
    Spec("icm_loss", (1024, 1000)),
    Spec("icm_loss", (4096, 1000)),
    Spec("icm_loss", (16384, 1000)),
    Spec("icm_loss", (128, 100), one_lam=True),
    Spec("icm_loss", (1024, 1000), one_lam=True),
    Spec("icm_loss", (4096, 1000), one_lam=True),
    Spec("icm_loss", (16384, 1000), one_lam=True),
    Spec("icm_loss", (65536, 21841), "bfloat16"),
    Spec(MIXING, (256, 3, 224, 224)),
    Spec(MIXING, (256, 3, 224, 224), "uint8", "bfloat16"),
    Spec("mixup_cross_entropy", (128, 100)),
    Spec("mixup_cross_entropy", (4096, 1000)),
    Spec("am_mixup_loss", (128, 100)),
    Spec("am_mixup_loss", (4096, 1000)),
    Spec(LINEAR, (4096, 1000, 512)),
    Spec(LINEAR, (65536, 1000, 512), "bfloat16"),  # 1.4 times the floor
    Spec(LINEAR, (65536, 100_000, 512), "bfloat16"),  # 36 ms, and no more memory than gradients and a block
    Spec(VIEWS, (4096, 512)),
    Spec(VIEWS, (65536, 512), "bfloat16"),
)


def chosen(names: Sequence[str] | None) -> list[Spec]:
    """The targets, or those of the given names or sizes; a size that is no target is one of icm_loss.

    Raises:
        ValueError: neither a name nor a size.
    """
    if not names:
        return list(TARGETS)
    specs: list[Spec] = []
    for name in names:
        known = [spec for spec in TARGETS if name in (spec.name, "x".join(map(str, spec.size)))]
        is_size = name.replace("x", "").isdecimal()
        specs += known or [Spec.parse(f"icm_loss-{name}" if is_size else name)]
    return list(dict.fromkeys(specs))


def make(spec: Spec, device: str) -> Workload:
    """Its inputs, drawn on the device."""
    dtype = getattr(torch, spec.dtype)
    if spec.operation == MIXING:
        workload = mixup_workload(spec.size, dtype, device)
        if dtype == torch.uint8:
            per_channel = {"mean": torch.tensor(MEAN, device=device), "std": torch.tensor(STD, device=device)}
            workload.inputs.update(per_channel, dtype=spec.result_dtype)
        return workload
    if spec.operation in PRODUCTS:
        return (_linear if spec.operation == LINEAR else _views)(spec, dtype, device)
    return loss_workload(spec.operation, spec.size, spec.one_lam, dtype, device)


def _linear(spec: Spec, dtype: torch.dtype, device: str) -> Workload:
    """Features and classifier whose logits are normal."""
    rows, classes, width = spec.size
    target = loss_workload(spec.operation, (rows, classes), spec.one_lam, dtype, device).inputs["target"]
    features, weight = (each * width**-0.25 for each in _normal(((rows, width), (classes, width)), dtype, device))
    inputs: dict[str, Any] = {"features": features.requires_grad_(), "weight": weight.requires_grad_()}
    return Workload(spec.operation, spec.size, inputs | {"target": target})


def _views(spec: Spec, dtype: torch.dtype, device: str) -> Workload:
    """Normalised views and a learned scale, as CLIP begins with it."""
    x, y = (F.normalize(each).requires_grad_() for each in _normal((spec.size, spec.size), dtype, device))
    scale = torch.full((), 1 / 0.07, device=device).requires_grad_()
    return Workload(spec.operation, spec.size, {"x": x, "y": y, "scale": scale})


def _normal(shapes: Iterable[tuple[int, ...]], dtype: torch.dtype, device: str) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(1)
    return [torch.randn(shape, dtype=dtype, generator=generator, device=device) for shape in shapes]
