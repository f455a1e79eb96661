"""How the fused operators behave inside PyTorch: graphs, modes, compilation, function transforms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import backends_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast.testing import budget
from icm_fast.testing.regimes import REGIMES

BACKENDS = backends_of("icm_loss")


@pytest.fixture
def case(generator: torch.Generator) -> tuple[Tensor, icm.MixedTarget]:
    drawn = REGIMES["normal"](33, 20, torch.float32, generator)
    return drawn.logits.requires_grad_(), icm.MixedTarget(*drawn[1:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_twice_and_inputs_unchanged(backend: str, case: tuple[Tensor, icm.MixedTarget]) -> None:
    logits, target = case
    before, version = logits.detach().clone(), logits._version
    loss = F_icm.icm_loss(logits, target, backend=backend)
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    kept = first.clone()
    first.zero_()  # a caller may do as it likes with a gradient
    (second,) = torch.autograd.grad(loss, logits)
    budget.check_same_bits(second, kept, "second backward")
    budget.check_same_bits(logits.detach(), before, "logits")
    assert logits._version == version


@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_in_the_middle_of_a_graph(backend: str, case: tuple[Tensor, icm.MixedTarget]) -> None:
    logits, target = case
    F_icm.icm_loss(logits, target, backend=backend).mul(3).add(1).backward()
    fused = logits.grad
    logits.grad = None
    (3 * F_icm.icm_loss(logits, target, backend="reference") + 1).backward()
    torch.testing.assert_close(fused, logits.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_gradients_that_are_needed(backend: str, case: tuple[Tensor, icm.MixedTarget]) -> None:
    logits, target = case
    scale = torch.tensor(2.0, requires_grad=True)
    loss = F_icm.icm_loss(logits.detach(), target, logit_scale=scale, backend=backend)
    assert torch.autograd.grad(loss, scale)[0].shape == ()
    loss = F_icm.icm_loss(logits, target, logit_scale=scale.detach(), backend=backend)
    assert torch.autograd.grad(loss, logits)[0].shape == logits.shape
    assert not F_icm.icm_loss(logits.detach(), target, backend=backend).requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_modes_without_gradients(backend: str, case: tuple[Tensor, icm.MixedTarget]) -> None:
    logits, target = case
    expected = F_icm.icm_loss(logits, target, backend=backend)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            loss = F_icm.icm_loss(logits, target, backend=backend)
        assert not loss.requires_grad
        budget.check_same_bits(loss, expected, mode.__name__)


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivative_is_refused_and_the_reference_has_one(
    backend: str, case: tuple[Tensor, icm.MixedTarget]
) -> None:
    logits, target = case
    (gradient,) = torch.autograd.grad(F_icm.icm_loss(logits, target, backend=backend), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        gradient.square().sum().backward()
    scale = torch.tensor(2.0, requires_grad=True)
    loss = F_icm.icm_loss(logits.detach(), target, logit_scale=scale, backend=backend)
    (gradient,) = torch.autograd.grad(loss, scale, create_graph=True)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        gradient.square().backward()
    loss = F_icm.icm_loss(logits, target, backend="reference")
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    assert torch.autograd.grad(gradient.square().sum(), logits)[0].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_in_one_graph_with_the_same_bits(backend: str, case: tuple[Tensor, icm.MixedTarget]) -> None:
    logits, target = case
    torch._dynamo.reset()
    compilations = 0

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        nonlocal compilations
        compilations += 1
        return graph

    # aot_eager runs the fake kernels and the registered derivative; inductor would only add compile time.
    for compiler in (count, "aot_eager"):
        compiled = torch.compile(F_icm.icm_loss, fullgraph=True, backend=compiler)
        for lam in (0.2, 0.9):
            mixed = icm.MixedTarget(target.y_a, target.y_b, torch.tensor(lam))
            results = [f(logits, mixed, backend=backend) for f in (compiled, F_icm.icm_loss)]
            gradients = [torch.autograd.grad(loss, logits)[0] for loss in results]
            budget.check_same_bits(results[0].detach(), results[1].detach(), "compiled loss")
            budget.check_same_bits(gradients[0], gradients[1], "compiled gradient")
    assert compilations == 1


def test_function_transforms_go_through_the_reference(case: tuple[Tensor, icm.MixedTarget]) -> None:
    logits, target = case

    def loss(logits: Tensor) -> Tensor:
        return F_icm.icm_loss(logits, target)

    expected = torch.autograd.grad(loss(logits), logits)[0]
    torch.testing.assert_close(torch.func.grad(loss)(logits.detach()), expected, rtol=1e-5, atol=1e-7)
    direction = torch.randn_like(logits)
    _, tangent = torch.func.jvp(loss, (logits.detach(),), (direction,))
    torch.testing.assert_close(tangent, (expected * direction).sum(), rtol=1e-4, atol=1e-6)
    batched = torch.stack([logits.detach(), 2 * logits.detach()])
    torch.testing.assert_close(
        torch.func.vmap(loss)(batched), torch.stack([loss(each) for each in batched]), rtol=1e-5, atol=1e-6
    )


def test_traced_without_values(case: tuple[Tensor, icm.MixedTarget]) -> None:
    logits, target = case
    traced = make_fx(lambda S: F_icm.icm_loss(S, target))(logits.detach())
    budget.check_same_bits(traced(logits.detach()), F_icm.icm_loss(logits, target).detach(), "traced loss")
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert F_icm.icm_loss(torch.zeros(33, 20), target).shape == ()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(dtype: torch.dtype, case: tuple[Tensor, icm.MixedTarget]) -> None:
    _, target = case
    features, weight = torch.randn(33, 16), torch.randn(20, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        scores = F.linear(features, weight)
        loss = F_icm.icm_loss(scores, target)
    assert scores.dtype == dtype and loss.dtype == torch.float32
    loss.backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32 and weight.grad.isfinite().all()


def test_no_graph_is_kept_alive() -> None:
    import gc
    import weakref

    target = icm.MixedTarget(torch.arange(8), torch.arange(8).flip(0), torch.tensor(0.3))
    gc.disable()
    try:
        logits = torch.randn(8, 10, requires_grad=True)
        alive = weakref.ref(logits)
        F_icm.icm_loss(logits, target).backward()
        del logits
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_checkpointing(backend: str, use_reentrant: bool, case: tuple[Tensor, icm.MixedTarget]) -> None:
    """What was saved is formed again when the backward pass asks for it: once, and above autograd."""
    logits, target = case
    net, scale = torch.nn.Linear(20, 20), torch.tensor(0.7, requires_grad=True)
    index = torch.arange(33).flip(0)
    losses = {
        "icm_loss": lambda s, a: F_icm.icm_loss(s, target, logit_scale=a, backend=backend),
        "mixup_cross_entropy": lambda s, a: F_icm.mixup_cross_entropy(s, target, backend=backend) * a,
        "am_mixup_loss": lambda s, a: a * F_icm.am_mixup_loss(s, index, torch.tensor(0.6), target.y_a, backend=backend),
        "linear_icm_loss": lambda s, a: F_icm.linear_icm_loss(s, net.weight, target, net.bias, logit_scale=a),
        "contrastive_loss": lambda s, a: F_icm.contrastive_loss(s, s.flip(0), a),
        "hard": lambda s, a: F_icm.linear_icm_loss(s, net.weight, target.y_a, net.bias, logit_scale=a),
        "mixup": lambda s, a: a * F_icm.mixup(s, index, target.lam, backend=backend).square().sum(),
    }
    for name, loss_of in losses.items():
        leaves = [logits, scale, *net.parameters()]
        gradients = []
        for run in (loss_of, lambda s, a, of=loss_of: checkpoint(of, s, a, use_reentrant=use_reentrant)):
            for leaf in leaves:
                leaf.grad = None
            run(net(logits), scale).backward()
            gradients.append([leaf.grad.clone() for leaf in leaves])
        for ours, expected in zip(*gradients, strict=True):
            budget.check_same_bits(ours, expected, name)
