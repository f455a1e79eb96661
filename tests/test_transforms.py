"""torch.func, forward-mode and second derivatives: right, through the reference, or refused; never a silent zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast import reference

C = 10


class Case(NamedTuple):
    """A function of one tensor, with ours or the reference's functions in it."""

    of: Callable[[Any], Callable[[Tensor], Tensor]]
    shape: tuple[int, int]


def _labels(rows: int) -> Tensor:
    return torch.arange(rows) * 7 % C


def _target(rows: int) -> icm.MixedTarget:
    return icm.MixedTarget(_labels(rows), _labels(rows).flip(0), torch.linspace(0, 1, rows, dtype=torch.float64))


WEIGHT = torch.linspace(-1, 1, C * 4, dtype=torch.float64).sin().mul(3).reshape(C, 4)
VIEWS = torch.linspace(-1, 9, 200 * 4, dtype=torch.float64).cos().reshape(200, 4)
RATE = torch.tensor(0.6)
# Rows enough that `auto` takes kernels for products too.
CASES = {
    "icm_loss": Case(lambda lib: lambda S: lib.icm_loss(S, _target(16)), (16, C)),
    "icm_loss, dense": Case(lambda lib: lambda S: lib.icm_loss(S, _target(200).dense(C).double()), (200, C)),
    "icm_loss, hard": Case(lambda lib: lambda S: lib.icm_loss(S, _labels(16)), (16, C)),
    "mixup_cross_entropy": Case(lambda lib: lambda S: lib.mixup_cross_entropy(S, _target(16)), (16, C)),
    "am_mixup_loss": Case(
        lambda lib: lambda S: lib.am_mixup_loss(S, torch.arange(16).flip(0), RATE, _labels(16)), (16, C)
    ),
    "linear_icm_loss": Case(lambda lib: lambda x: lib.linear_icm_loss(x, WEIGHT, _target(16)), (16, 4)),
    "linear_icm_loss, hard": Case(lambda lib: lambda x: lib.linear_icm_loss(x, WEIGHT, _labels(16)), (16, 4)),
    "contrastive_loss": Case(lambda lib: lambda x: lib.contrastive_loss(x, VIEWS), (200, 4)),
    "mixup": Case(
        lambda lib: lambda x: lib.mixup(x, torch.arange(16).flip(0), _target(16).lam).square().sum(), (16, C)
    ),
}
HAVE_SECOND = {"icm_loss, hard", "mixup"}  # torch's own cross-entropy; a linear operation


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def inputs(case: str) -> tuple[Tensor, Tensor]:
    x, direction = (torch.randn(CASES[case].shape, dtype=torch.float64) for _ in range(2))
    return x, direction


def ours_and_exact(case: str) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    return CASES[case].of(F_icm), CASES[case].of(reference)


TRANSFORMS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "grad": lambda f, x, v: torch.func.grad(f)(x),
    "jvp": lambda f, x, v: torch.func.jvp(f, (x,), (v,))[1],
    "vmap": lambda f, x, v: torch.func.vmap(f)(torch.stack([x, x + v])),
    "vmap of grad": lambda f, x, v: torch.func.vmap(torch.func.grad(f))(torch.stack([x, x + v])),
    "Hessian times vector": lambda f, x, v: torch.func.jvp(torch.func.grad(f), (x,), (v,))[1],
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_function_transforms(transform: str, compiled: bool, case: str) -> None:
    x, v = inputs(case)
    ours, exact = ours_and_exact(case)
    apply = TRANSFORMS[transform]
    expected = apply(exact, x, v)

    def run(x: Tensor, v: Tensor) -> Tensor:
        return apply(ours, x, v)

    if compiled:
        torch._dynamo.reset()
        run = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert expected.abs().max() > 0
    torch.testing.assert_close(run(x, v), expected, rtol=1e-9, atol=1e-12)


# torch.compile makes an autograd Function of what wants a gradient, and refuses forward mode there for any function.
@pytest.mark.parametrize(("compiled", "wants_gradient"), [(False, False), (False, True), (True, False)])
def test_forward_mode(compiled: bool, wants_gradient: bool, case: str) -> None:
    """Also where no gradient is asked for, so that no autograd Function would have noticed."""
    x, v = inputs(case)
    ours, exact = ours_and_exact(case)
    expected = torch.func.jvp(exact, (x,), (v,))[1]
    if compiled:
        torch._dynamo.reset()
        ours = torch.compile(ours, backend="aot_eager")
    with forward_ad.dual_level():
        result = ours(forward_ad.make_dual(x.requires_grad_(wants_gradient), v))
        tangent = forward_ad.unpack_dual(result).tangent
        assert tangent is not None
        torch.testing.assert_close(tangent.detach(), expected, rtol=1e-9, atol=1e-12)


def gradient_penalty(f: Callable[[Tensor], Tensor], x: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of |d f / d x|^2, which lead past the gradient to what it was computed from."""
    hidden = torch.tanh(x * factor)
    (gradient,) = torch.autograd.grad(f(hidden), hidden, create_graph=True)
    result = torch.autograd.grad(gradient.square().sum() + hidden.sum(), (x, factor))
    return result[0], result[1]


def test_second_derivatives_are_right_or_refused(case: str) -> None:
    x = inputs(case)[0].requires_grad_()
    factor = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    ours, exact = ours_and_exact(case)
    expected = gradient_penalty(exact, x, factor)
    if case in HAVE_SECOND:
        torch.testing.assert_close(gradient_penalty(ours, x, factor), expected)
        return
    with pytest.raises(RuntimeError, match="backend='reference'"):
        gradient_penalty(ours, x, factor)
    through_reference = CASES[case].of(_OnReference())
    torch.testing.assert_close(gradient_penalty(through_reference, x, factor), expected)


def test_second_derivatives_are_refused_inside_graphs_too() -> None:
    """Where the registered formulas run: another path to the parameters would hide what is left out."""
    weight = torch.randn(6, C, requires_grad=True)
    x = torch.randn(8, 6)

    def loss(weight: Tensor) -> Tensor:
        return F_icm.icm_loss((x @ weight).sin(), icm.MixedTarget(_labels(8), _labels(8).flip(0), torch.tensor(0.3)))

    class Module(torch.nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return loss(weight)

    exported = torch.export.export(Module(), (weight,)).module()
    for run in (loss, torch.compile(loss, backend="eager"), exported):
        value = run(weight)
        (gradient,) = torch.autograd.grad(value, weight, create_graph=True)
        with pytest.raises(RuntimeError, match="backend='reference'"):
            (value + gradient.square().sum()).backward()


class _OnReference:
    """Our functions with backend="reference"."""

    def __getattr__(self, name: str) -> Callable[..., Tensor]:
        function = getattr(F_icm, name)
        return lambda *arguments, **options: function(*arguments, backend="reference", **options)


def test_the_incoming_gradient_has_a_derivative_too_and_it_is_refused(case: str) -> None:
    """A learned weight of the loss: its derivative would go through the gradient that was multiplied by it."""
    x, weight = inputs(case)[0].requires_grad_(), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    ours, exact = ours_and_exact(case)

    def derivative(f: Callable[[Tensor], Tensor]) -> Tensor:
        (gradient,) = torch.autograd.grad(f(x) * weight, x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), weight)[0]

    if case in HAVE_SECOND:
        torch.testing.assert_close(derivative(ours), derivative(exact))
    else:
        with pytest.raises(RuntimeError, match="backend='reference'"):
            derivative(ours)
