"""How low an Infinite Class Mixup loss can go: equal mixed classes in one batch count as negatives of each other."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch

import icm_fast as icm
from benchmarks.accuracy.data import ImageSet
from benchmarks.accuracy.methods import MIXUP_ALPHA


@dataclass(frozen=True)
class Duplicates:
    """Means over batches: images that share their mixed class with an earlier one, and the floor of one axis."""

    data: str
    batch_size: int
    num_classes: int
    repeated: float
    floor_nats: float


def duplicates_of(target: icm.MixedTarget, num_classes: int) -> tuple[int, float]:
    """Repeated rows of the mixed targets, and the floor: groups of size m add m ln m, over B, for each axis."""
    rows = target.dense(num_classes)
    sizes = torch.unique(rows, dim=0, return_counts=True)[1].double()
    return len(rows) - len(sizes), float((sizes * sizes.log()).sum() / len(rows))


def mixup_duplicates(images: ImageSet, batch_size: int, batches: int = 200, seed: int = 0) -> Duplicates:
    """What Mixup as the demo uses it (one lam per batch) comes to on this data set."""
    generator = torch.Generator().manual_seed(seed)
    mixup = icm.Mixup(mixup_alpha=MIXUP_ALPHA, generator=generator)
    seen = []
    for _ in range(batches):
        batch = torch.randperm(len(images.train_labels), generator=generator)[:batch_size]
        _, target = mixup(images.train_images[batch], images.train_labels[batch])
        seen.append(duplicates_of(target, images.num_classes))
    repeated, floor_nats = (statistics.fmean(column) for column in zip(*seen, strict=True))
    return Duplicates(images.name, len(batch), images.num_classes, repeated, floor_nats)
