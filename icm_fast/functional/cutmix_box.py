"""The box of CutMix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from .._validate import check_lam_values, check_same_device, check_tensor, describe
from ._dispatch import reads_values

_WHERE = "cutmix_box"


def cutmix_box(
    lam: float | Tensor, height: int, width: int, centre_y: int | Tensor, centre_x: int | Tensor
) -> tuple[Tensor, Tensor]:
    """The CutMix box and the lam that goes with it, the weight of the sample ITSELF: the box is the partner's.

    The box has sides sqrt(1 - lam) of the image's, lies around the centre and is clipped to the image::

        h = floor(height * sqrt(1 - lam) / 2)      y1 = max(centre_y - h, 0)    y2 = min(centre_y + h, height)

    and alike in x; the returned lam is the share of the image that is left: 1 - (y2 - y1)(x2 - x1) / (height * width).

    Args:
        lam: the wanted share of the sample's own pixels: a number, () or (B,), float32 or float64, in [0, 1].
        height, width: of the images, in pixels.
        centre_y, centre_x: numbers or integer tensors, () or (B,), in pixels; to be drawn uniformly.

    Returns:
        box (4,) or (B, 4) int64: y1, y2, x1, x2, half-open, for `mixup(box=...)`; and lam () or (B,).

    Raises:
        TypeError, ValueError: a lam, size or centre of a wrong type; on the CPU in eager mode a lam outside [0, 1].

    Cost:
        O(B), a dozen small operations.

    Numerics:
        The sides in float64, so that the box does not depend on the device.

    Example:
        >>> cutmix_box(0.75, 8, 8, 4, 7)  # a 4 x 4 box, clipped to 4 x 3
        (tensor([2, 6, 5, 8]), tensor(0.8125))
    """
    for name, size in (("height", height), ("width", width)):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{_WHERE}: expected {name} to be a positive integer, got {describe(size)}")
    weight = lam if isinstance(lam, Tensor) else torch.tensor(_number("lam", lam))
    if weight.dtype not in (torch.float32, torch.float64) or weight.dim() > 1:
        raise ValueError(f"{_WHERE}: expected lam of shape () or (B,) in float32 or float64, got {describe(weight)}")
    for name, centre in (("centre_y", centre_y), ("centre_x", centre_x)):
        if not isinstance(centre, Tensor):
            _number(name, centre)
            continue
        check_tensor(_WHERE, name, centre)
        check_same_device(_WHERE, lam=weight, **{name: centre})
        if centre.dim() > 1 or centre.is_floating_point():
            raise ValueError(f"{_WHERE}: expected {name} to hold integers of shape () or (B,), got {describe(centre)}")
    if reads_values(weight):
        check_lam_values(_WHERE, weight)
    return reference.cutmix_box(weight, height, width, centre_y, centre_x)


def _number(name: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{_WHERE}: expected {name} to be a number or a tensor, got {describe(value)}")
    return float(value) if name == "lam" else value
