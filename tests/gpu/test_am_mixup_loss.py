"""The fused loss of AM-Mixup on the device against the float64 reference."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from icm_fast import functional as F_icm
from icm_fast.testing.am_mixup import check_am_mixup_loss
from icm_fast.testing.regimes import REGIMES, SHAPES

from .conftest import Covers
from .problems import DTYPES, Kernel, Shape, draw

OPERATIONS = ("am_mixup_loss",)
# Exact in float32. At 0 and 1 one row takes no part; at 1/2 the label changes sides.
RATES = (0.75, 0.5, 0.4375, 0.0, 1.0)
LIMITS = ((256, 1000), (1024, 1000), (40, 9000), (9, 50257), (5000, 33))
mark_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def check(
    regime: str,
    shape: Shape,
    dtype: torch.dtype,
    rate: float,
    kernel: Kernel,
    device: torch.device,
    g: torch.Generator,
    grad: Tensor | None = None,
    **options: Any,
) -> None:
    """Logits of a regime, any partners; the check knows the CPU only."""
    case = draw(regime, shape, dtype, device, g)
    index = torch.randint(shape[0], (shape[0],), generator=g)
    leaf = case.logits.detach().requires_grad_()
    loss = F_icm.am_mixup_loss(leaf, index.to(device), rate, case.y_a, backend=kernel.backend, **options)
    (dlogits,) = torch.autograd.grad(loss, leaf, torch.ones_like(loss) if grad is None else grad.to(loss))
    home = (tensor.detach().cpu() for tensor in (loss, dlogits, case.logits))
    check_am_mixup_loss(*home, index, rate, case.y_a.cpu(), grad_output=grad, what=f"{shape} rate {rate}", **options)


@mark_dtypes
@pytest.mark.parametrize("regime", REGIMES)
def test_regimes(
    regime: str, dtype: torch.dtype, kernel: Kernel, device: torch.device, generator: torch.Generator, covers: Covers
) -> None:
    for number, shape in enumerate(SHAPES):
        for rate in (RATES[0], RATES[1 + number % 4]):
            check(regime, shape, dtype, rate, kernel, device, generator)
        covers(kernel, dtype, shape)


@pytest.mark.parametrize("shape", LIMITS, ids=str)
def test_limits_of_the_kernels(
    shape: Shape, kernel: Kernel, device: torch.device, generator: torch.Generator, covers: Covers
) -> None:
    for regime, dtype in itertools.product(("normal", "large"), (torch.float32, torch.bfloat16)):
        check(regime, shape, dtype, 0.75, kernel, device, generator)
        covers(kernel, dtype, shape)


@mark_dtypes
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions_rates_and_incoming_gradients(
    reduction: str, dtype: torch.dtype, kernel: Kernel, device: torch.device, generator: torch.Generator
) -> None:
    grad = torch.randn((33,) if reduction == "none" else (), generator=generator) * 100
    for rate in RATES:
        check("normal", (33, 20), dtype, rate, kernel, device, generator, grad, reduction=reduction)
