"""The Infinite Class Mixup loss as a module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import functional as F_icm
from .._validate import check_choice
from ..functional._dispatch import AXIS_NAMES, REDUCTION_NAMES, Axis, Reduction
from ..target import MixedTarget
from ._common import describe_options, describe_scale, is_single, keep_scale, warn_single


class ICMLoss(nn.Module):
    """Infinite Class Mixup loss; `lam` of the target is the weight of the sample ITSELF. See `functional.icm_loss`.

    Integer labels mean plain cross-entropy, so one criterion serves training and validation. Not a sum over samples:
    splitting a batch changes it, and a batch of one image has loss 0 (said once in the log).

    Args:
        axis: "both", "class" or "pair".
        reduction: "mean", "sum" or "none".
        logit_scale: multiplies the mixed scores: a number; a 0-d tensor, kept as a buffer; or an `nn.Parameter`, which
            becomes a parameter of the module and is trained.
        process_group: of processes that each hold some rows of one batch; see `functional.icm_loss`.
        validate: check the values of the target in every call. Waits for a GPU.
        backend: None or "auto", "reference", "cpu", "triton", "cuda".

    Raises:
        TypeError: a logit_scale of a wrong type.
        ValueError: an unknown axis or reduction, a logit_scale that is not 0-d or is computed from other tensors.

    Example:
        >>> criterion = ICMLoss()
        >>> logits = torch.zeros(4, 10, requires_grad=True)
        >>> labels = torch.tensor([1, 2, 3, 4])
        >>> round(criterion(logits, MixedTarget(labels, labels.flip(0), torch.tensor(0.7))).item(), 4)
        2.7726
        >>> round(criterion(logits, labels).item(), 4)           # evaluation: plain cross-entropy
        2.3026
    """

    logit_scale: float | Tensor | None

    def __init__(
        self,
        axis: Axis = "both",
        reduction: Reduction = "mean",
        logit_scale: float | Tensor | None = None,
        process_group: Any = None,
        validate: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_choice("ICMLoss", "axis", axis, AXIS_NAMES)
        check_choice("ICMLoss", "reduction", reduction, REDUCTION_NAMES)
        self.axis, self.reduction, self.validate, self.backend = axis, reduction, validate, backend
        self.process_group = process_group
        keep_scale(self, "ICMLoss", logit_scale)

    if TYPE_CHECKING:  # nn.Module's returns Any

        def __call__(self, logits: Tensor, target: MixedTarget | Tensor) -> Tensor: ...

    def forward(self, logits: Tensor, target: MixedTarget | Tensor) -> Tensor:
        """The loss in nats, () or (B,)."""
        alone = self.process_group is None and not torch.compiler.is_compiling()
        if self.training and alone and is_single(logits, target):
            warn_single("ICMLoss")
        loss: Tensor = F_icm.icm_loss(
            logits,
            target,
            axis=self.axis,
            reduction=self.reduction,
            logit_scale=self.logit_scale,
            process_group=self.process_group,
            validate=self.validate,
            backend=self.backend,
        )
        return loss

    def extra_repr(self) -> str:
        return describe_options(
            f"axis={self.axis!r}, reduction={self.reduction!r}",
            logit_scale=describe_scale(self.logit_scale),
            validate=self.validate or None,
            backend=self.backend,
        )
