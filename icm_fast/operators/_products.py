"""Matrix products a block of rows at a time, through the framework's own routines."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ._library import accumulation_type

# Numbers in a block of scores, and the fewest and most rows of one, by device. On a CPU a block is to stay in its last
# cache between the products and the passes over it; on a GPU products want as many rows again (an estimate). The fewest
# rows are for products that would be slow with less, up to _MOST_NUMBERS of them.
_BLOCKS = {"cpu": (1 << 21, 128, 512), "cuda": (1 << 27, 512, 4096)}
_MOST_NUMBERS = 1 << 24
# Scores that are kept from the forward to the backward pass: they are one block, which costs less than to form again.
_KEPT = 1 << 21


def blocks(device: torch.device, rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows whose products with all columns are formed at once."""
    numbers, fewest, most = _BLOCKS.get(device.type, _BLOCKS["cpu"])
    columns = max(columns, 1)
    size = max(1, min(fewest, _MOST_NUMBERS // columns), min(most, numbers // columns // 64 * 64))
    if are_kept(rows, columns):
        size = max(rows, 1)
    return ((begin, min(rows, begin + size)) for begin in range(0, rows, size))


def are_kept(rows: int, columns: int) -> bool:
    """Whether the scores are few enough to stay."""
    return rows * columns <= _KEPT


def products(x: Tensor, y: Tensor, bias: Tensor | None) -> Iterator[tuple[int, int, Tensor]]:
    """x @ y.T + bias by ranges of rows: (begin, end, block). Each block lies in the memory of the one before it."""
    memory = None
    for begin, end in blocks(x.device, x.shape[0], y.shape[0]):
        if memory is None:
            memory = x.new_empty([end, y.shape[0]])
        block = memory[: end - begin]
        rows = x[begin:end]
        yield begin, end, torch.mm(rows, y.T, out=block) if bias is None else torch.addmm(bias, rows, y.T, out=block)


class Gradients:
    """Those of x, y and bias from the gradients of products, block by block, and of a scale beside them.

    What is not wanted stays empty and is not computed. `wanted`: of x, y, bias and scale.
    """

    def __init__(self, x: Tensor, y: Tensor, wanted: tuple[bool, ...]) -> None:
        wants_x, wants_y, wants_bias, wants_scale = wanted
        self.x, self.y, self.wanted, self.dtype = x, y, wanted, accumulation_type(x.dtype)
        zeros = functools.partial(torch.zeros, dtype=self.dtype, device=x.device)
        self.dx = x.new_empty(x.shape if wants_x else [0])
        self.dy = zeros(y.shape if wants_y else [0])
        self.dbias = zeros([y.shape[0] if wants_bias else 0])
        self.dscale = zeros([] if wants_scale else [0])

    def add(self, begin: int, end: int, of_block: Tensor, of_scale: Tensor) -> None:
        """Those of rows [begin, end)."""
        wants_x, wants_y, wants_bias, wants_scale = self.wanted
        rows = self.x[begin:end]
        if wants_x:
            torch.mm(of_block, self.y, out=self.dx[begin:end])
        if wants_y and self.dtype == rows.dtype:
            self.dy.addmm_(of_block.T, rows)
        elif wants_y:
            self.dy += torch.mm(of_block.T, rows)
        if wants_bias:
            self.dbias += of_block.sum(0, dtype=self.dtype)
        if wants_scale:
            self.dscale += of_scale

    def result(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of x, y and bias in their type, of the scale in that of sums."""
        dtype = self.x.dtype
        return self.dx, self.dy.to(dtype), self.dbias.to(dtype), self.dscale


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """The products inside keep the types that they are given: what autocast wants was done outside."""

    @functools.wraps(function)
    def run(backend: str, first: Tensor, *rest: Any, **options: Any) -> Any:
        kind = first.device.type
        if not torch.amp.is_autocast_available(kind):  # the meta device
            return function(backend, first, *rest, **options)
        with torch.autocast(kind, enabled=False):
            return function(backend, first, *rest, **options)

    return run
