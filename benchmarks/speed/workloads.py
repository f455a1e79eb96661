"""What is timed: an operation at a size, in a type, with one set of inputs for all contenders."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import icm_fast as icm

ONE_LAM = "one_lam"  # for the batch, instead of one per sample
FLIPPED, ROLLED = "flipped", "rolled"  # whole calls that draw lam, with the partners of timm and of torchvision
VARIANTS = {
    "icm_loss": (ONE_LAM,),
    "mixup_cross_entropy": (ONE_LAM,),
    "linear_icm_loss": (ONE_LAM,),
    "mixup": (ONE_LAM, FLIPPED, ROLLED),
    "contrastive_loss": (),
    "icm_loss_dense": (),
}
OPERATIONS = tuple(VARIANTS)
DTYPES = ("float32", "bfloat16", "float16", "float64", "uint8")
PARTNERS: dict[str, Callable[[Tensor], Tensor]] = {
    FLIPPED: lambda samples: samples.flip(0),
    ROLLED: lambda samples: samples.roll(1, 0),
}
DRAWN_CLASSES = 1000  # of the labels that are mixed with the images
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Spec:
    """One workload: what pytest-benchmark calls a group."""

    operation: str
    size: tuple[int, ...]
    variant: str = ""
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def name(self) -> str:
        """Such as icm_loss-1024x1000-one_lam-float32-cpu."""
        parts = (self.operation, "x".join(map(str, self.size)), self.variant, self.dtype, self.device)
        return "-".join(part for part in parts if part)

    @classmethod
    def parse(cls, name: str) -> Spec:
        """The workload of that name.

        Raises:
            ValueError: a name of another form.
        """
        operation, _, tail = name.partition("-")
        size, *variant, dtype, device = tail.split("-") if tail.count("-") >= 2 else ("", "", "")
        is_known = operation in VARIANTS and variant in ([], *([each] for each in VARIANTS[operation]))
        if not is_known or not re.fullmatch(r"\d+(x\d+)*", size) or dtype not in DTYPES or device != "cpu":
            raise ValueError(
                f"unknown workload {name!r}; expected OPERATION-SIZE[-VARIANT]-TYPE-cpu such as "
                "icm_loss-1024x1000-float32-cpu"
            )
        return cls(operation, tuple(map(int, size.split("x"))), "".join(variant), dtype, device)


@dataclass(frozen=True)
class Workload:
    """An operation at one size. `inputs` are what the contenders are built from; a loss takes gradients of its leaves,
    which come first, in the order of its arguments.
    """

    operation: str
    size: tuple[int, ...]
    inputs: dict[str, Any]

    @property
    def name(self) -> str:
        """Such as icm_loss-1024x1000."""
        return f"{self.operation}-{'x'.join(map(str, self.size))}"

    @property
    def leaves(self) -> list[Tensor]:
        """The inputs that get gradients."""
        return [value for value in self.inputs.values() if isinstance(value, Tensor) and value.requires_grad]


def loss_workload(
    operation: str,
    size: tuple[int, ...],
    one_lam: bool,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Workload:
    """Normal logits, random labels, a random partner; one lam per sample, or one for the batch."""
    generator = torch.Generator(device).manual_seed(0)
    options: dict[str, Any] = {"generator": generator, "device": device}
    batch_size, num_classes = size
    target, index = _random_target(batch_size, num_classes, one_lam, options)
    logits = torch.randn(batch_size, num_classes, dtype=dtype, **options).requires_grad_()
    return Workload(operation, size, {"logits": logits, "target": target, "index": index})


def _random_target(
    batch_size: int, num_classes: int, one_lam: bool, options: dict[str, Any]
) -> tuple[icm.MixedTarget, Tensor]:
    """Random labels, lam and partners; with the index of the partners."""
    y_a = torch.randint(num_classes, (batch_size,), **options)
    lam = torch.rand(() if one_lam else (batch_size,), **options)
    index = torch.randperm(batch_size, **options)
    return icm.MixedTarget(y_a, y_a[index], lam), index


def linear_workload(size: tuple[int, ...], one_lam: bool) -> Workload:
    """Normal features, a classifier that gives normal logits, labels and lam as for the logits."""
    generator = torch.Generator().manual_seed(0)
    batch_size, depth, num_classes = size
    target, _ = _random_target(batch_size, num_classes, one_lam, {"generator": generator})
    inputs: dict[str, Any] = {
        "features": torch.randn(batch_size, depth, generator=generator).requires_grad_(),
        "weight": (torch.randn(num_classes, depth, generator=generator) / depth**0.5).requires_grad_(),
        "bias": torch.randn(num_classes, generator=generator).requires_grad_(),
        "target": target,
    }
    return Workload("linear_icm_loss", size, inputs)


def views_workload(size: tuple[int, ...]) -> Workload:
    """Normalised views and a learned scale, as CLIP begins with it."""
    generator = torch.Generator().manual_seed(0)
    x, y = (F.normalize(torch.randn(size, generator=generator)).requires_grad_() for _ in range(2))
    return Workload("contrastive_loss", size, {"x": x, "y": y, "scale": torch.tensor(1 / 0.07).requires_grad_()})


def dense_workload(size: tuple[int, ...]) -> Workload:
    """Normal logits, targets with a weight for every class."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(size, generator=generator).requires_grad_()
    target = torch.randn(size, generator=generator).softmax(1)
    return Workload("icm_loss_dense", size, {"logits": logits, "target": target})


def mixup_workload(
    size: tuple[int, ...], dtype: torch.dtype = torch.float32, device: str = "cpu", one_lam: bool = False
) -> Workload:
    """Images in a floating-point type or in bytes, a random partner, one lam per sample or for the batch."""
    generator = torch.Generator(device).manual_seed(0)
    options: dict[str, Any] = {"generator": generator, "device": device}
    index = torch.randperm(size[0], **options)
    if dtype == torch.uint8:
        x = torch.randint(256, size, dtype=dtype, **options)
    else:
        x = torch.rand(size, dtype=dtype, **options)
    lam = torch.rand(() if one_lam else (size[0],), **options)
    return Workload("mixup", size, {"x": x, "index": index, "lam": lam})


def _mixup(spec: Spec) -> Workload:
    """Bytes are normalised; labels and a partner's place instead of index and lam where the call draws them."""
    workload = mixup_workload(spec.size, getattr(torch, spec.dtype), one_lam=spec.variant == ONE_LAM)
    if spec.dtype == "uint8":
        workload.inputs.update(mean=torch.tensor(MEAN[: spec.size[1]]), std=torch.tensor(STD[: spec.size[1]]))
    if spec.variant in PARTNERS:
        del workload.inputs["lam"]
        labels = torch.randint(DRAWN_CLASSES, spec.size[:1], generator=torch.Generator().manual_seed(1))
        workload.inputs.update(index=PARTNERS[spec.variant](torch.arange(spec.size[0])), labels=labels)
    return workload


def make(spec: Spec) -> Workload:
    """Its inputs."""
    if spec.operation == "mixup":
        return _mixup(spec)
    workload = _LOSSES[spec.operation](spec.operation, spec.size, spec.variant == ONE_LAM)
    return workload if spec.dtype == "float32" else narrowed(workload, getattr(torch, spec.dtype))


_LOSSES: dict[str, Callable[[str, tuple[int, ...], bool], Workload]] = {
    "icm_loss": loss_workload,
    "mixup_cross_entropy": loss_workload,
    "linear_icm_loss": lambda _, size, one_lam: linear_workload(size, one_lam),
    "contrastive_loss": lambda _, size, __: views_workload(size),
    "icm_loss_dense": lambda _, size, __: dense_workload(size),
}


def narrowed(workload: Workload, dtype: torch.dtype) -> Workload:
    """The same in another type; lam and a scale stay as they are."""

    def convert(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() < 2:
            return value
        return value.detach().to(dtype).requires_grad_(value.requires_grad)

    inputs = {name: convert(value) for name, value in workload.inputs.items()}
    if "bias" in inputs:
        inputs["bias"] = inputs["bias"].detach().to(dtype).requires_grad_()
    return Workload(workload.operation, workload.size, inputs)
