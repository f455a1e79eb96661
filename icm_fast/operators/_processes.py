"""A batch whose rows several processes hold: what they tell each other, O(N) numbers for N rows in all.

Every process knows the whole target; a row's sums are its own, a column's are added up over all. The loss is that of
the whole batch on every process. Its gradient is multiplied by the number of processes, so that the mean that
DistributedDataParallel takes of the parameters' gradients is the gradient of one process with the whole batch.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Processes(NamedTuple):
    """The processes of a group, and how the rows are divided."""

    group: Any
    rank: int
    sizes: tuple[int, ...]
    shares_columns: bool = True  # not for the class axis alone, whose sums are those of the own rows

    @property
    def count(self) -> int:  # type: ignore[override]
        """How many there are."""
        return len(self.sizes)

    @property
    def rows(self) -> int:
        """Of all of them."""
        return sum(self.sizes)

    @property
    def first(self) -> int:
        """The place of this one's first row."""
        return sum(self.sizes[: self.rank])

    def gather(self, of_rows: Tensor) -> Tensor:
        """What all have for their rows, in order; each (rows of its own, ...)."""
        largest = max(self.sizes)
        if largest == 0:
            return of_rows
        mine = of_rows.contiguous()
        if len(mine) < largest:
            mine = torch.cat((mine, mine.new_zeros((largest - len(mine), *mine.shape[1:]))))
        gathered = mine.new_empty((self.count * largest, *mine.shape[1:]))
        parts = gathered.split(largest)
        # As bytes: not every kind of group knows every type of number.
        dist.all_gather([part.view(torch.uint8) for part in parts], mine.view(torch.uint8), group=self.group)
        if min(self.sizes) == largest:
            return gathered
        return torch.cat([part[:size] for part, size in zip(parts, self.sizes, strict=True)])

    def add(self, values: Tensor) -> Tensor:
        """Sums over all."""
        dist.all_reduce(values, group=self.group)
        return values

    def whole_columns(self, place: Tensor, part: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor]:
        """Of sums of exponentials relative to a place, both (columns,) in float64: those over all, and their place."""
        if not self.shares_columns:
            return place, part
        has_terms = part != 0  # NaN included
        # In float64 like the sums: a place may be large and what lies between two of them small.
        highest = torch.where(has_terms, place, -math.inf)
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=self.group)
        mine = torch.where(has_terms, part * ((place - highest) * scale).exp(), 0.0)
        return highest, self.add(mine)


def calls_of(group: Any, mine: Tensor) -> list[list[int]]:
    """Some integers (n,) of every process, by rank; waits for the device."""
    gathered = mine.new_empty((dist.get_world_size(group), len(mine)))
    dist.all_gather(list(gathered), mine, group=group)
    return gathered.tolist()


def gather_target(processes: Processes, y_a: Tensor, y_b: Tensor, lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The target of the whole batch: 12 bytes a row, 16 with lam in float64. One lam of a process is all its rows'."""
    bounds = torch.iinfo(torch.int32)  # a label beyond them is a bad one, and stays bad
    labels = torch.stack((y_a, y_b), 1).clamp(bounds.min, bounds.max).int()
    words = lam.element_size() // labels.element_size()
    bits = lam.expand(y_a.shape).contiguous().view(torch.int32).reshape(len(y_a), words)
    whole = processes.gather(torch.cat((labels, bits), 1))
    all_a, all_b = (column.long() for column in whole[:, :2].unbind(1))
    return all_a, all_b, whole[:, 2:].contiguous().view(lam.dtype)[:, 0]


class _Shared(torch.autograd.Function):
    """A value that belongs to all processes, in the place of the own part of it."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, value: Tensor, factor: Tensor | float) -> Tensor:
        ctx.factor = factor
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return (grad * ctx.factor).to(grad.dtype), None, None


def over_all(group: Any, part: Tensor, rows: int, reduction: str) -> Tensor:
    """The sum of all processes' parts, or its mean over the rows of all; of single terms: the own ones.

    As of the other terms of a loss, the gradient is multiplied by the number of processes.
    """
    count = dist.get_world_size(group)
    if reduction == "none":
        return _Shared.apply(part, part.detach().clone(), count)
    sums = torch.stack((part.detach().double(), torch.full_like(part, rows, dtype=torch.float64)))
    dist.all_reduce(sums, group=group)
    total, all_rows = sums
    if reduction == "sum":
        return _Shared.apply(part, total.to(part.dtype), count)
    return _Shared.apply(part, (total / all_rows).to(part.dtype), count / all_rows)
