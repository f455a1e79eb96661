"""What is timed: an operation at a size, with one set of inputs for all contenders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

import icm_fast as icm

LOSS_SIZES = ((64, 10), (64, 100), (128, 10), (128, 100), (512, 100), (1024, 1000), (4096, 1000), (8192, 1000))
CROSS_ENTROPY_SIZES = ((128, 10), (128, 100), (1024, 1000), (4096, 1000))
MIX_SIZES = ((128, 3, 32, 32), (64, 3, 224, 224))


@dataclass(frozen=True)
class Workload:
    """An operation at one size. `inputs` are what the contenders are built from."""

    operation: str
    size: tuple[int, ...]
    inputs: dict[str, Any]

    @property
    def name(self) -> str:
        """Such as icm_loss-1024x1000."""
        return f"{self.operation}-{'x'.join(map(str, self.size))}"


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
    y_a = torch.randint(num_classes, (batch_size,), **options)
    lam = torch.rand(() if one_lam else (batch_size,), **options)
    index = torch.randperm(batch_size, **options)
    logits = torch.randn(batch_size, num_classes, dtype=dtype, **options).requires_grad_()
    inputs = {"logits": logits, "target": icm.MixedTarget(y_a, y_a[index], lam), "index": index}
    return Workload(operation, size, inputs)


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
    if operation == "mixup":
        return [mixup_workload(size) for size in sizes or MIX_SIZES]
    default = LOSS_SIZES if operation == "icm_loss" else CROSS_ENTROPY_SIZES
    return [loss_workload(operation, size, one_lam) for size in sizes or default]
