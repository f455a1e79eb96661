"""mixup: mixing of a batch with itself, and its transpose. Equations in csrc/mixup_math.h."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...operators.mixup import fits, is_dense_per_sample, result_strides
from .._launch import FLOATING, Vector, blocks, check, check_memory, check_one_device, launch, on_device_of, vector_of
from .._partners import Index, index_of, lists_of
from . import _kernels

_BLOCK = 1024  # elements of a chunk; no measurement chose it


class Samples(NamedTuple):
    """Samples that are each one run of memory."""

    data: Tensor
    stride: int


class Box(NamedTuple):
    """Boxes (4,) or (B, 4): y1, y2, x1, x2 half-open."""

    data: Tensor
    stride: int
    element_stride: int


class Layout(NamedTuple):
    """How the elements of a sample lie: planes of `rows` rows of `row` elements, each pixel a run of `pixel`.

    The channel of an element is element // channel_stride % channels.
    """

    size: int
    rows: int
    row: int
    pixel: int
    channels: int
    channel_stride: int


class Partners(NamedTuple):
    """Partner, weight of the sample itself and box, as they came."""

    partner: Index
    lam: Vector
    box: Box | None


def _layout_of(x: Tensor, has_box: bool, has_channels: bool) -> Layout:
    """As csrc/mixup_tensors.h: sample_layout."""
    size = x.numel() // x.shape[0]
    rows, row, pixel, channels, channel_stride = 1, size, size, 1, size
    if has_box:
        rows, width = x.shape[-2], x.shape[-1]
        if width != 1:
            pixel = x.stride(-1)
            row = width * pixel
        elif rows != 1:
            row = pixel = x.stride(-2)
    if has_channels and x.shape[1] != 1:
        channels, channel_stride = x.shape[1], x.stride(1)
    return Layout(size, rows, row, pixel, channels, channel_stride)


def _partners_of(op: str, index: Tensor, lam: Tensor, box: Tensor | None, batch: int) -> Partners:
    boxes = None
    if box is not None:
        right = box.dtype == torch.int64 and tuple(box.shape) in ((4,), (batch, 4))
        check(right, op, f"int64 box of shape (4,) or ({batch}, 4)")
        boxes = Box(box, 0 if box.dim() == 1 else box.stride(0), box.stride(-1))
    return Partners(index_of(op, "index", index, batch), vector_of(op, "lam", lam, batch), boxes)


def _dense(op: str, x: Tensor, box: Tensor | None) -> Tensor:
    """x, or a contiguous copy when its samples are not one run of memory each."""
    check(x.dim() >= (1 if box is None else 3), op, "samples (B, ...), images with a box")
    check_memory(op, x)
    check(x.numel() < x.shape[0] * (2**31 - 2**16) or x.numel() == 0, op, "samples of less than 2^31 elements")
    return x if is_dense_per_sample(x, box is not None) else x.contiguous()


def _mix(
    op: str,
    x: Tensor,
    index: Tensor,
    lam: Tensor,
    box: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    keep_clean: bool,
    out: Tensor,
) -> None:
    """Fill `out`; x is dense per sample."""
    is_bytes = x.dtype == torch.uint8
    right = (mean is not None) == is_bytes and (std is not None) == is_bytes
    check(right, op, "mean and std with uint8 samples, and with no other")
    check(is_bytes or out.dtype == x.dtype, op, "a result of the samples' type")
    check(out.dtype in FLOATING and (not is_bytes or x.dim() >= 2), op, "floating-point samples or uint8 (B, C, ...)")
    check_one_device(op, x, index, lam, box, mean, std, out)
    batch = x.shape[0]
    partners = _partners_of(op, index, lam, box, batch)
    table = None
    if mean is not None and std is not None:
        channels = x.shape[1]
        table = x.new_empty([2, channels], dtype=torch.float64 if out.dtype == torch.float64 else torch.float32)
        per_channel = vector_of(op, "mean", mean, channels), vector_of(op, "std", std, channels)
    if out.numel() == 0:
        return
    layout = _layout_of(x, box is not None, is_bytes)
    with on_device_of(x):
        if table is not None:
            launch(_kernels.pixel_table_kernel, blocks(channels, 128), *per_channel, table, channels, 128, num_warps=4)
        launch(
            *(
                _kernels.forward_kernel,
                batch * blocks(layout.size, _BLOCK),
                Samples(x, x.stride(0)),
                Samples(out, out.stride(0)),
            ),
            *(partners, layout, table, batch, keep_clean, _BLOCK),
            num_warps=4,
        )


def _result(x: Tensor, box: Tensor | None, batch: int, dtype: torch.dtype) -> Tensor:
    return x.new_empty_strided((batch, *x.shape[1:]), result_strides(x, box is not None), dtype=dtype)


def forward(
    x: Tensor,
    index: Tensor,
    lam: Tensor,
    box: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    keep_clean: bool,
    dtype: torch.dtype | None,
) -> Tensor:
    """mixup_fwd.triton."""
    op = "mixup_fwd"
    samples = _dense(op, x, box)
    of = (dtype or torch.float32) if x.dtype == torch.uint8 else x.dtype
    out = _result(x, box, x.shape[0] * (2 if keep_clean else 1), of)
    _mix(op, samples, index, lam, box, mean, std, keep_clean, out)
    return out


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether dense samples share memory."""

    def end(x: Tensor) -> int:
        elements = (x.shape[0] - 1) * x.stride(0) + x.numel() // x.shape[0] if x.numel() else 0
        return x.data_ptr() + elements * x.element_size()

    return a.data_ptr() < end(b) and b.data_ptr() < end(a)


def forward_out(
    out: Tensor,
    x: Tensor,
    index: Tensor,
    lam: Tensor,
    box: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    keep_clean: bool,
) -> None:
    """mixup_out.triton."""
    op = "mixup_out"
    samples = _dense(op, x, box)
    shape = (x.shape[0] * (2 if keep_clean else 1), *x.shape[1:])
    check(out.shape == shape, op, f"out of the result's shape {tuple(shape)}")
    check(out.numel() == 0 or fits(out, x, box is not None), op, "out in the memory format of x")
    check(not _overlap(out, samples), op, "out not to overlap x")
    _mix(op, samples, index, lam, box, mean, std, keep_clean, out)


def backward(grad: Tensor, index: Tensor, lam: Tensor, box: Tensor | None, keep_clean: bool) -> Tensor:
    """mixup_bwd.triton."""
    op = "mixup_bwd"
    samples = _dense(op, grad, box)
    check(not keep_clean or grad.shape[0] % 2 == 0, op, "gradients of clean and mixed samples")
    check(grad.dtype in FLOATING, op, "a floating-point gradient")
    check_one_device(op, grad, index, lam, box)
    batch = grad.shape[0] // (2 if keep_clean else 1)
    partners = _partners_of(op, index, lam, box, batch)
    dx = _result(grad, box, batch, grad.dtype)
    if dx.numel() == 0:
        return dx
    layout = _layout_of(samples, box is not None, False)
    with on_device_of(grad):
        launch(
            *(_kernels.backward_kernel, batch * blocks(layout.size, _BLOCK)),
            *(Samples(samples, samples.stride(0)), Samples(dx, dx.stride(0)), partners, layout),
            *(lists_of(partners.partner, batch), batch, keep_clean, _BLOCK),
            num_warps=4,
        )
    return dx


OPERATORS = {"mixup_fwd": forward, "mixup_out": forward_out, "mixup_bwd": backward}
