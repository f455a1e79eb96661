"""torchmetrics: accuracy over many batches whose labels are mixed, or not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ..metrics import UNIT, count_hits
from ..target import MixedTarget

__all__ = ["MixedAccuracy"]


class MixedAccuracy(Metric):
    """Accuracy that mixed batches are expected to have; see `metrics.mixup_accuracy`.

    `lam` of a target is the weight of the sample ITSELF. Of integer labels it is the ordinary accuracy over all samples
    (torchmetrics' `average="micro"`). torchmetrics' own metrics know no `MixedTarget` and raise.

    The states are integers, in units of 2^-32 of a sample: neither the order of the batches nor the number of processes
    changes the result, nor a module's `.to(torch.bfloat16)`, which torchmetrics lets reach floating-point states.

    Args:
        top_k: an image is right if its class is among the k that score highest.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        ValueError: from `update`, as `metrics.mixup_accuracy`.

    Example:
        >>> accuracy = MixedAccuracy()
        >>> logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 2.0, 1.0]])
        >>> target = MixedTarget(torch.tensor([0, 2]), torch.tensor([2, 0]), torch.tensor(0.75))
        >>> accuracy(logits, target)                     # of this batch
        tensor(0.3750)
        >>> accuracy.update(logits, torch.tensor([0, 1]))
        >>> accuracy.compute()                           # (0.75 + 0 + 1 + 1) / 4
        tensor(0.6875)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    hits: Tensor
    samples: Tensor
    invalid: Tensor

    def __init__(self, top_k: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.top_k = top_k
        for name in ("hits", "samples", "invalid"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: MixedTarget | Tensor) -> None:
        """Count a batch.

        Args:
            preds: (B, C) scores or probabilities.
            target: `MixedTarget`; a float tensor (B, C) of dense targets; an integer tensor (B,) of labels.
        """
        hits, samples, invalid = count_hits("MixedAccuracy", preds, target, (self.top_k,))
        self.hits += hits[0]
        self.samples += samples
        self.invalid += invalid

    def compute(self) -> Tensor:
        """() float32 in [0, 1]; NaN without samples, and after bad values that no check saw (on a GPU)."""
        share = self.hits.double() / (self.samples.double() * UNIT)
        return share.where(self.invalid == 0, torch.nan).float()
