"""The fused mixed cross-entropy on the device against the float64 reference."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from icm_fast import functional as F_icm
from icm_fast.testing.checks import check_mixup_cross_entropy
from icm_fast.testing.regimes import REGIMES, SHAPES, Case

from .conftest import Covers
from .problems import DTYPES, Kernel, draw, target_of

OPERATIONS = ("mixup_cross_entropy",)
# Rows of more than one tile, of more than a block can hold, more rows than blocks.
LIMITS = ((256, 1000), (1024, 1000), (40, 9000), (9, 50257), (5000, 33))
mark_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def loss_and_gradient(case: Case, backend: str, grad: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = case.logits.detach().requires_grad_()
    loss = F_icm.mixup_cross_entropy(leaf, target_of(case), backend=backend, **options)
    (dlogits,) = torch.autograd.grad(loss, leaf, torch.ones_like(loss) if grad is None else grad)
    return loss.detach(), dlogits


@mark_dtypes
@pytest.mark.parametrize("regime", REGIMES)
def test_regimes(
    regime: str, dtype: torch.dtype, kernel: Kernel, device: torch.device, generator: torch.Generator, covers: Covers
) -> None:
    for shape, smoothing in itertools.product(SHAPES, (0.0, 0.1)):
        case = draw(regime, shape, dtype, device, generator)
        loss, dlogits = loss_and_gradient(case, kernel.backend, label_smoothing=smoothing)
        what = f"{shape} smoothing {smoothing}"
        check_mixup_cross_entropy(loss, dlogits, case.logits, case, label_smoothing=smoothing, what=what)
        covers(kernel, dtype, shape)


@pytest.mark.parametrize("shape", LIMITS, ids=str)
def test_limits_of_the_kernels(
    shape: tuple[int, int], kernel: Kernel, device: torch.device, generator: torch.Generator, covers: Covers
) -> None:
    for regime, dtype in itertools.product(("normal", "large"), (torch.float32, torch.bfloat16)):
        case = draw(regime, shape, dtype, device, generator)
        check_mixup_cross_entropy(*loss_and_gradient(case, kernel.backend), case.logits, case)
        covers(kernel, dtype, shape)


@mark_dtypes
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_weights_smoothing_and_incoming_gradients(
    reduction: str, dtype: torch.dtype, kernel: Kernel, device: torch.device, generator: torch.Generator
) -> None:
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    case = draw("normal", (33, 20), dtype, device, generator)
    weight = 0.1 + torch.rand(20, generator=generator).to(device)
    grad = (torch.randn((33,) if reduction == "none" else (), generator=generator) * 100).to(device, acc)
    for smoothing, classes in itertools.product((0.0, 0.1, 1.0), (None, weight)):
        options: dict[str, Any] = {"weight": classes, "label_smoothing": smoothing, "reduction": reduction}
        loss, dlogits = loss_and_gradient(case, kernel.backend, grad, **options)
        check_mixup_cross_entropy(loss, dlogits, case.logits, case, grad_output=grad, **options)
