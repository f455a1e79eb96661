"""linear_icm_loss as it is used: modules, autocast, torch.compile, memory, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import backends_of
from linear_cases import random_case, run
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast import reference
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
    # Large enough for what an allocator holds back, some 10 MB more or less from run to run, not to count.
    for shape, kind in (((8192, 16, 10000), "mixed"), ((8192, 16, 80000), "mixed"), ((4096, 16, 20000), "hard")):
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


def test_a_bad_label_of_one_block_is_that_of_all(generator: torch.Generator) -> None:
    """Where nothing is read, every loss and the whole gradient are NaN: hard labels in blocks, and in a graph."""
    given, target = random_case((300, 6, 9), generator)
    labels = target.y_a.index_fill(0, torch.tensor([200]), 99)
    leaves = [each.clone().requires_grad_() for each in given[:3]]
    operator = torch.ops.icm_fast.linear_cross_entropy_fwd.cpu
    loss, *_ = operator(*leaves, None, labels, 0, True, False, 0)
    assert loss.isnan().all()
    assert all(each.isnan().all() for each in torch.autograd.grad(loss.sum(), leaves))

    def step(features: Tensor, weight: Tensor, bias: Tensor, y_a: Tensor) -> Tensor:
        return F_icm.linear_icm_loss(features, weight, icm.MixedTarget(y_a, y_a.flip(0), torch.tensor(0.4)), bias)

    given, target = random_case((4, 6, 9), generator)  # on mixed classifiers
    leaves = [each.clone().requires_grad_() for each in given[:3]]
    loss = torch.compile(step, fullgraph=True)(*leaves, torch.tensor([1, 99, 2, 3]))
    assert loss.isnan() and all(each.isnan().all() for each in torch.autograd.grad(loss, leaves))


def test_a_class_of_weight_zero_takes_no_part(way: str) -> None:
    """Not even where its gradient would be NaN times 0: class 1 is masked, class 3 only ever weighs 0."""
    target = icm.MixedTarget(torch.tensor([0, 1, 2]), torch.tensor([3, 3, 3]), torch.tensor(1.0))
    given = Inputs(torch.eye(3), torch.eye(4, 3), torch.tensor([0.0, -torch.inf, 0.0, 0.0]))
    results = run(given, target, axis="pair")
    assert (results.dweight[3] == 0).all() and results.dbias[3] == 0


def test_types_of_the_scale(generator: torch.Generator) -> None:
    given, target = random_case((20, 6, 9), generator, torch.float64)
    scale = torch.tensor(0.1)  # float32
    for of in (target, target.y_a):
        ours = F_icm.linear_icm_loss(*given[:2], of, given.bias, logit_scale=scale)
        exact = reference.linear_icm_loss(*given[:2], of, given.bias, logit_scale=scale.double())
        torch.testing.assert_close(ours, exact, rtol=1e-13, atol=0)


def test_sparse_gradient_of_a_graph_of_gradients(generator: torch.Generator) -> None:
    given, target = random_case((4, 3, 9), generator)
    weight = given.weight.clone().requires_grad_()
    loss = F_icm.linear_icm_loss(given.features, weight, target, sparse_grad=True)
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
    assert gradient.is_sparse
    with pytest.raises(RuntimeError, match="second derivative"):
        gradient.to_dense().sum().backward()


@pytest.mark.parametrize("classes", [3, 30])
def test_without_values(classes: int, generator: torch.Generator) -> None:
    """Fake tensors and the meta device hold none to look at."""
    given, target = random_case((6, 4, classes), generator)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        features, weight, bias = (mode.from_tensor(each).requires_grad_() for each in given[:3])
        labels = [mode.from_tensor(each) for each in (target.y_a, target.y_b, target.lam)]
        loss = F_icm.linear_icm_loss(features, weight, icm.MixedTarget(*labels), bias)
        assert torch.autograd.grad(loss, weight)[0].shape == weight.shape
    on_meta = F_icm.linear_icm_loss(*(each.to("meta") for each in given[:2]), target.to("meta"))
    assert on_meta.device.type == "meta" and on_meta.shape == ()
    assert F_icm.contrastive_loss(*(each.to("meta") for each in (given.features,) * 2)).device.type == "meta"


def test_a_million_classes(generator: torch.Generator) -> None:
    """With a sparse gradient nothing of their number times the features is written."""
    given, target = random_case((64, 32, 1_000_000), generator, bias=False)
    leaf = given.weight.requires_grad_()

    def step() -> Tensor:
        loss = F_icm.linear_icm_loss(given.features, leaf, target, sparse_grad=True)
        return torch.autograd.grad(loss, leaf)[0]

    assert step()._nnz() <= 2 * 64
    assert peak_extra_bytes(step) < 20 * 2**20
