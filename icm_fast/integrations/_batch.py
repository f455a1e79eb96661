"""What trainers hand over as a batch: images and labels at two places of a tuple, a list or a mapping."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .._validate import describe
from ..target import MixedTarget

Mixing = Callable[[Any, Any], tuple[Any, Any]]


def mix_fields(where: str, mixing: Mixing, batch: Any, fields: tuple[Any, Any], fix: str) -> Any:
    """The batch with mixed images and their target in place of images and labels; the rest as it is.

    Args:
        fields: keys or positions of the images and of the labels.
        fix: what to do if they are not there.
    """
    images, labels = (get_field(where, batch, field, fix) for field in fields)
    if isinstance(labels, MixedTarget):
        raise ValueError(
            f"{where}: the labels are a MixedTarget already: the batch was mixed before, by the collate function or "
            "the data set. Mix in one place: remove it there or here"
        )
    return _replace(batch, dict(zip(fields, mixing(images, labels), strict=True)))


def get_field(where: str, batch: Any, field: Any, fix: str) -> Any:
    """batch[field], or an error that says what the batch is."""
    if not has_field(batch, field):
        held = f"a {type(batch).__name__} with keys {list(batch)}" if isinstance(batch, Mapping) else describe(batch)
        raise ValueError(f"{where}: expected a batch with [{field!r}], got {held}; {fix}")
    return batch[field]


def has_field(batch: Any, field: Any) -> bool:
    if isinstance(batch, Mapping):
        return field in batch
    return isinstance(batch, (tuple, list)) and isinstance(field, int) and -len(batch) <= field < len(batch)


def _replace(batch: Any, values: dict[Any, Any]) -> Any:
    """A shallow copy of the same type with other values."""
    if isinstance(batch, Mapping):
        changed: Any = copy.copy(batch)
    else:
        changed = list(batch)
    for field, value in values.items():
        changed[field] = value
    if isinstance(batch, tuple):
        return batch._make(changed) if hasattr(batch, "_make") else type(batch)(changed)
    return changed


def check_hard(where: str, labels: Any, fix: str) -> None:
    """Evaluation wants the labels themselves."""
    if isinstance(labels, MixedTarget) or (isinstance(labels, Tensor) and labels.is_floating_point()):
        raise ValueError(f"{where}: evaluation needs integer labels (B,), got {describe(labels)}; {fix}")
