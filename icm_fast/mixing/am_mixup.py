"""Asymptotic Midpoint Mixup."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._validate import check_floating, check_labels, check_number, check_same_device, describe
from ..functional.mixup import mixup
from .sampling import Draws, Source

_WHERE = "AMMixup"


class AMMixup:
    """Mixes features before the head at one rate that falls towards 1/2 as training goes on (arXiv 2401.14696).

    ::

        z[i]  = rate * z[i] + (1 - rate) * z[index[i]]       rate = exp(-beta * training accuracy)
        label = y[i] if rate >= 1/2 else y[index[i]]         ONE hard label

    The rate weighs the sample ITSELF, one rate for the batch and a random partner for each sample. It starts at 1
    (nothing is mixed) and falls to 0.51 for beta = 0.67. The rate's formula is inferred: the original equation was
    not available and was pieced together from secondary sources. With a linear head `functional.am_mixup_loss` computes
    the same from the logits, without touching the features.

    Args:
        beta: positive; how far the rate falls.
        generator: of the partners; default: torch's global generator of the features' device. Partners drawn from a
            generator of another device are copied. Under activation checkpointing the global one alone is set back, so
            that partners are the same again in the backward pass.
        rank: see `Mixup`.
        backend: of the mixing; see `functional.mixup`.

    Raises:
        TypeError, ValueError: a beta that is not a positive number.

    Example:
        >>> am_mixup = AMMixup()
        >>> am_mixup.rate
        1.0
        >>> am_mixup.update(1.0)
        >>> round(am_mixup.rate, 2)
        0.51
        >>> features, labels = am_mixup(torch.randn(4, 8), torch.tensor([0, 1, 2, 3]))
        >>> features.shape, labels.tolist()
        (torch.Size([4, 8]), [0, 1, 2, 3])
    """

    def __init__(
        self,
        beta: float = 0.67,
        *,
        generator: torch.Generator | None = None,
        rank: int | None = None,
        backend: str | None = None,
    ) -> None:
        self.beta = check_number(_WHERE, "beta", beta, least=0, exclusive=True)
        self._source = Source(_WHERE, generator, rank)
        self.backend = backend
        self._accuracy, self._rate = 0.0, 1.0

    @property
    def generator(self) -> torch.Generator | None:
        """As given."""
        return self._source.generator

    @property
    def rate(self) -> float:
        """exp(-beta * accuracy), the weight of the sample itself."""
        return self._rate

    def update(self, train_accuracy: float) -> None:
        """Take over the training accuracy in [0, 1], as a rule once per epoch.

        Raises:
            TypeError, ValueError: not a number in [0, 1]; per cent must be divided by 100.
        """
        self._accuracy = check_number(_WHERE, "train_accuracy", train_accuracy, least=0, most=1)
        # Here, not where it is used: math.exp in a graph of torch.compile means a graph for each accuracy.
        self._rate = math.exp(-self.beta * self._accuracy)

    def __call__(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed features (B, ...), differentiable, and hard labels (B,) int64.

        Raises:
            TypeError, ValueError: features that are not floating-point, labels that are not integers (B,).
        """
        features = check_floating(_WHERE, "features", features)
        labels = check_labels(_WHERE, "labels", labels)
        if features.dim() == 0 or features.shape[0] != labels.shape[0]:
            raise ValueError(
                f"{_WHERE}: expected features of shape ({len(labels)}, ...) for {len(labels)} labels, "
                f"got {describe(features)}"
            )
        check_same_device(_WHERE, features=features, labels=labels)
        index = Draws(features.device, self._source.here()).partners("perm", len(labels))
        rate = self.rate
        mixed = mixup(features, index, rate, backend=self.backend)
        return mixed, labels if rate >= 0.5 else labels[index]

    def state_dict(self) -> dict[str, Any]:
        """The accuracy, the generator's state and the rank."""
        return {"train_accuracy": self._accuracy, **self._source.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the state was taken; see `Mixup.load_state_dict`.

        Raises:
            ValueError: a generator's state without a generator, or the reverse.
        """
        self._source.load(state)
        self.update(state["train_accuracy"])

    def __repr__(self) -> str:
        return f"AMMixup(beta={self.beta}, rate={self.rate:.4g})"
