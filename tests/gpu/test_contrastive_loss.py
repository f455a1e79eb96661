"""The loss of two views on the device, and dense targets, which take the same passes."""

from __future__ import annotations

import itertools

import pytest
import torch
from linear_cases import random_case, run
from torch import Tensor

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast.testing.checks import check_icm_loss
from icm_fast.testing.linear import Inputs, Results, check_linear_icm_loss, pairs

from .conftest import Covers
from .problems import DTYPES, Kernel, at_home, draw, target_of

OPERATIONS = ("contrastive_loss",)
SHAPES = ((1, 1), (2, 5), (61, 17), (130, 1), (64, 48), (300, 64))
REGIMES = ("normal", "confident", "range_200", "offset", "same_class")
mark_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
pytestmark = pytest.mark.usefixtures("small_blocks")


def on(device: torch.device, given: Inputs) -> Inputs:
    return Inputs(*(None if each is None else each.to(device) for each in given))


def of_views(given: Inputs, grad: Tensor | None = None, **options: object) -> Results:
    leaves = [None if each is None else each.detach().requires_grad_() for each in given]
    x, y, bias, scale = leaves
    loss = F_icm.contrastive_loss(x, y, scale, bias=bias, **options)
    wanted = [each for each in leaves if each is not None]
    gradients = iter(torch.autograd.grad(loss, wanted, torch.ones_like(loss) if grad is None else grad))
    return Results(loss.detach(), *(None if each is None else next(gradients) for each in leaves))


def random_views(rows: int, depth: int, dtype: torch.dtype, scale: float | None, g: torch.Generator) -> Inputs:
    given, _ = random_case((rows, depth, rows), g, dtype, rows % 2 == 1, scale)
    return given


@mark_dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_random_views(
    shape: tuple[int, int],
    dtype: torch.dtype,
    kernel: Kernel,
    device: torch.device,
    generator: torch.Generator,
    covers: Covers,
) -> None:
    for scale, axis in itertools.product((None, 5.0, -0.3), ("both", "class", "pair")):
        given = on(device, random_views(*shape, dtype, scale, generator))
        results = of_views(given, axis=axis, backend=kernel.backend)
        check_linear_icm_loss(results, at_home(given), pairs(shape[0]), axis=axis, what=f"{shape} {scale} {axis}")
    covers(kernel, dtype, shape)


@mark_dtypes
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions_and_incoming_gradients(
    reduction: str, dtype: torch.dtype, kernel: Kernel, device: torch.device, generator: torch.Generator
) -> None:
    given = on(device, random_views(130, 17, dtype, None, generator))
    size, wide = (130,) if reduction == "none" else (), torch.float64 if dtype == torch.float64 else torch.float32
    for grad in (torch.randn(size, generator=generator) * 100, torch.tensor(0.25).expand(size), torch.zeros(size)):
        results = of_views(given, grad.to(device, wide), reduction=reduction, backend=kernel.backend)
        check_linear_icm_loss(results, at_home(given), pairs(130), reduction=reduction, grad_output=grad)


@mark_dtypes
@pytest.mark.parametrize("regime", REGIMES)
def test_dense_targets_of_logits(
    regime: str, dtype: torch.dtype, kernel: Kernel, device: torch.device, generator: torch.Generator
) -> None:
    """Those of two classes a row, as dense ones; then smoothed over all classes."""
    case = draw(regime, (130, 23), dtype, device, generator)
    target = target_of(case).dense(23, torch.float64 if dtype == torch.float64 else torch.float32)
    for dense, axis in itertools.product((target, 0.9 * target + 0.1 / 23), ("both", "class", "pair")):
        leaf = case.logits.detach().requires_grad_()
        loss = F_icm.icm_loss(leaf, dense, axis=axis, backend=kernel.backend)
        (dlogits,) = torch.autograd.grad(loss, leaf)
        check_icm_loss(loss.detach(), dlogits, leaf, dense, axis=axis, what=f"{regime} {axis}")


@mark_dtypes
@pytest.mark.parametrize("shape", [(61, 17, 10), (40, 5, 300)], ids=str)  # through logits, on classifiers
def test_dense_targets_of_a_classifier(
    shape: tuple[int, int, int], dtype: torch.dtype, kernel: Kernel, device: torch.device, generator: torch.Generator
) -> None:
    for scale, bias in ((None, True), (0.6, False)):
        given, mixed = random_case(shape, generator, dtype, bias, scale)
        smooth = torch.rand(shape[0], shape[2], generator=generator).softmax(1)
        for target in (smooth, mixed.dense(shape[2])):
            # In the type of the products, as these round it.
            rounded = target.to(dtype).to(torch.float64 if dtype == torch.float64 else torch.float32)
            results = run(on(device, given), rounded.to(device), backend=kernel.backend)
            check_linear_icm_loss(results, given, rounded, what=f"dense {shape}")


def test_agreement_with_mixed_targets(kernel: Kernel, device: torch.device, generator: torch.Generator) -> None:
    case = draw("normal", (130, 23), torch.float32, device, generator)
    mixed = target_of(case)
    found = [
        F_icm.icm_loss(case.logits, each, backend=kernel.backend)
        for each in (mixed, mixed.dense(23), icm.MixedTarget.from_dense(mixed.dense(23)))
    ]
    for loss in found[1:]:
        torch.testing.assert_close(loss, found[0])
