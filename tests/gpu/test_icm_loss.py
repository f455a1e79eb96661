"""The fused loss on the device against the float64 reference: regimes x shapes x types x axes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast.testing.checks import check_icm_loss
from icm_fast.testing.regimes import REGIMES, SHAPES, Case

from .conftest import Covers
from .problems import DTYPES, Kernel, draw, target_of

OPERATIONS = ("icm_loss",)
AXES = ("both", "class", "pair")
# One axis takes the same passes with one factor zero.
FEW = ((7, 10), (33, 100), (127, 2))
# Either side of what fits one block, one group of blocks, one tile; rows longer than a tile; few and many classes.
LIMITS = (
    (64, 10),
    (129, 100),
    (255, 257),
    (256, 1000),
    (511, 100),
    (513, 513),
    (769, 10),
    (1024, 1000),
    (1100, 4000),
    (1111, 9),
    (2049, 33),
    (40, 9000),
    (300, 21841),
)
mark_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def loss_and_gradient(case: Case, backend: str, grad: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = case.logits.detach().requires_grad_()
    loss = F_icm.icm_loss(leaf, target_of(case), backend=backend, **options)
    (dlogits,) = torch.autograd.grad(loss, leaf, torch.ones_like(loss) if grad is None else grad)
    return loss.detach(), dlogits


@mark_dtypes
@pytest.mark.parametrize("regime", REGIMES)
def test_regimes(
    regime: str, dtype: torch.dtype, kernel: Kernel, device: torch.device, generator: torch.Generator, covers: Covers
) -> None:
    cases = [("both", shape) for shape in SHAPES] + [(axis, shape) for axis in ("class", "pair") for shape in FEW]
    for axis, shape in cases:
        case = draw(regime, shape, dtype, device, generator)
        before = case.logits.clone()
        loss, dlogits = loss_and_gradient(case, kernel.backend, axis=axis)
        check_icm_loss(loss, dlogits, case.logits, case, axis=axis, what=f"{shape} {axis}")
        assert torch.equal(case.logits.nan_to_num(), before.nan_to_num()), "the call changed its logits"
        covers(kernel, dtype, shape)


@pytest.mark.parametrize("shape", LIMITS, ids=str)
@pytest.mark.parametrize("regime", ["normal", "range_200"])
def test_limits_of_the_kernels(
    regime: str,
    shape: tuple[int, int],
    kernel: Kernel,
    device: torch.device,
    generator: torch.Generator,
    covers: Covers,
) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        case = draw(regime, shape, dtype, device, generator)
        check_icm_loss(*loss_and_gradient(case, kernel.backend), case.logits, case)
        covers(kernel, dtype, shape)


@mark_dtypes
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("axis", AXES)
def test_reductions_and_incoming_gradients(
    axis: str, reduction: str, dtype: torch.dtype, kernel: Kernel, device: torch.device, generator: torch.Generator
) -> None:
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    for shape in ((33, 20), (300, 100)):
        case = draw("normal", shape, dtype, device, generator)
        size = (shape[0],) if reduction == "none" else ()
        scaled = (torch.randn(size, generator=generator) * 100).to(device, acc)
        for grad in (scaled, scaled.new_full((), 0.25).expand(size), torch.zeros_like(scaled)):
            loss, dlogits = loss_and_gradient(case, kernel.backend, grad, axis=axis, reduction=reduction)
            assert loss.shape == size and loss.device == case.logits.device
            check_icm_loss(loss, dlogits, case.logits, case, axis=axis, reduction=reduction, grad_output=grad)


@pytest.mark.parametrize("scale", [0.1, 7.5, 0.0, -2.0])
@pytest.mark.parametrize("regime", ["normal", "range_200", "offset"])
def test_logit_scale_and_its_gradient(
    regime: str, scale: float, kernel: Kernel, device: torch.device, generator: torch.Generator
) -> None:
    for dtype in (torch.float32, torch.float64):
        case = draw(regime, (33, 20), dtype, device, generator)
        leaf = case.logits.detach().requires_grad_()
        s = torch.tensor(scale, dtype=dtype, device=device, requires_grad=True)
        loss = F_icm.icm_loss(leaf, target_of(case), logit_scale=s, backend=kernel.backend)
        dlogits, dscale = torch.autograd.grad(loss, [leaf, s])
        dscale = dscale if scale > 0 else None
        check_icm_loss(loss.detach(), dlogits, case.logits, case, logit_scale=scale, dscale=dscale)


def test_types_and_strides_of_targets(kernel: Kernel, device: torch.device, generator: torch.Generator) -> None:
    case = draw("normal", (48, 12), torch.float32, device, generator)
    strided = torch.zeros(48, 2, dtype=torch.int64, device=device)
    strided[:, 1] = case.y_a
    lams = torch.zeros(48, 3, device=device)
    lams[:, 2] = case.lam
    for y_a in (strided[:, 1], case.y_a.to(torch.int32), case.y_a.to(torch.uint8)):
        given = case._replace(y_a=y_a, lam=lams[:, 2])
        check_icm_loss(*loss_and_gradient(given, kernel.backend), case.logits, case)
    for lam in (torch.tensor(0.3, device=device), torch.tensor(0.3, dtype=torch.float64, device=device).expand(48)):
        given = case._replace(lam=lam)
        check_icm_loss(*loss_and_gradient(given, kernel.backend), case.logits, given)


def test_empty_single_and_known_values(kernel: Kernel, device: torch.device) -> None:
    none = torch.zeros(0, dtype=torch.int64, device=device)
    empty = Case(torch.zeros(0, 10, device=device), none, none, torch.tensor(0.5, device=device))
    for reduction, expected in (("mean", math.nan), ("sum", 0.0)):
        loss, dlogits = loss_and_gradient(empty, kernel.backend, reduction=reduction)
        assert dlogits.shape == (0, 10)
        torch.testing.assert_close(loss.item(), expected, equal_nan=True, rtol=0, atol=0)
    equal = Case(
        torch.zeros(8, 10, device=device),
        torch.arange(8, device=device),
        torch.arange(8, device=device).flip(0),
        torch.tensor(0.5, device=device),
    )
    assert loss_and_gradient(equal, kernel.backend)[0].item() == pytest.approx(2 * math.log(8), rel=1e-6)


def test_terms_and_no_grad(kernel: Kernel, device: torch.device, generator: torch.Generator) -> None:
    case = draw("normal", (130, 20), torch.float32, device, generator)
    loss, dlogits = loss_and_gradient(case, kernel.backend)
    with torch.no_grad():
        alone, by_class, by_pair = F_icm.icm_loss(
            case.logits, target_of(case), return_terms=True, backend=kernel.backend
        )
    assert torch.equal(alone, loss), "the loss under no_grad is another"
    for term, axis in ((by_class, "class"), (by_pair, "pair")):
        check_icm_loss(term, None, case.logits, case, axis=axis)
    leaf = case.logits.detach().requires_grad_()
    again = icm.ICMLoss(backend=kernel.backend)(leaf, target_of(case))
    for _ in range(2):
        assert torch.equal(torch.autograd.grad(again, leaf, retain_graph=True)[0], dlogits), "a second backward differs"
