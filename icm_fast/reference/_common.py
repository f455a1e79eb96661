"""What the reference functions share: types, the rule for two-class targets, bad values, reductions."""

from __future__ import annotations

import contextlib
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Axis = Literal["both", "class", "pair"]
Reduction = Literal["mean", "sum", "none"]


class MixedTargetLike(Protocol):
    """Anything with two labels and a weight per mixed class; `lam` weighs y_a, the sample itself."""

    @property
    def y_a(self) -> Tensor: ...
    @property
    def y_b(self) -> Tensor: ...
    @property
    def lam(self) -> Tensor: ...


Target = Tensor | MixedTargetLike


class TwoHot(NamedTuple):
    """The smallest mixed target: y_a (N,), y_b (N,), lam () or (N,), the weight of y_a."""

    y_a: Tensor
    y_b: Tensor
    lam: Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of every sum and of the loss: float64 for float64, float32 for the narrower ones."""
    if dtype == torch.float64:
        return torch.float64
    if dtype in (torch.float32, torch.bfloat16, torch.float16):
        return torch.float32
    raise TypeError(f"expected a floating-point tensor, got {dtype}")


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Where products keep the types that they are given: autocast would run them in half precision."""
    if not torch.amp.is_autocast_available(device.type):  # the meta device
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def reduce(terms: Tensor, reduction: Reduction) -> Tensor:
    """mean, sum or none over (B,) terms. B = 0: NaN, 0, (0,), as F.cross_entropy."""
    if reduction == "mean":
        return terms.mean()
    if reduction == "sum":
        return terms.sum()
    if reduction == "none":
        return terms
    raise ValueError(f"expected reduction 'mean', 'sum' or 'none', got {reduction!r}")


# Bad values (spec §2.6): never an index error and never a host read, but NaN in every loss entry and in
# the whole gradient. Labels are clamped before they index anything, and the LOGITS are multiplied by
# one(valid): a factor on the scores would leave classes that no column uses with gradient 0.


def one(valid: Tensor) -> Tensor:
    """1 where the 0-d `valid` holds, else NaN."""
    return torch.where(valid, 1.0, float("nan"))


def in_range(values: Tensor, size: int) -> Tensor:
    """Which of the labels or indices lie in [0, size)."""
    return (values >= 0) & (values < size)


def is_weight(lam: Tensor) -> Tensor:
    """Which of the weights lie in [0, 1]; false for NaN."""
    return (lam >= 0) & (lam <= 1)


class Columns(NamedTuple):
    """N mixed classes of at most two classes each, after the rule of spec §2.4. See `columns`."""

    first: Tensor  # (N,) int64, in range
    second: Tensor  # (N,) int64, in range; of no effect where pure
    w_first: Tensor  # (N,) in the accumulation type
    w_second: Tensor  # (N,)
    pure: Tensor  # (N,) bool: the class `first` alone, with weight exactly 1
    valid: Tensor  # () bool: no label and no weight is bad

    def blend(self, v_first: Tensor, v_second: Tensor) -> Tensor:
        """w_first * v_first + w_second * v_second along the last dimension; exactly v_first where pure."""
        mixed = self.w_first * v_first + self.w_second * v_second
        return torch.where(self.pure, v_first, mixed)


def columns(target: MixedTargetLike, num_classes: int, dtype: torch.dtype) -> Columns:
    """Spec §2.4: y_a == y_b, or one weight exactly 0, is the pure class with weight exactly 1.

    lam * v + (1 - lam) * v is not always v in floating point, and 0 * (-inf) is NaN: both would
    change what a pure class means. 1 - lam is formed in the accumulation type.
    """
    if not all(hasattr(target, name) for name in ("y_a", "y_b", "lam")):
        raise TypeError(
            "expected a MixedTarget (see MixedTarget.from_tuple), a float tensor (B, C) or an integer tensor (B,), "
            f"got {type(target).__name__}"
        )
    if target.lam.requires_grad:
        raise ValueError("lam carries no gradient; pass lam.detach()")
    y_a, y_b = target.y_a.long(), target.y_b.long()
    w_a = target.lam.to(dtype).expand(y_a.shape)
    w_b = 1 - w_a
    valid = (in_range(y_a, num_classes) & in_range(y_b, num_classes) & is_weight(w_a)).all()
    pure = (y_a == y_b) | (w_a == 0) | (w_b == 0)
    first = torch.where(w_a == 0, y_b, y_a).clamp(0, num_classes - 1)
    return Columns(first, y_b.clamp(0, num_classes - 1), w_a, w_b, pure, valid)


def dense_target(target: Tensor, dtype: torch.dtype) -> Tensor:
    """Dense soft targets Y (B, C) in the accumulation type."""
    if target.requires_grad:
        raise ValueError("target carries no gradient; pass target.detach()")
    if target.ndim != 2:
        raise ValueError(f"expected a dense target of shape (B, C), got {tuple(target.shape)}")
    return target.to(dtype)


def hard_labels(target: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Integer labels (B,) as int64, clamped into range, and the 0-d flag that no label had to be."""
    if target.ndim != 1:
        raise ValueError(f"expected integer labels of shape (B,), got {tuple(target.shape)}")
    labels = target.long()
    return labels.clamp(0, num_classes - 1), in_range(labels, num_classes).all()
