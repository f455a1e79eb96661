"""The reference on the device: it is what `auto` falls back to there, and it must not need the CPU."""

from __future__ import annotations

import pytest
import torch

from .problems import OPERATIONS, problem


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("operation", OPERATIONS)
def test_reference(operation: str, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> None:
    for shape in ((7, 10), (130, 33)):
        problem(operation, shape, dtype, device, generator).run_and_check("reference")
