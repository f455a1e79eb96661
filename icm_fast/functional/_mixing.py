"""Checks of what mixing is given; shared by `functional.mixup` and `Mixup`, which `where` names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._validate import FLOATING, INTEGERS, as_scalar, check_lam_values, check_same_device, check_tensor, describe
from ..operators._library import accumulation_type


def check_samples(where: str, x: Any) -> Tensor:
    """(B, ...), floating-point or uint8."""
    x = check_tensor(where, "x", x)
    if x.dtype not in FLOATING and x.dtype != torch.uint8:
        raise TypeError(
            f"{where}: expected x in float32, float64, bfloat16, float16 or uint8, got {describe(x)}; "
            "labels and masks are not mixed"
        )
    if x.dim() == 0:
        raise ValueError(f"{where}: expected x of shape (B, ...), got {describe(x)}")
    return x


def check_index(where: str, x: Tensor, index: Any) -> Tensor:
    """(B,) integers, returned as int64."""
    index = check_tensor(where, "index", index)
    if index.dtype not in INTEGERS:
        raise TypeError(f"{where}: expected index to hold integers, got {describe(index)}")
    if index.shape != x.shape[:1]:
        raise ValueError(f"{where}: expected index of shape ({x.shape[0]},), got {describe(index)}")
    check_same_device(where, x=x, index=index)
    return index.long()


def check_pixels(where: str, x: Tensor, mean: Any, std: Any, dtype: Any) -> torch.dtype:
    """Normalisation goes with uint8 samples, one mean and std per channel; the type of the result."""
    if x.dtype != torch.uint8:
        for name, value in (("mean", mean), ("std", std), ("dtype", dtype)):
            if value is not None:
                raise TypeError(f"{where}: leave out {name}, which goes with uint8 samples; got {describe(x)}")
        return x.dtype
    if mean is None or std is None:
        raise TypeError(
            f"{where}: uint8 samples need mean and std, one number per channel in units of 0 to 1, such as "
            "mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25); or pass x.float() / 255"
        )
    if x.dim() < 2:
        raise ValueError(f"{where}: expected uint8 x of shape (B, C, ...), got {describe(x)}")
    for name, value in (("mean", mean), ("std", std)):
        if isinstance(value, Tensor):
            if value.dtype not in (torch.float32, torch.float64):
                raise TypeError(f"{where}: expected {name} in float32 or float64, got {describe(value)}")
            shape = tuple(value.shape)
        else:
            shape = (len(value),)
        if shape != (x.shape[1],):
            raise ValueError(
                f"{where}: expected {name} of shape ({x.shape[1]},), one number per channel of {describe(x)}, whose "
                f"channels are its dimension 1, got {describe(value)}"
            )
    if dtype is not None and dtype not in FLOATING:
        raise TypeError(f"{where}: expected dtype to be float32, float64, bfloat16 or float16, got {dtype}")
    return dtype or torch.float32


def check_lam(where: str, x: Tensor, lam: Any, out_dtype: torch.dtype) -> Tensor:
    """A number or a tensor () or (B,), returned as a float32 or float64 tensor."""
    if not isinstance(lam, Tensor):
        if isinstance(lam, bool) or not isinstance(lam, (int, float)):
            raise TypeError(f"{where}: expected lam to be a number or a floating-point tensor, got {describe(lam)}")
        return as_scalar(lam, accumulation_type(out_dtype), x.device)
    if check_tensor(where, "lam", lam).dtype not in FLOATING:
        raise TypeError(f"{where}: expected lam to be a number or a floating-point tensor, got {describe(lam)}")
    if lam.requires_grad:
        raise TypeError(f"{where}: lam requires grad, but mixing weights carry no gradient; pass lam.detach()")
    if lam.dim() != 0 and lam.shape != x.shape[:1]:
        raise ValueError(f"{where}: expected lam of shape () or ({x.shape[0]},), got {describe(lam)}")
    check_same_device(where, x=x, lam=lam)
    return lam if lam.dtype in (torch.float32, torch.float64) else lam.float()


def check_box(where: str, x: Tensor, box: Any) -> Tensor:
    """(4,) or (B, 4) integers, returned as int64."""
    box = check_tensor(where, "box", box)
    if box.dtype not in INTEGERS:
        raise TypeError(f"{where}: expected box to hold integers, got {describe(box)}")
    if x.dim() < 3:
        raise ValueError(f"{where}: a box needs images (B, ..., height, width), got x as {describe(x)}")
    if box.shape not in ((4,), (x.shape[0], 4)):
        raise ValueError(f"{where}: expected box of shape (4,) or ({x.shape[0]}, 4), got {describe(box)}")
    check_same_device(where, x=x, box=box)
    return box.long()


def check_out(where: str, x: Tensor, out: Any, out_dtype: torch.dtype, keep_clean: bool) -> None:
    """Shape, type and device of the result, and memory of its own."""
    out = check_tensor(where, "out", out)
    shape = (x.shape[0] * (2 if keep_clean else 1), *x.shape[1:])
    if out.dtype != out_dtype:
        raise TypeError(f"{where}: expected out in {out_dtype}, got {describe(out)}")
    if tuple(out.shape) != shape:
        raise ValueError(f"{where}: expected out of shape {shape}, got {describe(out)}")
    check_same_device(where, x=x, out=out)
    if torch.is_grad_enabled() and (x.requires_grad or out.requires_grad):
        raise RuntimeError(
            f"{where}: out= is not differentiable, but {'x' if x.requires_grad else 'out'} requires grad; "
            "leave out= away or call it under torch.no_grad()"
        )
    if not torch.compiler.is_compiling() and _overlap(x, out):
        raise ValueError(f"{where}: out overlaps x; every sample is read after others are written")


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether the memory from first to last element of each meets."""
    if a.numel() == 0 or b.numel() == 0:
        return False

    def ends(t: Tensor) -> tuple[int, int]:
        span = sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True)) + 1
        return t.data_ptr(), t.data_ptr() + span * t.element_size()

    (a_first, a_end), (b_first, b_end) = ends(a), ends(b)
    return a_first < b_end and b_first < a_end


def check_values(where: str, index: Tensor, lam: Tensor) -> None:
    """Index in [0, B), lam in [0, 1]: what costs a few microseconds, the offender named where there is one."""
    batch_size = len(index)
    if batch_size:
        least, most = index.aminmax()
        if int(least) < 0 or int(most) >= batch_size:
            at = int(((index < 0) | (index >= batch_size)).nonzero()[0])
            raise ValueError(f"{where}: expected index in [0, {batch_size}), got index[{at}] = {int(index[at])}")
    if lam.dim() == 0:
        if not 0 <= lam.item() <= 1:
            check_lam_values(where, lam)
    elif batch_size:
        least, most = lam.aminmax()
        if not (least.item() >= 0 and most.item() <= 1):  # negated: NaN fails
            check_lam_values(where, lam)
