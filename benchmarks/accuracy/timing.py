"""What a training step costs: the fused loss against the same loss as its authors' programs write it.

Both sides see the same batches, take turns within one run and use one thread; times are medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.accuracy import data, methods
from benchmarks.accuracy.grid import one_thread
from benchmarks.accuracy.methods import LossFunction
from benchmarks.accuracy.mixings import Mixing
from benchmarks.accuracy.models import DigitNet
from benchmarks.accuracy.train import Recipe

WARM_UP_ROUNDS = 5
# float32: the two sides sum at most a few hundred terms in different orders
AGREEMENT_RTOL = 1e-4


@dataclass(frozen=True)
class Rounds:
    """How often each side is measured."""

    loss: int = 300
    step: int = 60


@dataclass(frozen=True)
class Timing:
    """Medians. `loss`: forward and backward to the logits; `step`: mixing, network, loss, backward and update."""

    method: str
    batch_size: int
    num_classes: int
    loss_ms: float
    plain_loss_ms: float
    step_ms: float
    plain_step_ms: float

    @property
    def loss_speedup(self) -> float:
        return self.plain_loss_ms / self.loss_ms


def measure(name: str, data_name: str, recipe: Recipe, rounds: Rounds) -> Timing:
    """Times one method at the batch size and number of classes of the training."""
    images = data.load(data_name, seed=0)
    method = methods.get(name)
    torch.manual_seed(0)
    model = DigitNet(images.num_classes)
    mixing = method.mixing(methods.Context(images.class_counts, torch.Generator().manual_seed(0)))
    batch = torch.randperm(len(images.train_labels))[: recipe.batch_size]
    shown, labels = images.train_images[batch], images.train_labels[batch]
    sides = [method.loss(), method.plain_loss]
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum)
    with one_thread():
        loss_ms, plain_loss_ms = _time_losses(mixing, model, shown, labels, sides, rounds.loss)
        step_ms, plain_step_ms = _time_steps(mixing, model, shown, labels, sides, optimizer, rounds.step)
    return Timing(name, len(batch), images.num_classes, loss_ms, plain_loss_ms, step_ms, plain_step_ms)


def _time_losses(
    mixing: Mixing, model: DigitNet, images: Tensor, labels: Tensor, sides: list[LossFunction], rounds: int
) -> list[float]:
    def one_round() -> list[float]:
        shown, target = mixing.prepare(images, labels)
        with torch.no_grad():
            logits = mixing.logits(model, shown)
        times_ms, values = [], []
        for side in sides:
            side(_as_leaves(logits), target).backward()  # whichever comes first would else pay for what both touch
            leaves = _as_leaves(logits)
            started = time.perf_counter()
            loss = side(leaves, target)
            loss.backward()
            times_ms.append(1e3 * (time.perf_counter() - started))
            values.append(loss.detach())
        torch.testing.assert_close(
            values[0], values[1], rtol=AGREEMENT_RTOL, atol=AGREEMENT_RTOL, msg=lambda text: f"the sides differ: {text}"
        )
        return times_ms

    return _medians(one_round, rounds)


def _time_steps(
    mixing: Mixing,
    model: DigitNet,
    images: Tensor,
    labels: Tensor,
    sides: list[LossFunction],
    optimizer: torch.optim.Optimizer,
    rounds: int,
) -> list[float]:
    def one_round() -> list[float]:
        times_ms = []
        for side in sides:
            started = time.perf_counter()
            shown, target = mixing.prepare(images, labels)
            loss = side(mixing.logits(model, shown), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            times_ms.append(1e3 * (time.perf_counter() - started))
        return times_ms

    return _medians(one_round, rounds)


def _medians(one_round: Callable[[], list[float]], rounds: int) -> list[float]:
    for _ in range(WARM_UP_ROUNDS):
        one_round()
    return [statistics.median(times_ms) for times_ms in zip(*(one_round() for _ in range(rounds)), strict=True)]


def _as_leaves(logits: Any) -> Any:
    """Fresh tensors that collect a gradient, of one tensor or of RegMixup's pair."""
    if isinstance(logits, tuple):
        return tuple(_as_leaves(part) for part in logits)
    return logits.clone().requires_grad_()
