"""What `Mixup` does with labels: those it takes, and the kind of target that it makes of them."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor

from .. import _validate
from .._validate import check_choice, check_number, check_same_device, check_tensor, describe
from ..target import MixedTarget

_WHERE = "Mixup"
_TARGETS = ("mixed", "dense")
logger = logging.getLogger("icm_fast")


def check_target(target: str | None, num_classes: Any, label_smoothing: Any, keep_clean: bool) -> str:
    """Which of the two targets."""
    check_number(_WHERE, "label_smoothing", label_smoothing, least=0, most=1)
    if num_classes is not None and (
        isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1
    ):
        raise ValueError(f"{_WHERE}: expected num_classes to be a positive integer, got {describe(num_classes)}")
    target = ("dense" if label_smoothing else "mixed") if target is None else target
    check_choice(_WHERE, "target", target, _TARGETS)
    if target == "mixed":
        if label_smoothing:
            raise ValueError(
                f'{_WHERE}: label_smoothing goes with target="dense"; for a mixed target pass it to '
                "MixupCrossEntropyLoss, and 0 here; an IC loss has none"
            )
        return target
    why = f"label_smoothing={label_smoothing}, which makes a dense target," if label_smoothing else 'target="dense"'
    if num_classes is None:
        raise ValueError(f"{_WHERE}: {why} needs num_classes, got None")
    if keep_clean:
        raise ValueError(f'{_WHERE}: keep_clean needs target="mixed": {why} cannot hold the clean labels')
    if label_smoothing:
        logger.warning(
            "%s: label_smoothing=%g makes targets dense, (B, %d), which cost an IC loss far more than mixed ones; it "
            "scales that loss's class axis like a temperature and shifts its pair axis by an offset of each image. The "
            "papers use none: label_smoothing=0 gives mixed targets",
            _WHERE,
            label_smoothing,
            num_classes,
        )
    return target


def check_labels(images: Tensor, labels: Any) -> Tensor:
    """(B,) integers that fit the images, returned as int64."""
    mixed = isinstance(labels, MixedTarget)
    if mixed or check_tensor(_WHERE, "labels", labels).is_floating_point() or labels.dim() == 2:
        if mixed or (labels.dim() == 2 and labels.shape[1] > 1):
            fix = "a batch is mixed once, and a target that is mixed already goes into the loss as it is"
            fix += "" if mixed else "; of one-hot labels pass labels.argmax(1)"
        else:
            fix = "pass labels.long()" if labels.dim() == 1 else "pass labels.squeeze(1).long()"
        raise TypeError(f"{_WHERE}: expected integer labels (B,), got {describe(labels)}; {fix}")
    labels = _validate.check_labels(_WHERE, "labels", labels)
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{_WHERE}: images has {images.shape[0]} samples but labels has {labels.shape[0]}")
    check_same_device(_WHERE, images=images, labels=labels)
    return labels


def dense_rows(mixed: MixedTarget, num_classes: int, label_smoothing: float) -> Tensor:
    """(B, num_classes), smoothed."""
    return mixed.dense(num_classes) * (1 - label_smoothing) + label_smoothing / num_classes
