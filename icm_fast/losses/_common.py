"""What the modules share."""

from __future__ import annotations

import functools
import logging
import math
from typing import Any

from torch import Tensor, nn

from .._validate import describe

logger = logging.getLogger("icm_fast")


def check_number(where: str, name: str, value: Any, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{where}: expected {name} to be a number, got {describe(value)}")
    if not (least <= value <= most and math.isfinite(value)):
        interval = f"[{least:g}, {most:g}]" if math.isfinite(most) else f"[{least:g}, inf)"
        raise ValueError(f"{where}: expected {name} in {interval}, got {value!r}")


def describe_options(first: str, **options: Any) -> str:
    """Arguments of a repr; those that are None are left out."""
    return ", ".join([first, *(f"{name}={value!r}" for name, value in options.items() if value is not None)])


def keep_scale(module: nn.Module, where: str, logit_scale: float | Tensor | None) -> None:
    """module.logit_scale: a number; a 0-d tensor, as a buffer; a parameter, which is trained."""
    if isinstance(logit_scale, Tensor):
        _check_scale(where, logit_scale)
    elif logit_scale is not None and (isinstance(logit_scale, bool) or not isinstance(logit_scale, (int, float))):
        raise TypeError(f"{where}: expected logit_scale to be a number or a 0-d tensor, got {describe(logit_scale)}")
    if isinstance(logit_scale, Tensor) and not isinstance(logit_scale, nn.Parameter):
        module.register_buffer("logit_scale", logit_scale)
    else:
        module.logit_scale = logit_scale  # type: ignore[assignment]


def describe_scale(scale: float | Tensor | None) -> float | Tensor | None:
    """For a repr."""
    return float(f"{scale.item():g}") if isinstance(scale, Tensor) and not scale.is_meta else scale


def _check_scale(where: str, scale: Tensor) -> None:
    if scale.dim() != 0 or not scale.is_floating_point():
        raise ValueError(f"{where}: expected logit_scale to be a number or a 0-d tensor, got {describe(scale)}")
    if not scale.is_leaf:
        raise ValueError(
            f"{where}: logit_scale is computed from other tensors, whose graph would be gone after one backward; "
            "pass an nn.Parameter, or call the function with the scale of each step"
        )


def is_single(rows: Any, target: Any) -> bool:
    hard = isinstance(target, Tensor) and not target.is_floating_point()
    return isinstance(rows, Tensor) and rows.shape[:1] == (1,) and not hard


@functools.cache
def warn_single(where: str) -> None:
    logger.warning(
        "%s: a batch of one image has no other to be told from, so its loss and gradient are 0; drop a last "
        "batch of one (DataLoader(drop_last=True)) or merge it",
        where,
    )
