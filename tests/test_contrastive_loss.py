"""The loss of two views, and dense targets, which take the same passes: against the float64 reference, elementwise."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import backends_of
from torch import Tensor

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast.operators import _products
from icm_fast.testing.checks import check_icm_loss
from icm_fast.testing.linear import Inputs, Results, check_linear_icm_loss, pairs
from icm_fast.testing.memory import peak_extra_bytes
from icm_fast.testing.regimes import REGIMES

BACKENDS = backends_of("contrastive_loss")
# Products turn the infinities of the others into NaN.
FINITE = [name for name, each in REGIMES.items() if each.finite and name not in ("masked", "unused_nan")]


@pytest.fixture(autouse=True)
def small_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "memory" not in request.node.name:
        monkeypatch.setitem(_products._BLOCKS, "cpu", (1 << 10, 16, 64))
        monkeypatch.setattr(_products, "_KEPT", 1000)  # of 31 rows or fewer


def random_views(
    rows: int, depth: int, generator: torch.Generator, dtype: torch.dtype = torch.float32, scale: float | None = None
) -> Inputs:
    x, y = (torch.randn(rows, depth, generator=generator).to(dtype) for _ in range(2))
    bias = torch.randn(rows, generator=generator).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return Inputs(x, y, bias, None if scale is None else torch.tensor(scale, dtype=wide))


def run(given: Inputs, grad: Tensor | None = None, **options: object) -> Results:
    leaves = [None if each is None else each.detach().requires_grad_() for each in given]
    x, y, bias, scale = leaves
    loss = F_icm.contrastive_loss(x, y, scale, bias=bias, **options)
    wanted = [each for each in leaves if each is not None]
    gradients = iter(torch.autograd.grad(loss, wanted, torch.ones_like(loss) if grad is None else grad))
    return Results(loss.detach(), *(None if each is None else next(gradients) for each in leaves))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (61, 17), (130, 1), (64, 48)], ids=str)
def test_random_views(shape: tuple[int, int], dtype: torch.dtype, backend: str, generator: torch.Generator) -> None:
    for scale in (None, 5.0, -0.3, 0.0):
        given = random_views(*shape, generator, dtype, scale)
        for axis in ("both", "class", "pair"):
            results = run(given, axis=axis, backend=backend)
            if scale == 0.0:  # which the budget of the scale's gradient divides by
                results = results._replace(dlogit_scale=None)
            check_linear_icm_loss(results, given, pairs(shape[0]), axis=axis, what=f"{shape} {scale} {axis}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions_and_incoming_gradients(reduction: str, backend: str, generator: torch.Generator) -> None:
    given = random_views(61, 17, generator)
    shape = (61,) if reduction == "none" else ()
    for grad in (torch.randn(shape, generator=generator) * 1000, torch.tensor(0.25).expand(shape), torch.zeros(shape)):
        results = run(given, grad, reduction=reduction, backend=backend)
        check_linear_icm_loss(results, given, pairs(61), reduction=reduction, grad_output=grad)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("regime", FINITE)
def test_dense_targets_of_every_regime(regime: str, backend: str, generator: torch.Generator) -> None:
    """Those of two classes a row, as dense ones; then smoothed over all classes."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        case = REGIMES[regime](61, 23, dtype, generator)
        target = icm.MixedTarget(*case[1:]).dense(23, torch.float64 if dtype == torch.float64 else torch.float32)
        for dense in (target, 0.9 * target + 0.1 / 23):
            leaf = case.logits.detach().requires_grad_()
            loss = F_icm.icm_loss(leaf, dense, backend=backend)
            check_icm_loss(loss.detach(), torch.autograd.grad(loss, leaf)[0], leaf, dense, what=f"{regime} {dtype}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_dense_targets_of_two_classes_agree_with_mixed_ones(backend: str, generator: torch.Generator) -> None:
    case = REGIMES["normal"](61, 23, torch.float32, generator)
    mixed = icm.MixedTarget(*case[1:])
    recognised = icm.MixedTarget.from_dense(mixed.dense(23))
    for reduction in ("mean", "none"):
        of = [
            F_icm.icm_loss(case.logits, each, reduction=reduction, backend=backend)
            for each in (mixed, mixed.dense(23), recognised)
        ]
        torch.testing.assert_close(of[1], of[0])
        torch.testing.assert_close(of[2], of[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_and_second_derivative(backend: str, generator: torch.Generator) -> None:
    leaves = [each.clone().requires_grad_() for each in random_views(20, 3, generator, torch.float64, 0.9)]

    def loss(x: Tensor, y: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
        return F_icm.contrastive_loss(x, y, scale, bias=bias, reduction="none", backend=backend)

    assert torch.autograd.gradcheck(loss, leaves)
    first = torch.autograd.grad(loss(*leaves).sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        first[1].sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_clip(backend: str, generator: torch.Generator) -> None:
    """CLIP's loss, as open_clip writes it, is half of ours."""
    image, text = (F.normalize(torch.randn(33, 16, generator=generator), dim=1).requires_grad_() for _ in range(2))
    scale = torch.tensor(14.3, requires_grad=True)
    logits, labels = scale * image @ text.T, torch.arange(33)
    clip = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    ours = F_icm.contrastive_loss(image, text, scale, backend=backend) / 2
    torch.testing.assert_close(ours, clip)
    leaves = [image, text, scale]
    torch.testing.assert_close(torch.autograd.grad(ours, leaves), torch.autograd.grad(clip, leaves))


@pytest.mark.parametrize("backend", BACKENDS)
def test_terms_and_shared_views(backend: str, generator: torch.Generator) -> None:
    x = torch.randn(20, 4, generator=generator, requires_grad=True)
    loss, by_class, by_pair = F_icm.contrastive_loss(x, x, return_terms=True, backend=backend)
    torch.testing.assert_close(loss.detach(), by_class + by_pair)
    torch.testing.assert_close(by_class, by_pair)  # the scores are symmetric
    expected = torch.autograd.grad(F_icm.contrastive_loss(x, x, backend="reference"), x)
    torch.testing.assert_close(torch.autograd.grad(loss, x), expected)


def test_compiled_is_eager(generator: torch.Generator) -> None:
    def step(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        return F_icm.contrastive_loss(x, y, scale)

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for rows in (40, 33):
        given = random_views(rows, 8, generator, scale=2.0)
        leaves = [each.clone().requires_grad_() for each in (given.features, given.weight, given.logit_scale)]
        results = [(loss, *torch.autograd.grad(loss, leaves)) for loss in (step(*leaves), compiled(*leaves))]
        torch.testing.assert_close(results[1], results[0])


def test_memory_is_not_quadratic(generator: torch.Generator) -> None:
    given = random_views(6000, 8, generator, scale=1.0)
    extra = peak_extra_bytes(lambda: run(given))
    assert extra < 4 * 6000 * 6000 / 4, f"{extra / 2**20:.0f} MiB"


def test_bad_arguments() -> None:
    x = torch.randn(4, 3)
    for call, error, words in (
        (lambda: F_icm.contrastive_loss(x, x[1:]), ValueError, "one shape"),
        (lambda: F_icm.contrastive_loss(x, x.double()), ValueError, "one type"),
        (lambda: F_icm.contrastive_loss(x.long(), x), TypeError, "float32"),
        (lambda: F_icm.contrastive_loss(x, x, bias=x[0]), ValueError, "bias"),
        (lambda: F_icm.contrastive_loss(x, x, x[0]), ValueError, "logit_scale"),
        (lambda: F_icm.contrastive_loss(x, x, "2"), TypeError, "logit_scale"),
        (lambda: F_icm.contrastive_loss(x, x, axis="rows"), ValueError, "axis"),
        (lambda: F_icm.contrastive_loss(x, x, backend="cuda"), RuntimeError, "not available"),
    ):
        with pytest.raises(error, match=words):
            call()
