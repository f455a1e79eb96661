"""The loss modules: what they add to the functions they call."""

from __future__ import annotations

import copy
import doctest
import importlib
import logging
import math
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast import losses, reference
from icm_fast.testing import budget

B, C = 13, 10
f64 = torch.float64


@pytest.fixture
def labels(generator: torch.Generator) -> torch.Tensor:
    return torch.randint(C, (B,), generator=generator)


@pytest.fixture
def target(labels: torch.Tensor, generator: torch.Generator) -> icm.MixedTarget:
    index = torch.randperm(B, generator=generator)
    return icm.MixedTarget(labels, labels[index], torch.rand(B, generator=generator), clean=labels)


@pytest.fixture
def logits(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(2 * B, C, generator=generator, dtype=f64).requires_grad_()


def test_icm_loss_module_is_the_function(logits: torch.Tensor, target: icm.MixedTarget) -> None:
    mixed = logits[B:]
    for axis in ("both", "class", "pair"):
        for reduction in ("mean", "sum", "none"):
            for backend in (None, "reference"):
                module = icm.ICMLoss(axis, reduction, logit_scale=2.0, validate=True, backend=backend)
                expected = F_icm.icm_loss(
                    mixed, target, axis=axis, reduction=reduction, logit_scale=2.0, backend=backend
                )
                budget.check_same_bits(module(mixed, target), expected, f"{axis} {reduction}")


def test_mixup_cross_entropy_module_is_the_function(logits: torch.Tensor, target: icm.MixedTarget) -> None:
    weight = torch.rand(C)
    for reduction in ("mean", "sum", "none"):
        for backend in (None, "reference"):
            module = icm.MixupCrossEntropyLoss(weight, 0.1, reduction, backend)
            options: dict[str, Any] = {"weight": weight, "label_smoothing": 0.1, "reduction": reduction}
            expected = F_icm.mixup_cross_entropy(logits[B:], target, backend=backend, **options)
            budget.check_same_bits(module(logits[B:], target), expected, reduction)


@pytest.mark.parametrize("gamma", [1.0, 0.0, 0.3])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_regmixup_by_its_formula(
    reduction: str, gamma: float, logits: torch.Tensor, target: icm.MixedTarget, labels: torch.Tensor
) -> None:
    """CE(clean, y) + gamma * mixed(mixed half): unhalved, and the mixed half alone sees the mixed loss."""
    for mixed, function in (
        (icm.MixupCrossEntropyLoss(reduction=reduction), reference.mixup_cross_entropy),
        (icm.ICMLoss(reduction=reduction), reference.icm_loss),
    ):
        criterion = icm.RegMixupLoss(mixed, gamma=gamma)
        loss = criterion(logits, target)
        clean = F.cross_entropy(logits[:B], labels, reduction=reduction)
        expected = clean + gamma * function(logits[B:], target, reduction=reduction)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(criterion((logits[:B], logits[B:]), target), expected, rtol=1e-12, atol=1e-12)
        gradients = [torch.autograd.grad(value.sum(), logits)[0] for value in (loss, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-13)
        if gamma:
            assert (gradients[0].abs().amax(1) > 0).all()


def test_regmixup_defaults_to_the_icm_loss_of_both_axes(logits: torch.Tensor, target: icm.MixedTarget) -> None:
    explicit = icm.RegMixupLoss(icm.ICMLoss(axis="both"), gamma=1.0)
    budget.check_same_bits(icm.RegMixupLoss()(logits, target), explicit(logits, target), "default")


def test_one_forward_needs_one_backward_node(logits: torch.Tensor, target: icm.MixedTarget) -> None:
    """Both halves come from one split, whose gradient is one concatenation."""
    nodes, stack = [], [icm.RegMixupLoss()(logits, target).grad_fn]
    while stack:
        node = stack.pop()
        nodes.append(type(node).__name__)
        stack += [after for after, _ in node.next_functions if after is not None]
    assert "SplitWithSizesBackward0" in nodes and not any("Slice" in name or "Cat" in name for name in nodes)


def test_regmixup_of_features_and_a_head() -> None:
    """The clean half and evaluation are of the head's logits, also where there are more features than classes."""
    head, features = nn.Linear(32, 10), torch.randn(12, 32)
    labels = torch.arange(6) + 4
    target = icm.MixedTarget(labels, labels.flip(0), torch.tensor(0.3), clean=labels)
    criterion = icm.RegMixupLoss(icm.LinearICMLoss(head), gamma=0.5)
    clean, mixed = head(features).chunk(2)
    torch.testing.assert_close(
        criterion(features, target), F.cross_entropy(clean, labels) + 0.5 * icm.functional.icm_loss(mixed, target)
    )
    torch.testing.assert_close(criterion(features[:6], labels), F.cross_entropy(clean, labels))
    with pytest.raises(TypeError, match="got a dense target"):
        criterion(features[:6], torch.rand(6, 10))


def test_integer_labels_mean_plain_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, target: icm.MixedTarget
) -> None:
    expected = F.cross_entropy(logits[:B], labels)
    for module in (
        icm.ICMLoss(),
        icm.ICMLoss("pair"),
        icm.MixupCrossEntropyLoss(),
        icm.RegMixupLoss(),
        icm.RegMixupLoss(icm.MixupCrossEntropyLoss(), gamma=7.0),
    ):
        for given in (labels, labels.int()):
            torch.testing.assert_close(module.eval()(logits[:B], given), expected, rtol=1e-13, atol=0)
    per_sample = icm.RegMixupLoss(icm.ICMLoss(reduction="none"))(logits[:B], labels)
    torch.testing.assert_close(per_sample, F.cross_entropy(logits[:B], labels, reduction="none"))


def test_empty_batches(labels: torch.Tensor) -> None:
    none = labels[:0]
    target = icm.MixedTarget(none, none, torch.tensor(0.5), clean=none)
    assert icm.RegMixupLoss(icm.ICMLoss(reduction="sum"))(torch.zeros(0, C), target).item() == 0
    assert icm.RegMixupLoss()(torch.zeros(0, C), target).isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_types_give_float32_losses(dtype: torch.dtype, logits: torch.Tensor, target: icm.MixedTarget) -> None:
    leaf = logits.detach().to(dtype).requires_grad_()
    loss = icm.RegMixupLoss()(leaf, target)
    loss.backward()
    assert loss.dtype == torch.float32 and leaf.grad is not None and leaf.grad.dtype == dtype


def test_a_trained_scale_is_a_parameter_and_a_tensor_a_buffer(logits: torch.Tensor, target: icm.MixedTarget) -> None:
    trained = icm.ICMLoss(logit_scale=nn.Parameter(torch.tensor(2.0)))
    assert [name for name, _ in trained.named_parameters()] == ["logit_scale"]
    trained(logits[B:], target).backward()
    assert trained.logit_scale.grad.dtype == torch.float32 and trained.logit_scale.grad != 0
    fixed = icm.ICMLoss(logit_scale=torch.tensor(2.0))
    assert not list(fixed.parameters()) and fixed.to(f64).logit_scale.dtype == f64
    torch.testing.assert_close(fixed(logits[B:], target), trained(logits[B:], target))
    assert not icm.ICMLoss(logit_scale=2.0).state_dict()


def test_state_dict_copies_and_moves() -> None:
    weight = torch.rand(C)
    module = icm.RegMixupLoss(icm.MixupCrossEntropyLoss(weight))
    assert list(module.state_dict()) == ["mixed.weight"] and not list(module.parameters())
    other = icm.RegMixupLoss(icm.MixupCrossEntropyLoss(torch.ones(C)))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.mixed.weight, weight)
    assert module.to("meta").mixed.weight.device.type == "meta"
    assert not icm.MixupCrossEntropyLoss().state_dict() and not icm.ICMLoss().state_dict()
    scaled = icm.ICMLoss(logit_scale=nn.Parameter(torch.tensor(2.0)))
    for twin in (copy.deepcopy(scaled), pickle.loads(pickle.dumps(scaled))):
        assert isinstance(twin.logit_scale, nn.Parameter) and twin.logit_scale is not scaled.logit_scale


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (icm.ICMLoss(), "ICMLoss(axis='both', reduction='mean')"),
        (
            icm.ICMLoss("pair", "sum", logit_scale=2.5, validate=True, backend="cpu"),
            "ICMLoss(axis='pair', reduction='sum', logit_scale=2.5, validate=True, backend='cpu')",
        ),
        (
            icm.ICMLoss(logit_scale=nn.Parameter(torch.tensor(0.3))),
            "ICMLoss(axis='both', reduction='mean', logit_scale=0.3)",
        ),
        (icm.MixupCrossEntropyLoss(), "MixupCrossEntropyLoss(reduction='mean')"),
        (
            icm.MixupCrossEntropyLoss(torch.ones(3), 0.1, "sum", "reference"),
            "MixupCrossEntropyLoss(reduction='sum', weight=(3,), label_smoothing=0.1, backend='reference')",
        ),
        (
            icm.RegMixupLoss(gamma=0.5),
            "RegMixupLoss(\n  gamma=0.5\n  (mixed): ICMLoss(axis='both', reduction='mean')\n)",
        ),
    ],
)
def test_repr(module: nn.Module, text: str) -> None:
    assert repr(module) == text


def test_a_batch_of_one_is_mentioned_once(caplog: pytest.LogCaptureFixture) -> None:
    losses._common.warn_single.cache_clear()
    one = torch.tensor([1])
    target = icm.MixedTarget(one, one, torch.tensor(0.5))
    with caplog.at_level(logging.WARNING, logger="icm_fast"):
        icm.ICMLoss().eval()(torch.randn(1, C), target)
        icm.ICMLoss()(torch.randn(1, C), one)
        assert not caplog.records
        for _ in range(2):
            assert icm.ICMLoss()(torch.randn(1, C), target) == 0
    assert len(caplog.records) == 1 and "batch of one" in caplog.text


def test_modules_compile(logits: torch.Tensor, target: icm.MixedTarget, labels: torch.Tensor) -> None:
    for module in (icm.RegMixupLoss(), icm.RegMixupLoss(icm.MixupCrossEntropyLoss(label_smoothing=0.1))):

        def step(logits: torch.Tensor, module: nn.Module = module) -> torch.Tensor:
            return module(logits, icm.MixedTarget(target.y_a, target.y_b, target.lam, clean=labels))

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(logits)
        torch.testing.assert_close(compiled, step(logits), rtol=1e-14, atol=0)


def regmixup(logits: Any, target: Any) -> None:
    icm.RegMixupLoss()(logits, target)


def pure(rows: int, **options: Any) -> icm.MixedTarget:
    labels = torch.arange(rows)
    return icm.MixedTarget(labels, labels, torch.tensor(0.5), **options)


CLEAN = {"clean": torch.arange(3)}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: icm.ICMLoss(axis="row"), ValueError, "ICMLoss: expected axis to be one of 'both', 'class', 'pair'"),
        (lambda: icm.ICMLoss(reduction="avg"), ValueError, "ICMLoss: expected reduction to be one of"),
        (lambda: icm.ICMLoss(logit_scale="2"), TypeError, "ICMLoss: expected logit_scale to be a number or a 0-d"),
        (lambda: icm.ICMLoss(logit_scale=True), TypeError, "ICMLoss: expected logit_scale to be a number or a 0-d"),
        (lambda: icm.ICMLoss(logit_scale=torch.ones(2)), ValueError, r"0-d tensor, got a float32 .* \(2,\)"),
        (lambda: icm.ICMLoss(logit_scale=nn.Parameter(torch.ones(())).exp()), ValueError, "pass an nn.Parameter"),
        (lambda: icm.MixupCrossEntropyLoss(weight=[1.0]), TypeError, "MixupCrossEntropyLoss: expected weight to be a"),
        (lambda: icm.MixupCrossEntropyLoss(weight=torch.ones(2, 2)), ValueError, r"weight of shape \(C,\)"),
        (lambda: icm.MixupCrossEntropyLoss(label_smoothing=2.0), ValueError, r"label_smoothing in \[0, 1\], got 2.0"),
        (lambda: icm.MixupCrossEntropyLoss(label_smoothing="a"), TypeError, "label_smoothing to be a number, got 'a'"),
        (lambda: icm.MixupCrossEntropyLoss(reduction="avg"), ValueError, "expected reduction to be one of"),
        (lambda: icm.RegMixupLoss(mixed=3), TypeError, "RegMixupLoss: expected mixed to be a loss module, got 3"),
        (lambda: icm.RegMixupLoss(gamma=-1), ValueError, r"gamma in \[0, inf\), got -1"),
        (lambda: icm.RegMixupLoss(gamma=math.inf), ValueError, r"gamma in \[0, inf\), got inf"),
        (lambda: icm.RegMixupLoss(gamma=math.nan), ValueError, "got nan"),
        (lambda: regmixup(torch.zeros(6, C), pure(3)), ValueError, "keep_clean=True"),
        (lambda: regmixup(torch.zeros(3, C), pure(3, **CLEAN)), ValueError, "6 rows, clean and mixed, .* of 3"),
        (lambda: regmixup([1.0], pure(3, **CLEAN)), TypeError, "a tensor or a pair .* got a list of 1"),
        (lambda: regmixup((torch.zeros(3, C), torch.zeros(2, C)), pure(3, **CLEAN)), ValueError, "3 rows of mixed"),
        (lambda: regmixup((torch.zeros(3, C), 5), pure(3, **CLEAN)), TypeError, "mixed logits to be a tensor, got 5"),
        (lambda: regmixup(torch.zeros(6, C), torch.zeros(6, C)), TypeError, "got a dense target"),
        (lambda: regmixup(torch.zeros(6, C), (1, 2, 3)), TypeError, "MixedTarget.from_tuple"),
        (lambda: regmixup(torch.zeros(6, C), torch.arange(3)), ValueError, r"integer labels of shape \(6,\)"),
        (lambda: regmixup((torch.zeros(3, C),) * 2, torch.arange(3)), TypeError, "expected logits to be a tensor"),
        (lambda: regmixup(torch.zeros(6, C), pure(3, clean=torch.tensor([0, C, 1]))), ValueError, r"\[1\] = 10"),
    ],
)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "module",
    [
        "losses.icm_loss",
        "losses.regmixup",
        "functional.mixup_cross_entropy",
        "functional.am_mixup_loss",
        "functional.mixed_logits",
    ],
)
def test_examples_of_the_docstrings(module: str) -> None:
    result = doctest.testmod(
        importlib.import_module(f"icm_fast.{module}"), extraglobs={"torch": torch, "MixedTarget": icm.MixedTarget}
    )
    assert result.attempted > 0 and result.failed == 0


def test_mixed_logits_is_the_matrix_that_the_loss_never_builds(logits: torch.Tensor, target: icm.MixedTarget) -> None:
    mixed = logits[B:]
    Z = F_icm.mixed_logits(mixed, target)
    assert Z.shape == (B, B)
    torch.testing.assert_close(Z, mixed @ target.dense(C, f64).T, rtol=1e-6, atol=1e-6)
    own = torch.arange(B)
    expected = F.cross_entropy(Z, own) + F.cross_entropy(Z.T, own)
    torch.testing.assert_close(F_icm.icm_loss(mixed, target), expected, rtol=1e-12, atol=1e-12)
    hard = torch.arange(B) % C
    assert torch.equal(F_icm.mixed_logits(mixed, hard), mixed[:, hard])
    assert F_icm.mixed_logits(mixed.bfloat16(), target).dtype == torch.float32
    for wrong, message in (
        (pure(B + 1), "13 rows but target has 14"),
        (icm.MixedTarget(hard, hard + 1, torch.tensor(0.5)), r"y_b\[9\] = 10"),
        (torch.zeros(B, C + 1), r"dense target of shape \(13, 10\)"),
    ):
        with pytest.raises(ValueError, match=f"mixed_logits: .*{message}"):
            F_icm.mixed_logits(mixed, wrong)
