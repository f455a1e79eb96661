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


def loss_workload(operation: str, size: tuple[int, ...], one_lam: bool) -> Workload:
    """Normal logits, random labels, a random partner; one lam per sample, or one for the batch."""
    generator = torch.Generator().manual_seed(0)
    batch_size, num_classes = size
    y_a = torch.randint(num_classes, (batch_size,), generator=generator)
    lam = torch.rand(() if one_lam else (batch_size,), generator=generator)
    target = icm.MixedTarget(y_a, y_a[torch.randperm(batch_size, generator=generator)], lam)
    logits = torch.randn(batch_size, num_classes, generator=generator).requires_grad_()
    return Workload(operation, size, {"logits": logits, "target": target})


def mixup_workload(size: tuple[int, ...]) -> Workload:
    """Float images, a random partner, one lam per sample."""
    generator = torch.Generator().manual_seed(0)
    index = torch.randperm(size[0], generator=generator)
    inputs = {
        "x": torch.rand(size, generator=generator),
        "index": index,
        "lam": torch.rand(size[0], generator=generator),
    }
    return Workload("mixup", size, inputs)


def workloads(operation: str, sizes: list[tuple[int, ...]] | None, one_lam: bool) -> list[Workload]:
    """All sizes of an operation, or the given ones."""
    if operation == "mixup":
        return [mixup_workload(size) for size in sizes or MIX_SIZES]
    default = LOSS_SIZES if operation == "icm_loss" else CROSS_ENTROPY_SIZES
    return [loss_workload(operation, size, one_lam) for size in sizes or default]
