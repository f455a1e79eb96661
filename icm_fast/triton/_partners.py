# mypy: allow-untyped-defs, allow-incomplete-defs
"""For each sample, the samples whose partner it is: what their gradients add to it, without atomics, in order."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import blocks, check, launch

_BLOCK = 1024


class Index(NamedTuple):
    """Partners (B,) or labels, any stride."""

    data: Tensor
    stride: int


class Lists(NamedTuple):
    """Sample p is the partner of keys[starts[p]] .. keys[starts[p + 1] - 1], each p << 32 | sample, ascending."""

    keys: Tensor
    starts: Tensor


def index_of(op: str, name: str, index: Tensor, count: int) -> Index:
    """Checked; its values are judged by the kernels."""
    check(index.dtype == torch.int64 and index.shape == (count,), op, f"int64 {name} of shape ({count},)")
    return Index(index, index.stride(0))


@triton.jit
def load_index(index, at, mask):
    """Entries of an Index, 0 where masked."""
    return tl.load(index.data + at.to(tl.int64) * index.stride, mask=mask, other=0)


def lists_of(index: Index, count: int) -> Lists:
    """Samples that are their own partner, or have none, are in no list."""
    keys = torch.empty(count, dtype=torch.int64, device=index.data.device)
    sorted_keys, order = torch.empty_like(keys), torch.empty_like(keys)
    starts = torch.empty(count + 1, dtype=torch.int32, device=keys.device)
    launch(_keys_kernel, blocks(count, _BLOCK), index, keys, count, _BLOCK, num_warps=4)
    torch.sort(keys, out=(sorted_keys, order))  # keys are distinct: any sort gives this order
    steps = count.bit_length()
    launch(_starts_kernel, blocks(count + 1, _BLOCK), sorted_keys, starts, count, steps, _BLOCK, num_warps=4)
    return Lists(sorted_keys, starts)


@triton.jit(do_not_specialize=["count"])
def _keys_kernel(index, keys, count, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    partner = load_index(index, i, i < count)
    in_list = (partner >= 0) & (partner < count) & (partner != i)
    tl.store(keys + i, (tl.where(in_list, partner, count) << 32) | i, mask=i < count)


@triton.jit(do_not_specialize=["count", "steps"])
def _starts_kernel(keys, starts, count, steps, BLOCK: tl.constexpr):
    """The number of keys below each sample's first, by bisection."""
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first = p.to(tl.int64) << 32
    below = tl.zeros((BLOCK,), tl.int32)
    for step in range(steps):
        after = below + (1 << (steps - 1 - step))
        fits = (p <= count) & (after <= count)
        key = tl.load(keys + after - 1, mask=fits, other=0)
        below = tl.where(fits & (key < first), after, below)
    tl.store(starts + p, below, mask=p <= count)
