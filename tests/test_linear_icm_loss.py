"""The loss from features and weights, on each of its ways: against the float64 reference, elementwise."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import backends_of
from linear_cases import random_case, run
from torch import Tensor, nn

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast import reference
from icm_fast.operators import _products
from icm_fast.testing.checks import check_icm_loss
from icm_fast.testing.linear import Inputs, check_linear_icm_loss
from icm_fast.testing.regimes import REGIMES

BACKENDS = backends_of("linear_icm_loss")
FINITE = [name for name, regime in REGIMES.items() if regime.finite and name not in ("masked", "unused_nan")]


# Rows, features, classes. One of each; primes, which no block divides; one feature; one class; all classes distinct.
SHAPES = [(1, 1, 1), (2, 3, 2), (61, 17, 10), (130, 5, 7), (97, 1, 31), (64, 32, 500), (33, 8, 1), (19, 64, 4096)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_random_classifiers(
    shape: tuple[int, int, int], dtype: torch.dtype, backend: str, way: str, generator: torch.Generator
) -> None:
    for bias, scale in ((True, None), (False, 1.7), (True, -0.4)):
        given, target = random_case(shape, generator, dtype, bias, scale)
        check_linear_icm_loss(run(given, target, backend=backend), given, target, what=f"{shape} {way} {scale}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("regime", FINITE)
def test_regimes_of_logits(regime: str, dtype: torch.dtype, backend: str, way: str, generator: torch.Generator) -> None:
    """An identity for a weight leaves the logits as they are, so the budget of the loss on given logits holds."""
    for shape in ((7, 10), (61, 67), (70, 3)):
        case = REGIMES[regime](*shape, dtype, generator)
        given = Inputs(case.logits, torch.eye(shape[1], dtype=dtype))
        target = icm.MixedTarget(*case[1:])
        # Mixed classifiers mix before anything is subtracted, as a dense target does.
        same = target.dense(shape[1], dtype) if way == "classifiers" else target
        for axis in ("both", "class", "pair"):
            results = run(given, target, axis=axis, backend=backend)
            check_icm_loss(results.loss, results.dfeatures, case.logits, same, axis=axis, what=f"{regime} {way} {axis}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_way_agrees_with_the_loss_of_the_logits(backend: str, way: str, generator: torch.Generator) -> None:
    given, target = random_case((61, 17, 40), generator, torch.float64, logit_scale=1.2)
    ours = run(given, target, backend=backend)
    leaves = [each.clone().requires_grad_() for each in given]
    features, weight, bias, scale = leaves
    loss = F_icm.icm_loss(features @ weight.T + bias, target, logit_scale=scale, backend=backend)
    expected = (loss.detach(), *torch.autograd.grad(loss, leaves))
    torch.testing.assert_close(tuple(ours), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("axis", ["both", "class", "pair"])
def test_reductions_and_incoming_gradients(
    axis: str, reduction: str, backend: str, way: str, generator: torch.Generator
) -> None:
    given, target = random_case((61, 17, 40), generator)
    shape = (61,) if reduction == "none" else ()
    for grad in (torch.randn(shape, generator=generator) * 1000, torch.tensor(0.25).expand(shape), torch.zeros(shape)):
        results = run(given, target, grad, axis=axis, reduction=reduction, backend=backend)
        options = {"axis": axis, "reduction": reduction, "grad_output": grad}
        check_linear_icm_loss(results, given, target, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_blocks_that_lie_far_from_each_other(backend: str, way: str, generator: torch.Generator) -> None:
    """Sums of one block of rows that underflow relative to another's, on either side of a repair."""
    for factor, dtype in itertools.product((30.0, 300.0, 3e4), (torch.float32, torch.float64)):
        given, target = random_case((130, 9, 12), generator, dtype)
        given.features[64:] *= factor
        check_linear_icm_loss(run(given, target, backend=backend), given, target, what=f"{way} {factor} {dtype}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_classes(backend: str, way: str, generator: torch.Generator) -> None:
    """A bias of -inf masks a class: of no image, and of some as their own."""
    given, target = random_case((70, 6, 12), generator)
    masked = given._replace(bias=given.bias.index_fill(0, torch.tensor([11]), -torch.inf))
    unused = icm.MixedTarget(target.y_a.clamp(max=10), target.y_b.clamp(max=10), target.lam)
    results = run(masked, unused, backend=backend)
    assert results.loss.isfinite() and results.dfeatures.isfinite().all()
    expected = reference.linear_icm_loss(*masked[:2], target, masked.bias, reduction="none")
    loss = F_icm.linear_icm_loss(*masked[:2], target, masked.bias, reduction="none", backend=backend)
    assert (loss.isfinite() == expected.isfinite()).all() and (loss.isnan() == expected.isnan()).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_sparse_gradient_is_the_dense_one(backend: str, way: str, generator: torch.Generator) -> None:
    given, target = random_case((31, 8, 300), generator)
    dense, sparse = run(given, target, backend=backend), run(given, target, backend=backend, sparse_grad=True)
    assert sparse.dweight.is_sparse and sparse.dweight._nnz() <= 2 * 31
    present = torch.cat((target.y_a, target.y_b)).unique()
    assert not dense.dweight.index_fill(0, present, 0.0).any()
    torch.testing.assert_close(sparse.dweight.to_dense(), dense.dweight, rtol=0, atol=0)
    weight = nn.Parameter(given.weight.clone())
    optimiser = torch.optim.SGD([weight], lr=1.0)
    F_icm.linear_icm_loss(given.features, weight, target, given.bias, sparse_grad=True, backend=backend).backward()
    optimiser.step()
    torch.testing.assert_close(weight.detach(), given.weight - dense.dweight)


@pytest.mark.parametrize("backend", BACKENDS)
def test_invariants(backend: str, way: str, generator: torch.Generator) -> None:
    given, target = random_case((61, 17, 40), generator, torch.float64)
    by_class = run(given, target, axis="class", backend=backend)
    assert by_class.dweight.sum(0).abs().max() < 1e-15  # the class axis does not see what all classes share
    by_pair = run(given, target, axis="pair", backend=backend)
    assert by_pair.dbias.abs().max() < 1e-15  # the pair axis does not see what all images share


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_what_is_asked_for(backend: str, way: str, generator: torch.Generator) -> None:
    given, target = random_case((33, 5, 50), generator, logit_scale=1.3)
    everything = run(given, target, backend=backend)
    for wanted in itertools.product((False, True), repeat=4):
        if not any(wanted):
            continue
        leaves = [each.clone().requires_grad_(wants) for each, wants in zip(given, wanted, strict=True)]
        features, weight, bias, scale = leaves
        F_icm.linear_icm_loss(features, weight, target, bias, logit_scale=scale, backend=backend).backward()
        for leaf, wants, expected in zip(leaves, wanted, everything[1:], strict=True):
            assert (leaf.grad is not None) == wants
            if wants:
                torch.testing.assert_close(leaf.grad, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str, way: str, generator: torch.Generator) -> None:
    given, target = random_case((20, 3, 6), generator, torch.float64, logit_scale=0.9)
    leaves = [each.clone().requires_grad_() for each in given]

    def loss(features: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
        return F_icm.linear_icm_loss(
            features, weight, target, bias, logit_scale=scale, reduction="none", backend=backend
        )

    assert torch.autograd.gradcheck(loss, leaves)
    first = torch.autograd.grad(loss(*leaves).sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        first[0].square().sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_weight_shared_with_another_loss(backend: str, way: str, generator: torch.Generator) -> None:
    given, target = random_case((33, 5, 50), generator)
    weight = given.weight.clone().requires_grad_()
    loss = F_icm.linear_icm_loss(given.features, weight, target, backend=backend) + weight.square().sum()
    loss.backward(retain_graph=True)
    once = weight.grad.clone()
    loss.backward()
    torch.testing.assert_close(weight.grad, 2 * once)
    alone = run(given._replace(bias=None), target, backend=backend).dweight
    torch.testing.assert_close(once, alone + 2 * given.weight)


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_and_inputs_unmodified(backend: str, way: str, generator: torch.Generator) -> None:
    given, target = random_case((33, 6, 50), generator)
    expected = run(given, target, backend=backend)
    turned = given._replace(features=given.features.T.contiguous().T, weight=given.weight.repeat(1, 2)[:, :6])
    before = [each.clone() for each in turned if each is not None]
    strided = run(turned, target, backend=backend)
    for ours, theirs in zip(strided, expected, strict=True):
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    for each, same in zip((each for each in turned if each is not None), before, strict=True):
        assert torch.equal(each, same)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(61, 17, 10), (40, 5, 900), (1, 3, 4)], ids=str)
def test_hard_labels(
    shape: tuple[int, int, int], backend: str, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_products._BLOCKS, "cpu", (1, 16, 64))
    for dtype, scale in itertools.product((torch.float32, torch.bfloat16), (None, -1.5)):
        given, target = random_case(shape, generator, dtype, logit_scale=scale)
        for reduction in ("mean", "none"):
            results = run(given, target.y_a, reduction=reduction, backend=backend)
            check_linear_icm_loss(results, given, target.y_a, reduction=reduction, what=f"hard {dtype} {scale}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(61, 17, 10), (40, 5, 300)], ids=str)  # through logits, on classifiers
def test_dense_targets(shape: tuple[int, int, int], backend: str, generator: torch.Generator) -> None:
    rows, _, classes = shape
    for scale in (None, 0.6):
        given, mixed = random_case(shape, generator, logit_scale=scale)
        smooth = torch.rand(rows, classes, generator=generator).softmax(1)
        for target in (smooth, mixed.dense(classes)):
            check_linear_icm_loss(run(given, target, backend=backend), given, target, what=f"dense {shape}")
        agreed = [run(given, each, backend=backend).loss for each in (mixed, mixed.dense(classes))]
        torch.testing.assert_close(*agreed)
