"""What is timed: an operation at a size, with one set of inputs for all contenders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import icm_fast as icm

LOSS_SIZES = ((64, 10), (64, 100), (128, 10), (128, 100), (512, 100), (1024, 1000), (4096, 1000), (8192, 1000))
CROSS_ENTROPY_SIZES = ((128, 10), (128, 100), (1024, 1000), (4096, 1000))
MIX_SIZES = ((128, 3, 32, 32), (64, 3, 224, 224))
LINEAR_SIZES = ((1024, 512, 1000), (4096, 512, 1000), (1024, 256, 100_000))  # batch, features, classes
VIEW_SIZES = ((1024, 512), (4096, 512))  # batch, features
DENSE_SIZES = ((1024, 1000), (4096, 100))


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


def mixup_workload(size: tuple[int, ...], dtype: torch.dtype = torch.float32, device: str = "cpu") -> Workload:
    """Images in a floating-point type or in bytes, a random partner, one lam per sample."""
    generator = torch.Generator(device).manual_seed(0)
    options: dict[str, Any] = {"generator": generator, "device": device}
    index = torch.randperm(size[0], **options)
    if dtype == torch.uint8:
        x = torch.randint(256, size, dtype=dtype, **options)
    else:
        x = torch.rand(size, dtype=dtype, **options)
    return Workload("mixup", size, {"x": x, "index": index, "lam": torch.rand(size[0], **options)})


def workloads(operation: str, sizes: list[tuple[int, ...]] | None, one_lam: bool) -> list[Workload]:
    """All sizes of an operation, or the given ones."""
    default, make = _OPERATIONS[operation]
    return [make(size, one_lam) for size in sizes or default]


def _loss(operation: str) -> Callable[[tuple[int, ...], bool], Workload]:
    return lambda size, one_lam: loss_workload(operation, size, one_lam)


# Operation -> its sizes, and what makes one of them, with one lam for the batch or one per sample.
_OPERATIONS: dict[str, tuple[tuple[tuple[int, ...], ...], Callable[[tuple[int, ...], bool], Workload]]] = {
    "icm_loss": (LOSS_SIZES, _loss("icm_loss")),
    "mixup_cross_entropy": (CROSS_ENTROPY_SIZES, _loss("mixup_cross_entropy")),
    "mixup": (MIX_SIZES, lambda size, _: mixup_workload(size)),
    "linear_icm_loss": (LINEAR_SIZES, linear_workload),
    "contrastive_loss": (VIEW_SIZES, lambda size, _: views_workload(size)),
    "icm_loss_dense": (DENSE_SIZES, lambda size, _: dense_workload(size)),
}
OPERATIONS = tuple(_OPERATIONS)
