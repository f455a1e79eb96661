"""The same bits a thousand times, the device busy with other work half of the time."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from .problems import Kernel, problem

RUNS = 1000
SECONDS = 6.0  # for each size: what is left then was not run
# Every way to divide the work: one block, a group of blocks, many, and sums that underflow and are repaired.
CASES = (("normal", (128, 100)), ("normal", (700, 300)), ("normal", (2048, 1000)), ("range_500", (300, 100)))


def bits(tensor: Tensor) -> Tensor:
    """A NaN is equal to itself, and 0 is not -0."""
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize(("regime", "shape"), CASES, ids=lambda value: str(value))
def test_same_bits_every_time(
    regime: str,
    shape: tuple[int, int],
    dtype: torch.dtype,
    kernel: Kernel,
    device: torch.device,
    generator: torch.Generator,
    record_property: Callable[[str, object], None],
) -> None:
    on_gpu = device.type == "cuda"
    given = problem(kernel.operation, shape, dtype, device, generator, regime)
    expected = [bits(tensor).clone() for tensor in given.run(kernel.backend)]
    differences = torch.zeros((), dtype=torch.int64, device=device)
    other = torch.cuda.Stream() if on_gpu else None
    noise = torch.randn(1024, 1024, device=device)
    end = time.monotonic() + (SECONDS if on_gpu else 0.2)
    runs = 0
    while runs < 2 or (runs < RUNS and time.monotonic() < end):
        if other is not None and runs % 2:
            with torch.cuda.stream(other):
                noise @ noise
        for ours, before in zip(given.run(kernel.backend), expected, strict=True):
            differences += (bits(ours) != before).any()
        runs += 1
        if on_gpu and runs % 50 == 0:
            torch.cuda.synchronize()  # or the queue, not the device, would use up the seconds
    record_property("runs", runs)
    assert int(differences) == 0, f"{int(differences)} results of {runs} runs differ from the first"
