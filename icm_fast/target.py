"""What a mixed batch is trained towards."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from ._validate import as_scalar, check_floating, check_labels, check_same_device, describe


@dataclasses.dataclass(frozen=True, eq=False)
class MixedTarget:
    """Labels of a mixed batch: row j is class `y_a[j]` with weight `lam[j]`, `y_b[j]` with `1 - lam[j]`.

    `lam` is the weight of the sample ITSELF (`y_a`), the partner weighs `1 - lam`; kornia and composer use the
    opposite. In the notation of the paper (arXiv 2305.10293, eq. 1)::

        Y[j] = lam[j] * onehot(y_a[j]) + (1 - lam[j]) * onehot(y_b[j])

    Args:
        y_a: (B,) integers of any width, kept as int64: labels of the samples.
        y_b: (B,) likewise: labels of their partners.
        lam: () one ratio for the batch, or (B,) one per sample, in [0, 1]; kept as float32 (float64 stays).
        clean: (B,) labels of the unmixed half, when the batch is `cat([clean, mixed])` (`Mixup(keep_clean=True)`).
        plan: an optional precomputed class order; only its length is checked.

    Raises:
        TypeError: labels that are not integers, a lam that is not a floating-point tensor or requires grad.
        ValueError: shapes that do not fit, tensors on different devices. Values are not read here: a label or lam
            out of range is found by the loss.

    Example:
        >>> target = MixedTarget(torch.tensor([0, 2]), torch.tensor([2, 1]), torch.tensor(0.75))
        >>> len(target), target.dense(3).tolist()
        (2, [[0.75, 0.0, 0.25], [0.0, 0.25, 0.75]])
    """

    y_a: Tensor
    y_b: Tensor
    lam: Tensor
    clean: Tensor | None = None
    plan: Any = None

    def __post_init__(self) -> None:
        where = "MixedTarget"
        object.__setattr__(self, "y_a", check_labels(where, "y_a", self.y_a))
        object.__setattr__(self, "y_b", check_labels(where, "y_b", self.y_b, shape=self.y_a.shape))
        lam = check_floating(where, "lam", self.lam, fix="Write lam=torch.tensor(0.3).")
        if lam.requires_grad:
            raise TypeError(f"{where}: lam requires grad, but targets carry no gradient; pass lam.detach()")
        if lam.dim() != 0 and lam.shape != self.y_a.shape:
            raise ValueError(
                f"{where}: expected lam of shape () or ({len(self.y_a)},) like y_a, got {tuple(lam.shape)}"
            )
        if lam.dtype not in (torch.float32, torch.float64):
            lam = lam.float()
        object.__setattr__(self, "lam", lam)
        check_same_device(where, y_a=self.y_a, y_b=self.y_b, lam=lam)
        if self.clean is not None:
            object.__setattr__(self, "clean", check_labels(where, "clean", self.clean, shape=self.y_a.shape))
            check_same_device(where, y_a=self.y_a, clean=self.clean)
        if self.plan is not None and len(self.plan) != len(self.y_a):
            raise ValueError(f"{where}: the plan is for {len(self.plan)} samples, y_a has {len(self.y_a)}")

    def __len__(self) -> int:
        return int(self.y_a.shape[0])

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Tensor):
            raise TypeError(
                "MixedTarget: compared with a tensor, of predictions perhaps: it holds two labels a sample; use "
                "icm_fast.metrics.mixup_accuracy, or integer labels"
            )
        return self is other

    __hash__ = object.__hash__

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"MixedTarget has no attribute {name!r}: it holds two labels a sample and is no tensor. Measure on integer "
            "labels, or with icm_fast.metrics.mixup_accuracy; what wants rows (B, C) takes target.dense(num_classes)"
        )

    @property
    def device(self) -> torch.device:
        """Where the labels are."""
        return self.y_a.device

    @property
    def shape(self) -> torch.Size:
        """(B,), as for a tensor of labels."""
        return self.y_a.shape

    @property
    def ndim(self) -> int:
        """1, as for a tensor of labels."""
        return 1

    def size(self, dim: int | None = None) -> torch.Size | int:
        """As for a tensor of labels."""
        return self.y_a.size() if dim is None else self.y_a.size(dim)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> MixedTarget:
        """The same target on another device; types never change.

        Raises:
            TypeError: a dtype instead of a device.
        """
        for given in (device, non_blocking):
            if isinstance(given, torch.dtype):
                raise TypeError(f"MixedTarget.to: expected a device, got {given}; labels and lam keep their types")
        return self._map(lambda tensor: tensor.to(device=device, non_blocking=non_blocking))

    def cpu(self) -> MixedTarget:
        """The same target in main memory."""
        return self.to("cpu")

    def cuda(self, device: torch.device | str | int = "cuda", non_blocking: bool = False) -> MixedTarget:
        """The same target on a GPU."""
        return self.to(device, non_blocking)

    def pin_memory(self) -> MixedTarget:
        """The same target in page-locked memory."""
        return self._map(lambda tensor: tensor.pin_memory())

    def dense(self, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, num_classes) mixed targets; equal classes add up to 1.

        Raises:
            ValueError: a label is not below num_classes (on the CPU, not in a graph; else the device reports it).
        """
        looks = self.device.type == "cpu" and not torch.compiler.is_compiling() and len(self) > 0
        if looks and (largest := int(torch.maximum(self.y_a, self.y_b).max())) >= num_classes:
            raise ValueError(f"MixedTarget.dense: label {largest} needs num_classes > {largest}, got {num_classes}")
        lam = self.lam.to(dtype).expand(self.shape[0])
        rows = torch.zeros(self.shape[0], num_classes, dtype=dtype, device=self.device)
        rows.scatter_add_(1, self.y_a[:, None], lam[:, None])
        return rows.scatter_add_(1, self.y_b[:, None], (1 - lam)[:, None])

    @classmethod
    def from_tuple(cls, labels: tuple[Tensor, Tensor, Tensor | float]) -> MixedTarget:
        """From `(y_a, y_b, lam)`, as many training loops pass it; a float lam becomes a tensor.

        Raises:
            TypeError: not a tuple or list of three.
        """
        if not isinstance(labels, (tuple, list)) or len(labels) != 3:
            raise TypeError(f"MixedTarget.from_tuple: expected (y_a, y_b, lam), got {describe(labels)}")
        y_a, y_b, lam = labels
        if not isinstance(lam, Tensor):
            lam = as_scalar(lam, torch.float32, y_a.device if isinstance(y_a, Tensor) else None)
        return cls(y_a, y_b, lam)

    @classmethod
    def from_dense(cls, rows: Tensor) -> MixedTarget:
        """From (B, C) dense targets with at most two non-zeros a row, which sum to 1. Reads the values once.

        Raises:
            ValueError: a row with more non-zeros, a negative weight, or weights that do not sum to 1 within rounding.
        """
        check_floating("MixedTarget.from_dense", "rows", rows, fix="Integer labels go into every loss as they are.")
        if rows.dim() != 2 or rows.shape[1] == 0:
            raise ValueError(f"MixedTarget.from_dense: expected shape (B, C), got {tuple(rows.shape)}")
        wide = rows.detach() if rows.dtype == torch.float64 else rows.detach().float()
        counts, sums = (wide != 0).sum(dim=1), wide.sum(dim=1)
        rounded = 4 * torch.finfo(rows.dtype).eps
        bad = (counts > 2) | (wide < 0).any(dim=1) | ~((sums - 1).abs() <= rounded)
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise ValueError(
                "MixedTarget.from_dense: expected at most two weights above 0 that sum to 1 in each row, "
                f"row {row} has {int(counts[row])} non-zeros that sum to {float(sums[row]):.6g}; "
                "pass the dense tensor itself instead"
            )
        weights, classes = wide.topk(min(2, rows.shape[1]), dim=1)
        return cls(classes[:, 0], classes[:, -1], weights[:, 0].clamp(0, 1))

    @classmethod
    def from_kornia(cls, labels: Tensor) -> MixedTarget:
        """From kornia's (B, 3) rows `[label, partner label, weight of the PARTNER]`: the weight is turned round."""
        if not isinstance(labels, Tensor) or labels.dim() != 2 or labels.shape[1] != 3:
            raise ValueError(f"MixedTarget.from_kornia: expected a (B, 3) tensor, got {describe(labels)}")
        return cls(labels[:, 0].long(), labels[:, 1].long(), 1 - labels[:, 2])

    def _map(self, move: Any) -> MixedTarget:
        clean = None if self.clean is None else move(self.clean)
        return dataclasses.replace(
            self, y_a=move(self.y_a), y_b=move(self.y_b), lam=move(self.lam), clean=clean, plan=None
        )


# Those that are there: whoever maps over a tree expects tensors, and may not take None for one.
_Names = tuple[str, ...]
_ALWAYS, _SOMETIMES = ("y_a", "y_b", "lam"), ("clean", "plan")


def _names(target: MixedTarget) -> _Names:
    return _ALWAYS + tuple(name for name in _SOMETIMES if getattr(target, name) is not None)


def _parts(target: MixedTarget) -> tuple[list[Any], _Names]:
    names = _names(target)
    return [getattr(target, name) for name in names], names


def _named_parts(target: MixedTarget) -> tuple[list[tuple[pytree.KeyEntry, Any]], _Names]:
    names = _names(target)
    return [(pytree.GetAttrKey(name), getattr(target, name)) for name in names], names


def _from_parts(parts: Iterable[Any], names: _Names) -> MixedTarget:
    """Unchecked: what maps over trees puts anything in the place of tensors, None and shapes included."""
    target = object.__new__(MixedTarget)
    values = dict.fromkeys(_SOMETIMES) | dict(zip(names, parts, strict=True))
    for name, value in values.items():
        object.__setattr__(target, name, value)
    return target


# For torch.export, torch.func and whatever else looks for tensors inside arguments.
pytree.register_pytree_node(
    MixedTarget,
    _parts,
    _from_parts,
    serialized_type_name="icm_fast.MixedTarget",
    flatten_with_keys_fn=_named_parts,
)
# It holds tensors and runs nothing, so torch.load may read it with weights_only=True.
torch.serialization.add_safe_globals([MixedTarget])
