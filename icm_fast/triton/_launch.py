"""What every operation needs on the host: launching, checks, and the arguments that kernels share."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Logits(NamedTuple):
    """Where logits (rows, classes) lie."""

    data: Tensor
    row_stride: int
    class_stride: int


class Labels(NamedTuple):
    """A mixed target as it came: any strides, 0 for one lam; float32 or float64 lam."""

    y_a: Tensor
    y_b: Tensor
    lam: Tensor
    stride_a: int
    stride_b: int
    stride_lam: int


class Vector(NamedTuple):
    """Numbers (n,), or one for all with stride 0."""

    data: Tensor
    stride: int


def launch(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
    """Run a kernel on a grid of one dimension, whose limit is 2^31 - 1; the others stop at 65535.

    Products and sums are fused only where a kernel says so: which ones the compiler would choose is no promise, and
    the passes over the scores rely on equal bits.
    """
    if programs > 0:
        kernel[(programs,)](*arguments, enable_fp_fusion=False, **options)


def blocks(count: int, size: int) -> int:
    """How many blocks of a size cover a count."""
    return (count + size - 1) // size


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, whichever device the tensors are on."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def check(condition: bool, op: str, expected: str) -> None:
    """What memory safety needs when an operator is called directly; Python validates first, with better messages."""
    if not condition:
        raise RuntimeError(f"{op}: expected {expected}")


def check_one_device(op: str, *tensors: Tensor | None) -> None:
    """Triton would take a pointer to the memory of another device as it is."""
    devices = {tensor.device for tensor in tensors if tensor is not None}
    check(len(devices) == 1, op, f"tensors on one device, got {sorted(map(str, devices))}")


def check_memory(op: str, tensor: Tensor) -> None:
    """A tensor may have elements and no memory: FSDP frees the storage of what it gathers again."""
    check(tensor.numel() == 0 or tensor.data_ptr() != 0, op, "a tensor whose storage is allocated")


def logits_of(op: str, logits: Tensor) -> Logits:
    """Checked (rows, classes)."""
    check(logits.dim() == 2 and logits.dtype in FLOATING, op, "floating-point logits of shape (B, C)")
    check(logits.shape[1] < 2**30, op, "at most 2^30 classes")
    check_memory(op, logits)
    return Logits(logits, logits.stride(0), logits.stride(1))


def labels_of(op: str, y_a: Tensor, y_b: Tensor, lam: Tensor) -> Labels:
    """Checked labels and ratios; their values are judged by the kernels."""
    check(y_a.dim() == 1 and y_a.shape == y_b.shape, op, "y_a and y_b of one shape (B,)")
    check(y_a.dtype == y_b.dtype == torch.int64, op, "int64 labels")
    check(y_a.shape[0] < 2**30, op, "at most 2^30 labels")
    weights = vector_of(op, "lam", lam, y_a.shape[0])
    return Labels(y_a, y_b, lam, y_a.stride(0), y_b.stride(0), weights.stride)


def vector_of(op: str, name: str, tensor: Tensor, count: int) -> Vector:
    """Checked numbers, one for all or one for each."""
    check(tensor.dtype in (torch.float32, torch.float64), op, f"{name} in float32 or float64")
    check(tensor.dim() == 0 or tensor.shape == (count,), op, f"{name} of shape () or ({count},)")
    return Vector(tensor, 0 if tensor.dim() == 0 else tensor.stride(0))


def check_reduction(op: str, reduction: int) -> None:
    """One of operators._library.REDUCTIONS."""
    check(reduction in (0, 1, 2), op, "reduction 0 (none), 1 (mean) or 2 (sum)")
