"""One training run: seeded, stochastic gradient descent with momentum, judged on unmixed test images."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.accuracy import data, methods
from benchmarks.accuracy.models import DigitNet


@dataclass(frozen=True)
class Recipe:
    """Training choices, the same for every method and data set.

    `steps` rather than epochs: a long-tailed set is small, and an epoch of it would be a few steps. The learning rate
    is multiplied by `decay` after each quarter of the training, as in the Infinite Class Mixup paper.

    Steps, batch size and learning rate were chosen once, for ERM alone, on 30 held-out training images per class (four
    seeds, `digits` and `digits-lt-0.01`) among 300, 400 and 600 steps of 64 and 600 of 32, with rates 0.02, 0.05, 0.1
    and 0.2. From 400 steps of 64 on, all rates came within the noise of each other; 0.1 is the paper's.
    """

    steps: int = 400
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay: float = 0.2
    evaluations: int = 20

    def epochs(self, num_images: int) -> int:
        return max(1, round(self.steps / math.ceil(num_images / self.batch_size)))

    def lr_at(self, progress: float) -> float:
        """Learning rate after this fraction of the training."""
        return self.lr * self.decay ** min(3, int(4 * progress))


@dataclass(frozen=True)
class Run:
    """One training run to do."""

    data: str
    method: str
    seed: int
    recipe: Recipe


@dataclass
class RunResult:
    """What one run came to. Accuracies in percent, losses in nats; curves have one entry per evaluation."""

    data: str
    method: str
    seed: int
    epochs: int
    accuracy: float = math.nan
    head_accuracy: float = math.nan
    tail_accuracy: float = math.nan
    class_accuracy: list[float] = field(default_factory=list)
    curve_steps: list[int] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    train_s: float = math.nan


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor, num_classes: int) -> tuple[float, list[float]]:
    """Plain cross-entropy on hard labels, and the accuracy of each class in percent."""
    model.eval()
    logits = model(images)
    model.train()
    correct = (logits.argmax(dim=1) == labels).to(torch.float64)
    of_class = torch.bincount(labels, weights=correct, minlength=num_classes)
    counts = torch.bincount(labels, minlength=num_classes)
    return float(F.cross_entropy(logits, labels)), (100 * of_class / counts).tolist()


def train(run: Run) -> RunResult:
    """Trains one network. Equal runs on one machine with one thread give equal results, whatever ran before.

    Methods of one seed start from the same weights and see the same batches in the same order.
    """
    started = time.perf_counter()
    recipe, method, images = run.recipe, methods.get(run.method), data.load(run.data, run.seed)
    torch.manual_seed(run.seed)
    model = DigitNet(images.num_classes)
    order = torch.Generator().manual_seed(run.seed + 1)
    mixing = method.mixing(methods.Context(images.class_counts, torch.Generator().manual_seed(run.seed + 2)))
    loss_function = method.loss()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    epochs = recipe.epochs(len(images.train_labels))
    result = RunResult(run.data, run.method, run.seed, epochs)
    evaluate_every = max(1, epochs // recipe.evaluations)
    step, losses = 0, []
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(epoch / epochs)
        # split keeps a partial last batch: the papers train on it, and so does this
        for batch in torch.randperm(len(images.train_labels), generator=order).split(recipe.batch_size):
            labels = images.train_labels[batch]
            shown, target = mixing.prepare(images.train_images[batch], labels)
            logits = mixing.logits(model, shown)
            loss = loss_function(logits, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            mixing.observe(logits, labels)
            losses.append(loss.detach())
            step += 1
        mixing.end_epoch()
        if (epoch + 1) % evaluate_every == 0 or epoch + 1 == epochs:
            test_loss, by_class = evaluate(model, images.test_images, images.test_labels, images.num_classes)
            result.curve_steps.append(step)
            result.train_loss.append(float(torch.stack(losses).mean()))
            result.test_loss.append(test_loss)
            result.test_accuracy.append(_mean(by_class))
            losses = []
    return _finish(result, images, by_class, time.perf_counter() - started)


def _finish(result: RunResult, images: data.ImageSet, class_accuracy: list[float], train_s: float) -> RunResult:
    head, tail = images.head_and_tail()
    result.class_accuracy = class_accuracy
    result.accuracy = _mean(class_accuracy)  # the test set is balanced: the mean over classes is the accuracy
    result.head_accuracy = _mean([class_accuracy[c] for c in head.tolist()])
    result.tail_accuracy = _mean([class_accuracy[c] for c in tail.tolist()])
    result.train_s = train_s
    return result


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
