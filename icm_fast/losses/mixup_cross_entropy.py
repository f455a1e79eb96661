"""Cross-entropy against mixed targets as a module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from .. import functional as F_icm
from .._validate import check_choice, check_floating, describe
from ..functional._dispatch import REDUCTION_NAMES
from ..target import MixedTarget
from ._common import check_number, describe_options


class MixupCrossEntropyLoss(nn.Module):
    """Cross-entropy against mixed targets; `lam` of the target is the weight of the sample ITSELF.

    The loss of Mixup, CutMix, Manifold Mixup and Remix; see `functional.mixup_cross_entropy`. Integer labels mean plain
    cross-entropy.

    Args:
        weight: (C,) class weights, kept as a buffer.
        label_smoothing: in [0, 1].
        reduction: "mean", "sum" or "none".
        backend: None or "auto", "reference", "cpu", "triton", "cuda".

    Raises:
        TypeError: a weight that is not a floating-point tensor.
        ValueError: an unknown reduction, a weight that is not 1-d, a label_smoothing outside [0, 1].

    Example:
        >>> criterion = MixupCrossEntropyLoss(label_smoothing=0.1)
        >>> target = MixedTarget(torch.tensor([0, 1]), torch.tensor([1, 1]), torch.tensor(0.7))
        >>> round(criterion(torch.zeros(2, 10), target).item(), 4)
        2.3026
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        where = "MixupCrossEntropyLoss"
        if weight is not None and check_floating(where, "weight", weight).dim() != 1:
            raise ValueError(f"{where}: expected weight of shape (C,), got {describe(weight)}")
        check_number(where, "label_smoothing", label_smoothing, 0.0, 1.0)
        check_choice(where, "reduction", reduction, REDUCTION_NAMES)
        self.register_buffer("weight", weight)
        self.label_smoothing, self.reduction, self.backend = label_smoothing, reduction, backend

    if TYPE_CHECKING:  # nn.Module's returns Any

        def __call__(self, logits: Tensor, target: MixedTarget | Tensor) -> Tensor: ...

    def forward(self, logits: Tensor, target: MixedTarget | Tensor) -> Tensor:
        """The loss in nats, () or (B,)."""
        return F_icm.mixup_cross_entropy(
            logits,
            target,
            weight=self.weight,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        weight = None if self.weight is None else tuple(self.weight.shape)
        return describe_options(
            f"reduction={self.reduction!r}",
            weight=weight,
            label_smoothing=self.label_smoothing or None,
            backend=self.backend,
        )
