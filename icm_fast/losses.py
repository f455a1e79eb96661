"""The losses as modules, for use as a criterion in training and in evaluation."""

from __future__ import annotations

import functools
import logging
import math
from typing import Any

import torch
from torch import Tensor, nn

from . import functional as F_icm
from ._validate import check_choice, check_floating, check_tensor, describe
from .functional._dispatch import AXIS_NAMES, REDUCTION_NAMES, Axis, Reduction, check_logits, target_kind
from .target import MixedTarget

logger = logging.getLogger("icm_fast")


class ICMLoss(nn.Module):
    """Infinite Class Mixup loss; `lam` of the target is the weight of the sample ITSELF. See `functional.icm_loss`.

    Integer labels mean plain cross-entropy, so one criterion serves training and validation. Not a sum over samples:
    splitting a batch changes it, and a batch of one image has loss 0 (said once in the log).

    Args:
        axis: "both", "class" or "pair".
        reduction: "mean", "sum" or "none".
        logit_scale: multiplies the mixed scores: a number; a 0-d tensor, kept as a buffer; or an `nn.Parameter`, which
            becomes a parameter of the module and is trained.
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
        validate: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_choice("ICMLoss", "axis", axis, AXIS_NAMES)
        check_choice("ICMLoss", "reduction", reduction, REDUCTION_NAMES)
        self.axis, self.reduction, self.validate, self.backend = axis, reduction, validate, backend
        if isinstance(logit_scale, Tensor):
            _check_scale(logit_scale)
        elif logit_scale is not None and (isinstance(logit_scale, bool) or not isinstance(logit_scale, (int, float))):
            raise TypeError(
                f"ICMLoss: expected logit_scale to be a number or a 0-d tensor, got {describe(logit_scale)}"
            )
        if isinstance(logit_scale, Tensor) and not isinstance(logit_scale, nn.Parameter):
            self.register_buffer("logit_scale", logit_scale)
        else:
            self.logit_scale = logit_scale

    def forward(self, logits: Tensor, target: MixedTarget | Tensor) -> Tensor:
        """The loss in nats, () or (B,)."""
        if self.training and not torch.compiler.is_compiling() and _is_single(logits, target):
            _warn_single()
        loss: Tensor = F_icm.icm_loss(
            logits,
            target,
            axis=self.axis,
            reduction=self.reduction,
            logit_scale=self.logit_scale,
            validate=self.validate,
            backend=self.backend,
        )
        return loss

    def extra_repr(self) -> str:
        scale = self.logit_scale
        described = float(f"{scale.item():g}") if isinstance(scale, Tensor) and not scale.is_meta else scale
        return _describe_options(
            f"axis={self.axis!r}, reduction={self.reduction!r}",
            logit_scale=described,
            validate=self.validate or None,
            backend=self.backend,
        )


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
        _check_number(where, "label_smoothing", label_smoothing, 0.0, 1.0)
        check_choice(where, "reduction", reduction, REDUCTION_NAMES)
        self.register_buffer("weight", weight)
        self.label_smoothing, self.reduction, self.backend = label_smoothing, reduction, backend

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
        return _describe_options(
            f"reduction={self.reduction!r}",
            weight=weight,
            label_smoothing=self.label_smoothing or None,
            backend=self.backend,
        )


class RegMixupLoss(nn.Module):
    """Cross-entropy of the clean batch plus gamma times a loss of the mixed one: RegMixup, IC-RegMixup.

    `lam` of the target is the weight of the sample ITSELF::

        loss = CE(clean logits, target.clean) + gamma * mixed(mixed logits, target)

    Neither term is halved (the program of RegMixup's authors halves both). Integer labels mean plain cross-entropy of
    the logits as they are.

    Args:
        mixed: the loss of the mixed half, a module (logits, target) -> loss. Default: ICMLoss(), which makes
            IC-RegMixup; MixupCrossEntropyLoss() makes RegMixup. If it has a `reduction`, the clean term takes it over.
        gamma: weight of the mixed term, not negative.

    Raises:
        TypeError: a mixed that cannot be called, a gamma that is not a number.
        ValueError: a negative or infinite gamma.

    Example:
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
        _check_number("RegMixupLoss", "gamma", gamma, 0.0, math.inf)
        self.mixed = ICMLoss() if mixed is None else mixed
        self.gamma = gamma

    def forward(self, logits: Tensor | tuple[Tensor, Tensor], target: MixedTarget | Tensor) -> Tensor:
        """The loss in nats.

        Args:
            logits: (2B, C), the clean half first: one forward over the concatenated batch; or a pair (clean, mixed) of
                (B, C) each, from two forwards.
            target: a `MixedTarget` with `clean`; or integer labels of logits that are not halved, for evaluation.
        """
        where = "RegMixupLoss"
        if not isinstance(target, MixedTarget):
            return self._evaluate(where, logits, target)
        if target.clean is None:
            raise ValueError(
                f"{where}: target has no clean labels; write Mixup(keep_clean=True), or MixedTarget(..., clean=labels)"
            )
        clean, mixed = _halves(where, logits, len(target))
        loss: Tensor = _cross_entropy(clean, target.clean, self._reduction) + self.gamma * self.mixed(mixed, target)
        return loss

    def _evaluate(self, where: str, logits: Tensor | tuple[Tensor, Tensor], target: Any) -> Tensor:
        logits = check_logits(where, logits)
        if target_kind(where, logits, target) == "dense":
            raise TypeError(f"{where}: expected a MixedTarget with clean labels or integer labels, got a dense target")
        return _cross_entropy(logits, target, self._reduction)

    @property
    def _reduction(self) -> str:
        return getattr(self.mixed, "reduction", "mean")

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:g}"


def _cross_entropy(logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
    return F_icm.mixup_cross_entropy(logits, labels, reduction=reduction)


def _halves(where: str, logits: Any, batch_size: int) -> tuple[Tensor, Tensor]:
    """Clean and mixed logits; of one tensor by chunk, whose gradient is a single concatenation."""
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
    if batch_size == 0:
        return logits, logits  # chunk would return one piece
    clean, mixed = logits.chunk(2)
    return clean, mixed


def _check_scale(scale: Tensor) -> None:
    if scale.dim() != 0 or not scale.is_floating_point():
        raise ValueError(f"ICMLoss: expected logit_scale to be a number or a 0-d tensor, got {describe(scale)}")
    if not scale.is_leaf:
        raise ValueError(
            "ICMLoss: logit_scale is computed from other tensors, whose graph would be gone after one backward; "
            "pass an nn.Parameter, or call functional.icm_loss with the scale of each step"
        )


def _check_number(where: str, name: str, value: Any, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{where}: expected {name} to be a number, got {describe(value)}")
    if not (least <= value <= most and math.isfinite(value)):
        interval = f"[{least:g}, {most:g}]" if math.isfinite(most) else f"[{least:g}, inf)"
        raise ValueError(f"{where}: expected {name} in {interval}, got {value!r}")


def _is_single(logits: Any, target: Any) -> bool:
    hard = isinstance(target, Tensor) and not target.is_floating_point()
    return isinstance(logits, Tensor) and logits.shape[:1] == (1,) and not hard


@functools.cache
def _warn_single() -> None:
    logger.warning(
        "ICMLoss: a batch of one image has no other to be told from, so its loss and gradient are 0; drop a last "
        "batch of one (DataLoader(drop_last=True)) or merge it"
    )


def _describe_options(first: str, **options: Any) -> str:
    """Arguments of a repr; those that are None are left out."""
    return ", ".join([first, *(f"{name}={value!r}" for name, value in options.items() if value is not None)])
