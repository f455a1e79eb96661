"""How a method turns a batch into what the network is shown and what the loss is told.

A training step is the same for every method:

    images, target = mixing.prepare(images, labels)
    logits = mixing.logits(model, images)
    loss = loss_function(logits, target)
    mixing.observe(logits, labels)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

import icm_fast as icm


class Classifier(Protocol):
    def __call__(self, images: Tensor, /) -> Tensor: ...


class Mixing:
    """No mixing: the base that the others refine."""

    def prepare(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Any]:
        """What the network is shown, and the target that goes with it."""
        return images, labels

    def logits(self, model: Classifier, images: Tensor) -> Any:
        """What the loss is computed from."""
        return model(images)

    def observe(self, logits: Any, labels: Tensor) -> None:
        """Called after every step, with that step's logits."""

    def end_epoch(self) -> None:
        """Called after every epoch."""


class InputMixing(Mixing):
    """Mixes images: Mixup, Remix."""

    def __init__(self, mixup: icm.Mixup) -> None:
        self.mixup = mixup

    def prepare(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Any]:
        mixed, target = self.mixup(images, labels)
        return mixed, target


class CleanAndMixed(InputMixing):
    """RegMixup: the clean batch and the mixed one, from a Mixup(keep_clean=True).

    Two forward passes, as in the program of the Infinite Class Mixup paper: the halves keep their own
    batch-normalisation statistics, which one pass over both would share.
    """

    def logits(self, model: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
        clean, mixed = images.chunk(2)
        return model(clean), model(mixed)


@dataclass(frozen=True, eq=False)
class MidpointTarget:
    """What am_mixup_loss needs besides the logits."""

    index: Tensor
    rate: float
    labels: Tensor


class FeatureMixing(Mixing):
    """AM-Mixup: mixes the features before the head, at one rate that falls as the training accuracy rises.

    The head is linear, so the logits mix exactly as the features would and the images pass through unmixed.
    """

    def __init__(self, am_mixup: icm.AMMixup, generator: torch.Generator) -> None:
        self.am_mixup = am_mixup
        self.generator = generator
        self._correct = 0
        self._seen = 0

    def prepare(self, images: Tensor, labels: Tensor) -> tuple[Tensor, MidpointTarget]:
        index = torch.randperm(len(labels), generator=self.generator)
        return images, MidpointTarget(index, self.am_mixup.rate, labels)

    def observe(self, logits: Tensor, labels: Tensor) -> None:
        self._correct += int((logits.argmax(dim=1) == labels).sum())
        self._seen += len(labels)

    def end_epoch(self) -> None:
        if self._seen:
            self.am_mixup.update(self._correct / self._seen)
        self._correct = self._seen = 0
