"""linear_icm_loss as it is used: modules, autocast, torch.compile, memory, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import backends_of
from linear_cases import random_case, run
from torch import Tensor, nn

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast.testing.linear import Inputs, Results, check_linear_icm_loss
from icm_fast.testing.memory import peak_extra_bytes

BACKENDS = backends_of("linear_icm_loss")


def test_modules(generator: torch.Generator) -> None:
    head = nn.Linear(16, 12)
    features = torch.randn(9, 16, generator=generator)
    target = icm.MixedTarget(torch.arange(9), torch.arange(9).flip(0), torch.tensor(0.3))
    for criterion in (icm.LinearICMLoss(head), icm.LinearICMLoss(head.weight, head.bias)):
        assert list(criterion.parameters()) == [] and criterion.state_dict() == {}
        torch.testing.assert_close(criterion(features, target), icm.ICMLoss()(head(features), target))
        hard = criterion(features, target.y_a)
        torch.testing.assert_close(hard, nn.functional.cross_entropy(head(features), target.y_a))
    with pytest.raises(TypeError, match=r"expected head to be an nn\.Linear"):
        icm.LinearICMLoss(nn.ReLU())
    with pytest.raises(TypeError, match="a module has its own"):
        icm.LinearICMLoss(head, head.bias)


def test_copies_of_a_module_refer_to_the_copied_head() -> None:
    model = nn.Module()
    model.head = nn.Linear(4, 3)
    model.criterion = icm.LinearICMLoss(model.head)
    twin = copy.deepcopy(model)
    assert twin.criterion._head.head is twin.head and len(list(twin.parameters())) == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast(backend: str, way: str, generator: torch.Generator) -> None:
    given, target = random_case((61, 17, 40), generator)
    with torch.autocast("cpu", torch.bfloat16):
        results = run(given, target, backend=backend)
        logits = nn.functional.linear(*given[:3])
        plain = F_icm.icm_loss(logits, target, backend=backend)
    assert logits.dtype == torch.bfloat16 and results.loss.dtype == torch.float32
    assert results.dfeatures.dtype == results.dweight.dtype == torch.float32
    torch.testing.assert_close(results.loss, plain, rtol=1e-2, atol=0)
    narrow = Inputs(*(each.bfloat16() for each in given[:3]))
    grown = [each if each is None or k in (0, 4) else each.bfloat16() for k, each in enumerate(results)]
    check_linear_icm_loss(Results(*grown), narrow, target, what=f"autocast {way}")


@pytest.mark.parametrize("classes", [10, 500])
def test_compiled_is_eager(classes: int, generator: torch.Generator) -> None:
    given, target = random_case((60, 8, classes), generator)

    def step(features: Tensor, weight: Tensor, bias: Tensor, y_a: Tensor, y_b: Tensor, lam: Tensor) -> Tensor:
        return F_icm.linear_icm_loss(features, weight, icm.MixedTarget(y_a, y_b, lam), bias)

    leaves = [each.clone().requires_grad_() for each in given[:3]]
    results = []
    for function in (step, torch.compile(step, fullgraph=True)):
        loss = function(*leaves, target.y_a, target.y_b, target.lam)
        results.append((loss, *torch.autograd.grad(loss, leaves)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-7)


def test_functorch(generator: torch.Generator) -> None:
    given, target = random_case((12, 4, 9), generator)

    def loss(weight: Tensor) -> Tensor:
        return F_icm.linear_icm_loss(given.features, weight, target, given.bias)

    torch.testing.assert_close(torch.func.grad(loss)(given.weight), run(given, target).dweight)


def test_memory_of_many_classes(generator: torch.Generator) -> None:
    """Neither (B, C) nor (B, B) is ever held."""
    for shape, kind in (((4096, 16, 6000), "mixed"), ((4096, 16, 40000), "mixed"), ((2048, 16, 20000), "hard")):
        given, target = random_case(shape, generator)
        labels = target if kind == "mixed" else target.y_a
        extra = peak_extra_bytes(lambda given=given, labels=labels: run(given, labels))
        rows, _, classes = shape
        least = 4 * rows * (min(rows, classes) if kind == "mixed" else classes)
        assert extra < least / 2, f"{shape} {kind}: {extra / 2**20:.0f} of {least / 2**20:.0f} MiB"


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_values(backend: str, way: str, generator: torch.Generator) -> None:
    given, target = random_case((33, 6, 50), generator)
    for broken in (
        icm.MixedTarget(target.y_a + 45, target.y_b, target.lam),
        icm.MixedTarget(target.y_a, target.y_b - 49, target.lam),
        icm.MixedTarget(target.y_a, target.y_b, target.lam * 3),
    ):
        with pytest.raises(ValueError, match=r"y_a\[|y_b\[|lam"):
            run(given, broken, backend=backend)
    assert run(given._replace(features=given.features * torch.nan), target, backend=backend).loss.isnan()


def test_bad_arguments(generator: torch.Generator) -> None:
    given, target = random_case((5, 4, 9), generator)
    features, weight, bias, _ = given
    for call, error, words in (
        (lambda: F_icm.linear_icm_loss(features[0], weight, target), ValueError, r"features of shape \(B, D\)"),
        (lambda: F_icm.linear_icm_loss(features, weight.T, target), ValueError, r"weight of shape \(C, 4\)"),
        (lambda: F_icm.linear_icm_loss(features, weight.double(), target), ValueError, "one type"),
        (lambda: F_icm.linear_icm_loss(features, weight, target, bias[1:]), ValueError, r"bias of shape \(9,\)"),
        (lambda: F_icm.linear_icm_loss(features[1:], weight, target), ValueError, "features has 4 rows"),
        (lambda: F_icm.linear_icm_loss(features, weight, target.y_a, sparse_grad=True), ValueError, "MixedTarget"),
        (lambda: F_icm.linear_icm_loss(features, weight, (1, 2, 3)), TypeError, "from_tuple"),
        (lambda: F_icm.linear_icm_loss(features, weight, torch.zeros(5, 8)), ValueError, r"shape \(5, 9\)"),
        (lambda: F_icm.linear_icm_loss(features, weight, target, axis="rows"), ValueError, "axis"),
        (lambda: F_icm.linear_icm_loss(features, weight.tolist(), target), TypeError, "weight"),
    ):
        with pytest.raises(error, match=words):
            call()


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_and_single_batches(backend: str, way: str) -> None:
    weight = torch.randn(5, 3)
    empty = icm.MixedTarget(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.tensor(0.5))
    for reduction, expected in (("sum", 0.0), ("mean", torch.nan)):
        loss = F_icm.linear_icm_loss(torch.zeros(0, 3), weight, empty, reduction=reduction, backend=backend)
        torch.testing.assert_close(loss, torch.tensor(expected), equal_nan=True)
    single = icm.MixedTarget(torch.tensor([1]), torch.tensor([3]), torch.tensor(0.5))
    results = run(Inputs(torch.randn(1, 3), weight), single, backend=backend)
    assert results.loss == 0 and not results.dfeatures.any() and not results.dweight.any()
