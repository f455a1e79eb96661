"""timm: mixing while batches are collated, for its prefetching loader.

In timm's train.py the names are swapped one for one; `ICMLoss()` takes the place of `SoftTargetCrossEntropy()`, and
goes with timm's own Mixup and its dense targets too:

======================================  ==========================================================
``--no-prefetcher``                     ``mixup_fn = icm_fast.Mixup(**mixup_args)``
otherwise                               ``collate_fn = FastCollateMixup(**mixup_args)``, of this module
``--mixup-off-epoch``                   works; from there on plain cross-entropy of integer labels
``--smoothing`` above 0, the default    dense targets, which the log explains; ``--smoothing 0`` gives mixed ones
======================================  ==========================================================

Unlike timm's: any batch size; partners are drawn (pairing="flip" for timm's order); `prob` is one draw for the whole
batch in every mode; draws come from torch's generator. timm.utils.accuracy needs integer labels: a loader without
mixing, or a target's `y_a`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import timm.data
import torch
from torch import Tensor
from torch.utils.data import default_collate

from .._validate import describe
from ..mixing import Mixup
from ..mixing.labels import check_labels

_WHERE = "FastCollateMixup"
_ELSEWHERE = {
    "mean": "PrefetchLoader normalises",
    "std": "PrefetchLoader normalises",
    "dtype": "the result is uint8, as PrefetchLoader takes it",
    "backend": "a batch is mixed as it is collated, on the CPU",
}


class FastCollateMixup(timm.data.FastCollateMixup):
    """Collates and mixes samples with uint8 images; lam of the target is the weight of the sample ITSELF.

    A `timm.data.FastCollateMixup`, so that `PrefetchLoader` and `--mixup-off-epoch` know it. Pixels are those of
    `functional.mixup`, rounded to the nearest integer, halves to the even one, as timm's are.

    Args:
        mixup_alpha, cutmix_alpha, options: those of `icm_fast.Mixup`, timm's names among them; without mean, std,
            dtype and backend.

    Attributes:
        mixup_enabled: False for plain training: images pass unmixed, with integer labels, for which every loss is
            cross-entropy; with target="dense" one-hot rows, smoothed as before, for losses that want those. Worker
            processes see the change at once, also those of a loader with persistent_workers, timm's default.
        mix: the `icm_fast.Mixup` that draws.

    Raises:
        TypeError, ValueError: as `icm_fast.Mixup`, and for options that have no place here.

    Cost:
        128 images of 3x224x224 on one core of an AMD EPYC: 16 ms mixed by weight (timm's own: 23 ms), 10 ms by boxes
        (10 to 18 ms). One image at a time is held in float32.

    Example:
        >>> collate = FastCollateMixup(mixup_alpha=0.2, cutmix_alpha=1.0, num_classes=10)
        >>> images, target = collate([(torch.zeros(3, 8, 8, dtype=torch.uint8), label) for label in range(5)])
        >>> images.dtype, target.y_a.tolist()
        (torch.uint8, [0, 1, 2, 3, 4])
    """

    def __init__(self, mixup_alpha: float = 0.2, cutmix_alpha: float = 0.0, **options: Any) -> None:
        for name, why in _ELSEWHERE.items():
            if options.get(name) is not None:
                raise TypeError(f"{_WHERE}: leave out {name}: {why}")
        self.mix = Mixup(mixup_alpha, cutmix_alpha, **options)
        # Workers that persist hold a copy of this object, made before the first epoch; memory is what they share.
        self._enabled = torch.ones((), dtype=torch.bool).share_memory_()
        names = ("cutmix_minmax", "prob", "switch_prob", "mode", "correct_lam", "label_smoothing", "num_classes")
        super().__init__(mixup_alpha, cutmix_alpha, **{name: getattr(self.mix, name) for name in names})

    @property
    def mixup_enabled(self) -> bool:
        return bool(self._enabled)

    @mixup_enabled.setter
    def mixup_enabled(self, enabled: bool) -> None:
        self._enabled.fill_(bool(enabled))

    def __call__(self, batch: Sequence[tuple[Any, Any]], _: Any = None) -> tuple[Tensor, Any]:
        """uint8 images (B, ...), with keep_clean (2B, ...), and their target.

        Args:
            batch: B samples (image, label): images uint8 NumPy arrays or tensors of one shape, labels integers.

        Raises:
            TypeError, ValueError: other images or labels.
        """
        images = _as_bytes([image for image, _ in batch])
        whole = images[0].new_empty((len(images), *images[0].shape))
        labels = check_labels(whole, default_collate([label for _, label in batch]))
        plan = self.mix._draw(whole) if self.mixup_enabled else None
        if plan is None:
            return torch.stack(images, out=whole), self.mix._target(labels, None)
        _mix_bytes(images, plan.index, plan.lam, plan.box, whole)
        target = self.mix._target(labels, plan)
        return torch.cat([torch.stack(images), whole]) if self.mix.keep_clean else whole, target

    def __repr__(self) -> str:
        return f"FastCollate{self.mix!r}"


def _as_bytes(images: list[Any]) -> list[Tensor]:
    tensors = []
    for image in images:
        if getattr(image, "dtype", None) not in (torch.uint8, np.dtype(np.uint8)):
            came = f"an array of {image.dtype}" if isinstance(image, np.ndarray) else describe(image)
            raise TypeError(
                f"{_WHERE}: expected uint8 arrays or tensors as images, got {came}; timm's create_loader makes them "
                "with use_prefetcher=True; with --no-prefetcher pass no collate_fn and mix batches with icm_fast.Mixup"
            )
        tensors.append(torch.as_tensor(image))
    if tensors[0].dim() != 3 or len({tensor.shape for tensor in tensors}) != 1:
        shapes = sorted({tuple(tensor.shape) for tensor in tensors})
        raise ValueError(f"{_WHERE}: expected images of one shape (C, H, W), got {', '.join(map(str, shapes))}")
    return tensors


def _mix_bytes(images: list[Tensor], index: Tensor, lam: Tensor | None, box: Tensor | None, out: Tensor) -> None:
    """An image at a time, so that what is float32 stays in the cache."""
    count = len(images)
    weights = [1.0] * count if lam is None else lam.expand(count).tolist()
    boxes = [[0, 0, 0, 0]] * count if box is None else box.expand(count, 4).tolist()
    wide = torch.empty_like(images[0], dtype=torch.float32)  # strides too: timm's arrays are views of (H, W, C)
    for own, partner, weight, (y1, y2, x1, x2), mixed in zip(
        images, (images[i] for i in index.tolist()), weights, boxes, out, strict=True
    ):
        if weight == 1 or own is partner:
            mixed.copy_(own)
        else:
            torch.mul(own, weight, out=wide).add_(partner, alpha=1 - weight).round_()
            mixed.copy_(wide)
        if y1 < y2 and x1 < x2:
            mixed[..., y1:y2, x1:x2] = partner[..., y1:y2, x1:x2]
