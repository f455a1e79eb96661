"""Mixed precision: autocast, a gradient scaler, and half-precision logits without autocast, as with F.cross_entropy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import icm_fast as icm
from icm_fast import functional as F_icm

B, D, C = 24, 12, 10
HALF = [torch.bfloat16, torch.float16]
Loss = Callable[[Tensor, Any], Tensor]


def target() -> icm.MixedTarget:
    labels = torch.arange(B) % C
    return icm.MixedTarget(labels, labels.flip(0), torch.linspace(0, 1, B))


LOSSES: dict[str, Loss] = {
    "ICMLoss": icm.ICMLoss(),
    "pair axis with a scale": icm.ICMLoss("pair", logit_scale=2.0),
    "MixupCrossEntropyLoss": icm.MixupCrossEntropyLoss(),
    "dense": lambda logits, mixed: F_icm.icm_loss(logits, mixed.dense(C)),
    "dense, kernels": lambda logits, mixed: F_icm.icm_loss(logits, mixed.dense(C), backend="cpu"),
    "am_mixup_loss": lambda logits, mixed: F_icm.am_mixup_loss(
        logits, torch.arange(B).flip(0), torch.tensor(0.6), mixed.y_a
    ),
    "RegMixupLoss": lambda logits, mixed: icm.RegMixupLoss()(
        (logits, logits.flip(0)), icm.MixedTarget(mixed.y_a, mixed.y_b, mixed.lam, clean=mixed.y_a)
    ),
}


@pytest.fixture(params=LOSSES)
def loss_of(request: pytest.FixtureRequest) -> Loss:
    return LOSSES[request.param]


def model() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(D, C)


@pytest.mark.parametrize("dtype", HALF)
def test_autocast_gives_what_the_half_logits_give(loss_of: Loss, dtype: torch.dtype) -> None:
    net, features = model(), torch.randn(B, D)
    with torch.autocast("cpu", dtype):
        logits = net(features)
        loss = loss_of(logits, target())
    assert logits.dtype == dtype and loss.dtype == torch.float32  # as F.cross_entropy's under autocast
    loss.backward()
    assert net.weight.grad is not None and net.weight.grad.dtype == torch.float32
    # Nothing inside was narrowed further: the loss of these logits outside autocast.
    torch.testing.assert_close(loss.detach(), loss_of(logits.detach(), target()), rtol=1e-6, atol=0)
    exact = loss_of(logits.detach().double(), target())
    assert float(loss) == pytest.approx(float(exact), rel=1e-5)


@pytest.mark.parametrize("dtype", HALF)
def test_half_logits_without_autocast(loss_of: Loss, dtype: torch.dtype) -> None:
    """As FSDP with a narrow output type hands them over."""
    logits = torch.randn(B, C).to(dtype).requires_grad_()
    loss = loss_of(logits, target())
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.dtype == torch.float32 and gradient.dtype == dtype
    wide = logits.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(loss_of(wide, target()), wide)
    eps = torch.finfo(dtype).eps  # rounded once, from sums in float32
    torch.testing.assert_close(gradient.double(), exact, rtol=eps, atol=1e-7)


@pytest.mark.parametrize("dtype", HALF)
def test_linear_form_under_autocast(dtype: torch.dtype) -> None:
    net, features = model(), torch.randn(B, D, requires_grad=True)
    for mixed in (target(), target().dense(C)):
        with torch.autocast("cpu", dtype):
            loss = icm.LinearICMLoss(net)(features, mixed)
        assert loss.dtype == torch.float32
        gradients = torch.autograd.grad(loss, [features, net.weight, net.bias])
        assert all(each.dtype == torch.float32 and each.isfinite().all() for each in gradients)
        exact = F_icm.linear_icm_loss(features, net.weight, mixed, net.bias, backend="reference")
        assert float(loss) == pytest.approx(float(exact), rel=20 * torch.finfo(dtype).eps)


def scaled_steps(loss_of: Loss, dtype: torch.dtype, scales: float, spoil: set[int]) -> tuple[list[Tensor], list[float]]:
    """Weights after each step and the scale of the gradients; in some steps a feature is infinite."""
    net = model()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scales, growth_interval=2)
    weights, scale = [], []
    for step in range(4):
        features = torch.randn(B, D, generator=torch.Generator().manual_seed(step))
        features[3, 2] = float("inf") if step in spoil else features[3, 2]
        with torch.autocast("cpu", dtype):
            loss = loss_of(net(features), target())
        optimiser.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        weights.append(net.weight.detach().clone())
        scale.append(scaler.get_scale())
    return weights, scale


def plain(logits: Tensor, mixed: icm.MixedTarget) -> Tensor:
    return F.cross_entropy(logits, mixed.y_a)


@pytest.mark.parametrize("dtype", HALF)
def test_gradient_scaler_skips_what_overflows_as_with_cross_entropy(loss_of: Loss, dtype: torch.dtype) -> None:
    ours, ours_scale = scaled_steps(loss_of, dtype, 1024.0, spoil={1})
    _, torchs_scale = scaled_steps(plain, dtype, 1024.0, spoil={1})
    assert ours_scale == torchs_scale and ours_scale[1] == 512.0  # the overflow halves it
    assert torch.equal(ours[1], ours[0]) and not torch.equal(ours[2], ours[1])  # the step was skipped, training went on
    assert all(weight.isfinite().all() for weight in ours)


@pytest.mark.parametrize("scale", [2.0**16, 2.0**-8])
def test_the_scale_is_applied_before_the_gradient_is_rounded(loss_of: Loss, scale: float) -> None:
    """A gradient in float16 has few digits below 6e-5 and none below 6e-8: that is what the scale is for."""
    logits = (torch.randn(B, C) * 12).half().requires_grad_()
    wide = logits.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(loss_of(wide, target()), wide)
    (gradient,) = torch.autograd.grad(loss_of(logits, target()) * scale, logits)
    expected = exact * scale
    fits = expected.abs() < torch.finfo(torch.float16).max
    torch.testing.assert_close(gradient.double()[fits], expected[fits], rtol=torch.finfo(torch.float16).eps, atol=6e-8)
    assert gradient[~fits].isinf().all()
    if scale > 1:  # rounded first, small ones would be lost
        lost = (exact != 0) & (exact.half() == 0)
        assert bool(lost.any()) and bool((gradient[lost] != 0).any())
