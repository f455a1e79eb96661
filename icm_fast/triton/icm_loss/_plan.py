# mypy: allow-untyped-defs, allow-incomplete-defs
"""What the passes of icm_loss derive from the target once: for each class that is used, the columns that use it.

The gradient of a class then is a sum over a list, in a fixed order, without atomics.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...operators.icm_loss import plan_size
from .._launch import Labels, blocks, launch
from .._math import mixed_class

# Words of the header: is the target invalid, was the batch repaired, number of used classes, number of entries.
BAD, REPAIRED, USED, ENTRIES = (tl.constexpr(word) for word in range(4))
_HEADER = 16
_BLOCK = 1024


class Plan(NamedTuple):
    """Views of the plan. An entry is class << 32 | column, columns of role b counted on from those of role a."""

    header: Tensor  # (16,) int32
    entries: Tensor  # (2 * columns,) int64, ascending; those of no class last
    present: Tensor  # (2 * columns,) int32, padded to 16 bytes: the used classes, ascending
    starts: Tensor  # likewise: first entry of each


class Sizes(NamedTuple):
    """Image i owns column diagonal + i."""

    rows: int
    columns: int
    classes: int
    diagonal: int


def views(plan: Tensor, columns: int) -> Plan:
    """The parts of a plan, aligned alike for all sizes: Triton compiles a kernel again for other alignments."""
    half = (plan.numel() - _HEADER - 4 * columns) // 2
    header, entries, present, starts = plan.split((_HEADER, 4 * columns, half, half))
    return Plan(header, entries.view(torch.int64), present, starts)


def make(labels: Labels, sizes: Sizes, acc: torch.dtype) -> Tensor:
    """The plan of a target."""
    columns = sizes.columns
    plan = labels.y_a.new_zeros(plan_size("triton", columns, sizes.classes), dtype=torch.int32)
    parts = views(plan, columns)
    keys = torch.empty_like(parts.entries)
    order = torch.empty_like(keys)
    is_double = acc == torch.float64
    launch(_entries_kernel, blocks(columns, _BLOCK), labels, keys, parts.header, sizes, is_double, _BLOCK, num_warps=4)
    torch.sort(keys, out=(parts.entries, order))  # keys are distinct: any sort gives this order
    launch(_present_kernel, 1, parts, sizes, 2 * _BLOCK, num_warps=8)
    return plan


@triton.jit
def _entries_kernel(labels, keys, header, sizes, IS_DOUBLE: tl.constexpr, BLOCK: tl.constexpr):
    # Weights are judged in the type of the sums: 1 - lam may round to 0 in float32 alone.
    acc: tl.constexpr = tl.float64 if IS_DOUBLE else tl.float32
    j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = j < sizes.columns
    a, b, _, w_b, valid = mixed_class(labels, j, mask, sizes.classes, acc)
    of_a = tl.where(valid, a, sizes.classes)
    of_b = tl.where(valid & (w_b != 0), b, sizes.classes)
    tl.store(keys + j, (of_a << 32) | j, mask=mask)
    tl.store(keys + sizes.columns + j, (of_b << 32) | (sizes.columns + j), mask=mask)
    is_bad = tl.max((mask & (valid == 0)).to(tl.int32), axis=0)
    tl.store(header + BAD, 1, mask=is_bad != 0)  # several programs may: all write the same


@triton.jit
def _present_kernel(plan, sizes, BLOCK: tl.constexpr):
    """One program: the position of a class is the number of classes before it."""
    used = 0
    entries = 0
    for first in range(0, 2 * sizes.columns, BLOCK):
        k = first + tl.arange(0, BLOCK)
        mask = k < 2 * sizes.columns
        of = tl.load(plan.entries + k, mask=mask, other=0) >> 32
        before = tl.load(plan.entries + k - 1, mask=mask & (k > 0), other=-1) >> 32
        is_entry = mask & (of < sizes.classes)
        is_first = (is_entry & (of != before)).to(tl.int32)
        at = used + tl.cumsum(is_first, axis=0) - 1
        tl.store(plan.present + at, of.to(tl.int32), mask=is_first != 0)
        tl.store(plan.starts + at, k, mask=is_first != 0)
        used += tl.sum(is_first, axis=0)
        entries += tl.sum(is_entry.to(tl.int32), axis=0)
    tl.store(plan.header + USED, used)
    tl.store(plan.header + ENTRIES, entries)
