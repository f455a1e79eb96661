"""A clean and a mixed half: RegMixup and its Infinite Class form as a module."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from .. import functional as F_icm
from .._validate import check_tensor, describe
from ..functional._dispatch import Reduction, check_logits, target_kind
from ..functional._processes import over_all
from ..target import MixedTarget
from ._common import check_number
from .icm_loss import ICMLoss
from .linear_icm_loss import LinearICMLoss


class RegMixupLoss(nn.Module):
    """Cross-entropy of the clean batch plus gamma times a loss of the mixed one: RegMixup, IC-RegMixup.

    `lam` of the target is the weight of the sample ITSELF::

        loss = CE(clean logits, target.clean) + gamma * mixed(mixed logits, target)

    Neither term is halved (the program of RegMixup's authors halves both). Integer labels mean plain cross-entropy of
    the logits as they are.

    Args:
        mixed: the loss of the mixed half, a module (logits, target) -> loss. Default: ICMLoss(), which makes
            IC-RegMixup; MixupCrossEntropyLoss() makes RegMixup. If it has a `reduction`, the clean term takes it over;
            if it has a `process_group`, the clean term is that of the whole batch too (16 bytes more), however
            unequally the processes share it.
        gamma: weight of the mixed term, not negative.

    Raises:
        TypeError: a mixed that cannot be called, a gamma that is not a number.
        ValueError: a negative or infinite gamma.

    Example:
        >>> from icm_fast import MixupCrossEntropyLoss
        >>> criterion = RegMixupLoss(MixupCrossEntropyLoss())
        >>> labels = torch.tensor([1, 2, 3, 4])
        >>> target = MixedTarget(labels, labels.flip(0), torch.tensor(0.7), clean=labels)
        >>> logits = torch.zeros(8, 10)                          # of cat([clean, mixed]): Mixup(keep_clean=True)
        >>> round(criterion(logits, target).item(), 4)           # ln 10 + ln 10
        4.6052
        >>> criterion((logits[:4], logits[4:]), target) == criterion(logits, target)
        tensor(True)
    """

    def __init__(self, mixed: nn.Module | None = None, gamma: float = 1.0) -> None:
        super().__init__()
        if mixed is not None and not callable(mixed):
            raise TypeError(f"RegMixupLoss: expected mixed to be a loss module, got {describe(mixed)}")
        check_number("RegMixupLoss", "gamma", gamma, 0.0, math.inf)
        self.mixed = ICMLoss() if mixed is None else mixed
        self.gamma = gamma

    if TYPE_CHECKING:  # nn.Module's returns Any

        def __call__(self, logits: Tensor | tuple[Tensor, Tensor], target: MixedTarget | Tensor) -> Tensor: ...

    def forward(self, logits: Tensor | tuple[Tensor, Tensor], target: MixedTarget | Tensor) -> Tensor:
        """The loss in nats.

        Args:
            logits: (2B, C), the clean half first: one forward over the concatenated batch; or a pair (clean, mixed) of
                (B, C) each, from two forwards. With a LinearICMLoss the features (2B, D) instead.
            target: a `MixedTarget` with `clean`; or integer labels of logits that are not halved, for evaluation.
        """
        where = "RegMixupLoss"
        if not isinstance(target, MixedTarget):
            return self._evaluate(where, logits, target)
        if target.clean is None:
            raise ValueError(
                f"{where}: target has no clean labels; write Mixup(keep_clean=True), or MixedTarget(..., clean=labels)"
            )
        clean, mixed = _halves(where, logits, target.shape[0])
        # First: of several processes it tells all of a bad label on one, before they wait for each other again.
        of_mixed: Tensor = self.mixed(mixed, target)
        return self._of_clean(clean, target.clean) + self.gamma * of_mixed

    def _of_clean(self, logits: Tensor, labels: Tensor) -> Tensor:
        group, reduction = getattr(self.mixed, "process_group", None), self._reduction
        if group is None:
            return self._cross_entropy(logits, labels, reduction)
        own = self._cross_entropy(logits, labels, "none" if reduction == "none" else "sum")
        return over_all(group, own, len(labels), reduction)

    def _evaluate(self, where: str, logits: Tensor | tuple[Tensor, Tensor], target: Any) -> Tensor:
        if isinstance(target, Tensor) and target.is_floating_point():
            raise TypeError(f"{where}: expected a MixedTarget with clean labels or integer labels, got a dense target")
        logits = check_logits(where, logits)
        if not isinstance(self.mixed, LinearICMLoss):
            target_kind(where, logits, target)
        return self._cross_entropy(logits, target, self._reduction)

    def _cross_entropy(self, logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
        """Plain, of the logits as they are; of a loss that has the head, the features come in their place."""
        if isinstance(self.mixed, LinearICMLoss):
            weight, bias = self.mixed.classifier
            loss: Tensor = F_icm.linear_icm_loss(logits, weight, labels, bias, reduction=cast(Reduction, reduction))
            return loss
        return F_icm.mixup_cross_entropy(logits, labels, reduction=reduction)

    @property
    def _reduction(self) -> str:
        return getattr(self.mixed, "reduction", "mean")

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:g}"


def _halves(where: str, logits: Any, batch_size: int) -> tuple[Tensor, Tensor]:
    """Clean and mixed logits; of one tensor by split, whose gradient is a single concatenation."""
    if isinstance(logits, (tuple, list)):
        if len(logits) != 2:
            raise TypeError(f"{where}: expected logits to be a tensor or a pair (clean, mixed), got {describe(logits)}")
        clean, mixed = logits
        for name, half in (("clean logits", clean), ("mixed logits", mixed)):
            if check_tensor(where, name, half).shape[:1] != (batch_size,):
                raise ValueError(f"{where}: expected {batch_size} rows of {name}, got {describe(half)}")
        return clean, mixed
    if check_logits(where, logits).shape[0] != 2 * batch_size:
        raise ValueError(
            f"{where}: expected logits with {2 * batch_size} rows, clean and mixed, for a target of {batch_size}, "
            f"got {describe(logits)}"
        )
    clean, mixed = logits.split([batch_size, batch_size])
    return clean, mixed
