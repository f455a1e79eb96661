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
        padded = of_rows.new_zeros((largest, *of_rows.shape[1:]))
        padded[: of_rows.shape[0]] = of_rows
        gathered = [torch.empty_like(padded) for _ in self.sizes]
        dist.all_gather(gathered, padded, group=self.group)
        return torch.cat([each[:size] for each, size in zip(gathered, self.sizes, strict=True)])

    def add(self, values: Tensor) -> Tensor:
        """Sums over all."""
        dist.all_reduce(values, group=self.group)
        return values

    def whole_columns(self, place: Tensor, part: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor]:
        """Of sums of exponentials relative to a place, both (columns,) in float64: those over all, and their place."""
        has_terms = part != 0  # NaN included
        highest = torch.where(has_terms, place, -math.inf)
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=self.group)
        mine = torch.where(has_terms, part * ((place - highest) * scale).exp(), 0.0)
        return highest, self.add(mine)


def processes_of(group: Any, rows: int, device: torch.device) -> Processes:
    """The processes of a group, which tell each other their numbers of rows; waits for the device."""
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, torch.tensor([rows], device=device), group=group)
    return Processes(group, dist.get_rank(group), tuple(torch.cat(sizes).tolist()))


def gather_target(processes: Processes, y_a: Tensor, y_b: Tensor, lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The target of the whole batch: 24 bytes a row. One lam of a process is that of each of its rows."""
    bits = lam.double().expand(y_a.shape).contiguous().view(torch.int64)
    whole = processes.gather(torch.stack((y_a, y_b, bits), 1))
    all_a, all_b, all_bits = (column.contiguous() for column in whole.unbind(1))
    return all_a, all_b, all_bits.view(torch.float64).to(lam.dtype)
