"""What is counted: the parts of a step, at two sizes each. Run as a module by callgrind.py, inside valgrind."""

from __future__ import annotations

import ctypes
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import torch

from icm_fast import functional as F_icm

from ..speed.workloads import loss_workload, mixup_workload

LOSS_SIZES = ((128, 100), (512, 1000))
# Few classes, so that many of its columns are equal.
FEW_CLASSES = (1024, 10)
LOSSES = (
    ("icm_loss", (*LOSS_SIZES, FEW_CLASSES), False),
    ("icm_loss", (*LOSS_SIZES, FEW_CLASSES), True),
    ("mixup_cross_entropy", LOSS_SIZES, False),
)
MIX_SIZES = ((128, 3, 32, 32), (16, 3, 224, 224))
PER_SAMPLE, PER_BATCH = "one lam per sample", "one lam per batch"

Part = tuple[str, int, Callable[[], Any]]  # its name, the elements that it works on, and what runs it


def parts() -> Iterator[Part]:
    """Every part; a backward pass is that of the forward pass before it."""
    sizes: dict[str, tuple[tuple[int, int], ...]] = {
        "icm_loss": (*LOSS_SIZES, FEW_CLASSES),
        "mixup_cross_entropy": LOSS_SIZES,
    }
    for operation, one_lam in (("icm_loss", False), ("icm_loss", True), ("mixup_cross_entropy", False)):
        for size in sizes[operation]:
            yield from _loss(operation, size, one_lam)
    for shape in MIX_SIZES:
        inputs = mixup_workload(shape).inputs
        yield _name("mixup", shape), prod(shape), functools.partial(F_icm.mixup, **inputs)


def _name(operation: str, size: tuple[int, ...], lam: str = PER_SAMPLE) -> str:
    return f"{operation}, {lam}, {'x'.join(map(str, size))}"


def _loss(operation: str, size: tuple[int, ...], one_lam: bool) -> Iterator[Part]:
    inputs = loss_workload(operation, size, one_lam).inputs
    logits, target = inputs["logits"], inputs["target"]
    loss_of = getattr(F_icm, operation)
    losses: list[torch.Tensor] = []
    elements = size[0] * (size[0] if operation == "icm_loss" else size[1])
    lam = PER_BATCH if one_lam else PER_SAMPLE

    def backward() -> None:
        losses.pop().backward()
        logits.grad = None

    yield _name(f"{operation} forward", size, lam), elements, lambda: losses.append(loss_of(logits, target))
    yield _name(f"{operation} backward", size, lam), elements, backward


def main(marks_library: str) -> None:
    """Run each part once as it comes, and once counted."""
    marks = ctypes.CDLL(marks_library)
    torch.set_num_threads(1)
    all_parts = list(parts())
    for _, _, run in all_parts:
        run()
    marks.start()
    for name, _, run in all_parts:
        marks.zero()
        run()
        marks.dump(name.encode())
    marks.zero()  # or what valgrind writes at the end would be large
    print(torch.ops.icm_fast.cpu_instruction_set())


if __name__ == "__main__":
    main(*itertools.islice(sys.argv, 1, None))
