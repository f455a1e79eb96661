"""The fused mixed cross-entropy against the float64 reference, on every backend that has it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import backends_of
from torch import Tensor

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast.reference import TwoHot
from icm_fast.testing import budget
from icm_fast.testing.checks import check_mixup_cross_entropy
from icm_fast.testing.regimes import REGIMES, SHAPES, Case

BACKENDS = backends_of("mixup_cross_entropy")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NAN, INF = math.nan, math.inf


def target_of(case: Case) -> icm.MixedTarget:
    return icm.MixedTarget(case.y_a, case.y_b, case.lam)


def loss_and_gradient(case: Case, backend: str, grad: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = case.logits.detach().requires_grad_()
    loss = F_icm.mixup_cross_entropy(leaf, target_of(case), backend=backend, **options)
    (dlogits,) = torch.autograd.grad(loss, leaf, torch.ones_like(loss) if grad is None else grad)
    return loss.detach(), dlogits


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("regime", REGIMES)
def test_loss_and_gradient_are_within_the_budget(
    regime: str, dtype: torch.dtype, backend: str, generator: torch.Generator
) -> None:
    for (batch_size, num_classes), smoothing in itertools.product(SHAPES, (0.0, 0.1)):
        case = REGIMES[regime](batch_size, num_classes, dtype, generator)
        before = case.logits.clone()
        loss, dlogits = loss_and_gradient(case, backend, label_smoothing=smoothing)
        what = f"B{batch_size}-C{num_classes}-eps{smoothing}"
        check_mixup_cross_entropy(loss, dlogits, case.logits, case, label_smoothing=smoothing, what=what)
        budget.check_same_bits(case.logits, before, "logits after the call")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_weights_smoothing_reductions_and_incoming_gradients(
    smoothing: float, reduction: str, backend: str, generator: torch.Generator
) -> None:
    shape = (33,) if reduction == "none" else ()
    grads = (torch.randn(shape, generator=generator) * 1000, torch.tensor(0.25).expand(shape), torch.zeros(shape))
    for regime, dtype, grad in itertools.product(("normal", "confident", "lam_edges"), DTYPES, grads):
        case = REGIMES[regime](33, 20, dtype, generator)
        for weight in (None, torch.rand(20, generator=generator) + 0.1, torch.arange(20.0)):
            options: dict[str, Any] = {"weight": weight, "label_smoothing": smoothing, "reduction": reduction}
            incoming = grad.double() if dtype == torch.float64 else grad
            loss, dlogits = loss_and_gradient(case, backend, incoming, **options)
            assert loss.shape == shape
            check_mixup_cross_entropy(loss, dlogits, case.logits, case, grad_output=grad, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_torch_in_its_own_special_cases(backend: str, generator: torch.Generator) -> None:
    case = REGIMES["batch_lam"](31, 20, torch.float64, generator)
    weight = torch.rand(20, generator=generator, dtype=torch.float64)
    options: dict[str, Any] = {"weight": weight, "label_smoothing": 0.2}
    dense = target_of(case).dense(20, torch.float64)
    for reduction in ("mean", "sum", "none"):
        ours = F_icm.mixup_cross_entropy(case.logits, target_of(case), reduction=reduction, backend=backend, **options)
        theirs = F.cross_entropy(case.logits, dense, reduction=reduction, **options)
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)  # Y holds 1 - lam of a float32 lam
    pure = case._replace(lam=torch.tensor(1.0))
    ours, dlogits = loss_and_gradient(pure, backend)
    leaf = case.logits.detach().requires_grad_()
    theirs = F.cross_entropy(leaf, case.y_a)
    theirs.backward()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-13, atol=0)
    torch.testing.assert_close(dlogits, leaf.grad, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_dense_and_hard_targets_mean_what_torch_means(
    dtype: torch.dtype, backend: str, generator: torch.Generator
) -> None:
    logits = torch.randn(7, 10, generator=generator).to(dtype)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    dense = torch.rand(7, 10, generator=generator)
    labels = torch.randint(10, (7,), generator=generator, dtype=torch.int32)
    weights = (None, torch.rand(10, generator=generator))
    for weight, smoothing, reduction in itertools.product(weights, (0.0, 0.1), ("mean", "sum", "none")):
        options: dict[str, Any] = {"label_smoothing": smoothing, "reduction": reduction}
        for target, theirs in ((dense, dense.to(acc)), (labels, labels.long())):
            ours = F_icm.mixup_cross_entropy(logits, target, weight=weight, backend=backend, **options)
            expected = F.cross_entropy(logits.to(acc), theirs, None if weight is None else weight.to(acc), **options)
            torch.testing.assert_close(ours, expected, rtol=20 * torch.finfo(acc).eps, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hard_labels_are_within_the_budget(backend: str, generator: torch.Generator) -> None:
    for name in ("normal", "confident", "masked", "offset"):
        case = REGIMES[name](33, 20, torch.float32, generator)
        leaf = case.logits.detach().requires_grad_()
        loss = F_icm.mixup_cross_entropy(leaf, case.y_a, backend=backend)
        loss.backward()
        pure = TwoHot(case.y_a, case.y_a, torch.tensor(1.0))
        check_mixup_cross_entropy(loss.detach(), leaf.grad, case.logits, pure)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(37, 50), (37, 7)], ids=str)
def test_strides(shape: tuple[int, int], backend: str, generator: torch.Generator) -> None:
    for dtype in DTYPES:
        case = REGIMES["normal"](*shape, dtype, generator)
        B, C = shape
        expected = loss_and_gradient(case, backend, label_smoothing=0.1)
        wide, padded, twice = (torch.zeros(s, dtype=dtype) for s in ((B, 2 * C + 1), (B, C + 3), (2 * B, C)))
        wide[:, 1::2], padded[:, 1 : C + 1], twice[::2] = case.logits, case.logits, case.logits
        views = {
            "transposed": case.logits.T.contiguous().T,
            "every other class": wide[:, 1::2],
            "misaligned": padded[:, 1 : C + 1],
            "every other row": twice[::2],
        }
        for name, view in views.items():
            assert torch.equal(view, case.logits)
            loss, dlogits = loss_and_gradient(case._replace(logits=view), backend, label_smoothing=0.1)
            budget.check_same_bits(loss, expected[0], name)
            budget.check_same_bits(dlogits, expected[1], name)
        one_row = case._replace(logits=case.logits[:1].expand(B, C))
        check_mixup_cross_entropy(*loss_and_gradient(one_row, backend), one_row.logits, one_row)
        strided_lam = torch.stack([case.lam] * 3, 1)[:, 1]
        target = icm.MixedTarget(case.y_a.int(), torch.stack([case.y_b] * 2, 1)[:, 1], strided_lam)
        ours = F_icm.mixup_cross_entropy(case.logits, target, label_smoothing=0.1, backend=backend)
        budget.check_same_bits(ours, expected[0], "strided target")
    weight = torch.rand(2 * shape[1], generator=generator)
    strided = loss_and_gradient(REGIMES["normal"](*shape, torch.float32, generator), backend, weight=weight[::2])
    assert strided[0].isfinite()


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_equal_masked_and_confident_rows(backend: str) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    empty = Case(torch.zeros(0, 10), none, none, torch.tensor(0.5))
    for reduction, expected in (("mean", NAN), ("sum", 0.0)):
        loss, dlogits = loss_and_gradient(empty, backend, reduction=reduction)
        assert dlogits.shape == (0, 10)
        budget.check_same_bits(loss, torch.tensor(expected), reduction)
    assert loss_and_gradient(empty, backend, reduction="none")[0].shape == (0,)

    labels = torch.arange(8)
    equal = Case(torch.full((8, 10), 3.1), labels, labels.flip(0), torch.tensor(0.3))
    assert loss_and_gradient(equal, backend)[0].item() == pytest.approx(math.log(10), rel=1e-6)

    # Row 0: the partner is masked but weighs nothing. Row 1: it weighs. Row 2: nothing is left.
    logits = torch.tensor([[0.0, 0.0, -INF], [0.0, 0.0, -INF], [-INF, -INF, -INF]])
    masked = Case(logits, torch.tensor([0, 1, 0]), torch.tensor([2, 2, 1]), torch.tensor([1.0, 0.5, 0.5]))
    loss, dlogits = loss_and_gradient(masked, backend, reduction="none")
    assert loss[0].item() == pytest.approx(math.log(2)) and loss[1] == INF and loss[2].isnan()
    torch.testing.assert_close(dlogits[:2], torch.tensor([[-0.5, 0.5, 0.0], [0.5, 0.0, -0.5]]))
    assert dlogits[2].isnan().all()

    # The loss of a confident prediction is tiny, not 0; bfloat16 must not see p - q after rounding p.
    confident = Case(torch.tensor([[12.0, 0.0]]), torch.tensor([0]), torch.tensor([0]), torch.tensor(1.0))
    loss, _ = loss_and_gradient(confident, backend)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-12)), rel=0.01)
    _, dlogits = loss_and_gradient(confident._replace(logits=confident.logits.bfloat16()), backend)
    assert dlogits[0, 0].item() == pytest.approx(-math.exp(-12), rel=0.02)


def good() -> dict[str, Any]:
    labels = torch.tensor([0, 1, 2])
    return {"logits": torch.zeros(3, 5), "target": icm.MixedTarget(labels, labels.flip(0), torch.tensor(0.5))}


LABELS = torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": [1.0]}, TypeError, "expected logits to be a tensor, got a list of 1"),
        ({"logits": torch.zeros(3, 5, dtype=torch.int64)}, TypeError, "expected logits in float32, float64"),
        ({"logits": torch.zeros(5)}, ValueError, r"expected logits of shape \(B, C\)"),
        ({"logits": torch.zeros(4, 5)}, ValueError, "logits has 4 rows but target has 3"),
        ({"logits": torch.zeros(6, 5)}, ValueError, "RegMixupLoss"),
        ({"target": (LABELS, LABELS, 0.5)}, TypeError, "MixedTarget.from_tuple"),
        ({"target": torch.zeros(3, 4)}, ValueError, r"expected a dense target of shape \(3, 5\)"),
        ({"target": LABELS[:2]}, ValueError, r"expected integer labels of shape \(3,\)"),
        ({"target": torch.tensor([0, 1, 5])}, ValueError, r"\[0, 5\) .* got target\[2\] = 5"),
        ({"target": torch.tensor([0, -100, 1]), "weight": torch.ones(5)}, ValueError, r"got target\[1\] = -100"),
        ({"target": icm.MixedTarget(LABELS, LABELS + 3, torch.tensor(0.5))}, ValueError, r"y_b\[2\] = 5"),
        ({"target": icm.MixedTarget(LABELS - 1, LABELS, torch.tensor(0.5))}, ValueError, r"y_a\[0\] = -1"),
        ({"target": icm.MixedTarget(LABELS, LABELS, torch.tensor(1.5))}, ValueError, r"lam in \[0, 1\], got lam = 1.5"),
        ({"target": icm.MixedTarget(LABELS, LABELS, torch.tensor([0, NAN, 1]))}, ValueError, r"lam\[1\] = nan"),
        ({"weight": [1.0]}, TypeError, "expected weight to be a tensor"),
        ({"weight": torch.ones(5, dtype=torch.int64)}, TypeError, "expected weight in float32"),
        ({"weight": torch.ones(4)}, ValueError, r"expected weight of shape \(5,\), one per class"),
        ({"weight": torch.ones(5, requires_grad=True)}, TypeError, "weight.detach()"),
        ({"weight": torch.ones(5, device="meta")}, ValueError, "logits is on cpu but weight is on meta"),
        ({"label_smoothing": "a"}, TypeError, "expected label_smoothing to be a number, got 'a'"),
        ({"label_smoothing": True}, TypeError, "expected label_smoothing to be a number, got True"),
        ({"label_smoothing": 1.1}, ValueError, r"expected label_smoothing in \[0, 1\], got 1.1"),
        ({"label_smoothing": NAN}, ValueError, r"expected label_smoothing in \[0, 1\], got nan"),
        ({"reduction": "avg"}, ValueError, "expected reduction to be one of 'none', 'mean', 'sum', got 'avg'"),
        ({"backend": "tpu"}, ValueError, "unknown backend='tpu'"),
        # Where Triton works it works on another device.
        (
            {"backend": "triton"},
            (RuntimeError, ValueError),
            "backend='triton' (was requested but is not|works on cuda)",
        ),
        ({"backend": "tpu", "target": LABELS}, ValueError, "unknown backend='tpu'"),
    ],
)
def test_errors(change: dict[str, Any], error: type[Exception] | tuple[type[Exception], ...], message: str) -> None:
    arguments = {**good(), **change}
    with pytest.raises(error, match=message) as info:
        F_icm.mixup_cross_entropy(arguments.pop("logits"), arguments.pop("target"), **arguments)
    assert "mixup_cross_entropy: " in str(info.value)


def test_a_nan_logit_is_the_callers(generator: torch.Generator) -> None:
    logits = torch.randn(3, 5, generator=generator)
    logits[1, 4] = NAN
    loss = F_icm.mixup_cross_entropy(logits, good()["target"], reduction="none")
    assert torch.equal(loss.isnan(), torch.tensor([False, True, False]))


@pytest.mark.parametrize("fault", ["lam on the partner", "labels swapped", "no smoothing", "scaled", "off by one"])
def test_planted_faults_are_rejected(fault: str, generator: torch.Generator) -> None:
    case = REGIMES["normal"](33, 20, torch.float32, generator)
    wrong, options = case, {"label_smoothing": 0.1}
    if fault == "lam on the partner":
        wrong = case._replace(lam=1 - case.lam)
    if fault == "labels swapped":
        wrong = case._replace(y_a=case.y_b, y_b=case.y_a)
    if fault == "off by one":
        wrong = case._replace(y_b=case.y_b.roll(1))
    if fault == "no smoothing":
        options = {"label_smoothing": 0.0}
    loss, dlogits = loss_and_gradient(wrong, "reference", **options)
    if fault == "scaled":
        loss, dlogits = loss * (1 + 1e-3), dlogits * (1 + 1e-3)
    target = TwoHot(*case[1:])
    for part in ((loss, None), (None, dlogits)):
        with pytest.raises(AssertionError, match="beyond the budget"):
            check_mixup_cross_entropy(*part, case.logits, target, label_smoothing=0.1)
