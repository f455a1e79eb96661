"""Data sets by name: handwritten digits, balanced and long-tailed, with a fixed balanced test set.

A seed chooses WHICH training images a set holds (in the last class of the long tail that is a single image);
the test images never change, and no test image is ever trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

TEST_IMAGES_PER_CLASS = 50
SPLIT_SEED = 0


@dataclass(frozen=True)
class ImageSet:
    """Images (N, channels, height, width), float32, normalised by the mean and deviation of the training images."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: float
    std: float

    @property
    def num_classes(self) -> int:
        return int(self.test_labels.max()) + 1

    @property
    def class_counts(self) -> Tensor:
        """Training images of each class, (C,) int64."""
        return torch.bincount(self.train_labels, minlength=self.num_classes)

    @property
    def is_long_tailed(self) -> bool:
        counts = self.class_counts
        return bool(counts.max() > counts.min())

    def head_and_tail(self) -> tuple[Tensor, Tensor]:
        """Class ids of the half with the most training images and of the rest."""
        order = self.class_counts.argsort(descending=True, stable=True)
        half = (len(order) + 1) // 2
        return order[:half], order[half:]


def long_tailed_counts(largest: int, num_classes: int, imbalance: float) -> list[int]:
    """Images per class: n_c = int(largest * imbalance^(c / (C - 1))), class 0 the largest."""
    if num_classes < 2:
        raise ValueError(f"long_tailed_counts: expected at least 2 classes, got {num_classes}")
    if not 0 < imbalance <= 1:
        raise ValueError(f"long_tailed_counts: expected imbalance in (0, 1], got {imbalance}")
    return [int(largest * imbalance ** (c / (num_classes - 1))) for c in range(num_classes)]


def choose_per_class(labels: Tensor, counts: Sequence[int], generator: torch.Generator) -> Tensor:
    """Indices of counts[c] random images of each class c, sorted."""
    chosen = []
    for label, count in enumerate(counts):
        members = (labels == label).nonzero().flatten()
        if len(members) < count:
            raise ValueError(f"choose_per_class: expected {count} images of class {label}, got {len(members)}")
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(chosen).sort().values


def stratified_split(labels: Tensor, test_per_class: int, seed: int = SPLIT_SEED) -> tuple[Tensor, Tensor]:
    """Indices of a training pool and of a test set with test_per_class images of every class."""
    generator = torch.Generator().manual_seed(seed)
    num_classes = int(labels.max()) + 1
    test = choose_per_class(labels, [test_per_class] * num_classes, generator)
    in_pool = torch.ones(len(labels), dtype=torch.bool)
    in_pool[test] = False
    return in_pool.nonzero().flatten(), test


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """The 1797 grey images of 8x8 pixels that scikit-learn ships, scaled to 0..1."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).to(torch.float32).div(16).unsqueeze(1)
    return images, torch.from_numpy(digits.target).to(torch.int64)


def load_digits_set(seed: int, *, name: str, imbalance: float = 1.0) -> ImageSet:
    images, labels = _digits()
    pool, test = stratified_split(labels, TEST_IMAGES_PER_CLASS)
    pool_counts = torch.bincount(labels[pool])
    counts = long_tailed_counts(int(pool_counts.min()), len(pool_counts), imbalance)
    train = pool[choose_per_class(labels[pool], counts, torch.Generator().manual_seed(seed))]
    mean, std = float(images[train].mean()), float(images[train].std())
    return ImageSet(
        name=name,
        train_images=(images[train] - mean) / std,
        train_labels=labels[train],
        test_images=(images[test] - mean) / std,
        test_labels=labels[test],
        mean=mean,
        std=std,
    )


DATA_SETS: dict[str, Callable[[int], ImageSet]] = {
    "digits": partial(load_digits_set, name="digits"),
    "digits-lt-0.1": partial(load_digits_set, name="digits-lt-0.1", imbalance=0.1),
    "digits-lt-0.01": partial(load_digits_set, name="digits-lt-0.01", imbalance=0.01),
}


def get(name: str) -> Callable[[int], ImageSet]:
    """The data set of that name, as a function of the seed."""
    if name not in DATA_SETS:
        raise ValueError(f"unknown data set {name!r}; there is: {', '.join(DATA_SETS)}")
    return DATA_SETS[name]


def load(name: str, seed: int) -> ImageSet:
    """The data set of that name, its training images chosen by seed."""
    return get(name)(seed)
