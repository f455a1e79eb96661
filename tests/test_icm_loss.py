"""The fused loss against the float64 reference: regimes x shapes x types x axes, on every backend that has it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from helpers import backends_of
from torch import Tensor

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast import reference
from icm_fast.testing import budget
from icm_fast.testing.checks import check_icm_loss
from icm_fast.testing.memory import peak_extra_bytes
from icm_fast.testing.regimes import REGIMES, SHAPES, Case

BACKENDS = backends_of("icm_loss")
AXES = ("both", "class", "pair")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def target_of(case: Case) -> icm.MixedTarget:
    return icm.MixedTarget(case.y_a, case.y_b, case.lam)


def loss_and_gradient(case: Case, backend: str, grad: Tensor | None = None, **options: object) -> tuple[Tensor, Tensor]:
    leaf = case.logits.detach().requires_grad_()
    loss = F_icm.icm_loss(leaf, target_of(case), backend=backend, **options)
    (dlogits,) = torch.autograd.grad(loss, leaf, torch.ones_like(loss) if grad is None else grad)
    return loss.detach(), dlogits


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("grid", ["short", pytest.param("whole", marks=pytest.mark.long)])
def test_loss_and_gradient_are_within_the_budget(
    grid: str, regime: str, dtype: torch.dtype, backend: str, generator: torch.Generator
) -> None:
    # A single axis takes the same passes with one factor zero: three shapes show it, the whole grid takes minutes.
    few = SHAPES if grid == "whole" else ((7, 10), (33, 100), (127, 2))
    cases = [("both", shape) for shape in SHAPES] + [(axis, shape) for axis in ("class", "pair") for shape in few]
    for axis, (batch_size, num_classes) in cases:
        case = REGIMES[regime](batch_size, num_classes, dtype, generator)
        before = case.logits.clone()
        loss, dlogits = loss_and_gradient(case, backend, axis=axis)
        check_icm_loss(loss, dlogits, case.logits, case, axis=axis, what=f"B{batch_size}-C{num_classes}-{axis}")
        budget.check_same_bits(case.logits, before, "logits after the call")


# B: more than one group of rows (256), with a last one that fills no tile; more rows than threads share evenly.
# C: fewer used classes than an eighth (read one by one), a partly used row (read whole), below a vector.
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(700, 40), (1111, 9), (20, 5000), (40, 3001), (300, 1500), (513, 513)], ids=str)
@pytest.mark.parametrize("regime", ["normal", "large", "offset", "range_200", "masked", "confident"])
def test_groups_of_rows_and_ways_to_read_them(
    regime: str, shape: tuple[int, int], backend: str, generator: torch.Generator
) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        case = REGIMES[regime](*shape, dtype, generator)
        check_icm_loss(*loss_and_gradient(case, backend), case.logits, case)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("axis", AXES)
def test_reductions_and_incoming_gradients(axis: str, reduction: str, backend: str, generator: torch.Generator) -> None:
    case = REGIMES["normal"](33, 20, torch.float32, generator)
    shape = (33,) if reduction == "none" else ()
    scaled = torch.randn(shape, generator=generator) * 1000
    expanded = torch.tensor(0.25).expand(shape)
    for grad in (scaled, expanded, torch.zeros(shape)):
        loss, dlogits = loss_and_gradient(case, backend, grad, axis=axis, reduction=reduction)
        assert loss.shape == shape and loss.dtype == torch.float32
        check_icm_loss(loss, dlogits, case.logits, case, axis=axis, reduction=reduction, grad_output=grad)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [0.1, 1.0, 7.5, 0.0, -2.0, 1e-30])
@pytest.mark.parametrize("regime", ["normal", "range_200", "masked", "offset", "unused_nan"])
def test_logit_scale_and_its_gradient(regime: str, scale: float, backend: str, generator: torch.Generator) -> None:
    if regime == "masked" and scale <= 0:
        scale = -scale + 0.5  # -inf times such a scale is +inf or NaN: no case of its own
    for dtype in (torch.float32, torch.float64):
        case = REGIMES[regime](33, 20, dtype, generator)
        leaf = case.logits.detach().requires_grad_()
        s = torch.tensor(scale, dtype=dtype, requires_grad=True)
        loss = F_icm.icm_loss(leaf, target_of(case), logit_scale=s, backend=backend)
        dlogits, dscale = torch.autograd.grad(loss, [leaf, s])
        check_icm_loss(
            loss.detach(), dlogits, case.logits, case, logit_scale=scale, dscale=dscale if scale > 1e-3 else None
        )
        as_number = F_icm.icm_loss(leaf, target_of(case), logit_scale=scale, backend=backend)
        budget.check_same_bits(as_number, loss, "a scale given as a number")


def test_gradient_of_a_scale_of_zero_or_less(generator: torch.Generator) -> None:
    case = REGIMES["normal"](17, 10, torch.float64, generator)
    for value in (0.0, -1.5):
        gradients = []
        for backend in ("cpu", "reference"):
            s = torch.tensor(value, dtype=torch.float64, requires_grad=True)
            loss = F_icm.icm_loss(case.logits, target_of(case), logit_scale=s, backend=backend)
            gradients += torch.autograd.grad(loss, s)
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_of_logits(backend: str, generator: torch.Generator) -> None:
    case = REGIMES["normal"](37, 50, torch.float32, generator)
    expected = loss_and_gradient(case, backend)
    wide = torch.zeros(37, 101)
    wide[:, 1::2] = case.logits
    padded = torch.zeros(37, 53)
    padded[:, 1:51] = case.logits
    twice = torch.zeros(74, 50)
    twice[::2] = case.logits
    views = {
        "transposed": case.logits.T.contiguous().T,
        "every other class": wide[:, 1::2],
        "misaligned": padded[:, 1:51],
        "every other row": twice[::2],
    }
    for name, view in views.items():
        assert torch.equal(view, case.logits)
        loss, dlogits = loss_and_gradient(case._replace(logits=view), backend)
        budget.check_same_bits(loss, expected[0], name)
        budget.check_same_bits(dlogits, expected[1], name)
    one_row = case._replace(logits=case.logits[:1].expand(37, 50))
    check_icm_loss(*loss_and_gradient(one_row, backend), one_row.logits, one_row)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_and_types_of_targets(backend: str, generator: torch.Generator) -> None:
    case = REGIMES["normal"](16, 12, torch.float32, generator)
    expected = F_icm.icm_loss(case.logits, target_of(case), backend=backend)
    strided = torch.zeros(16, 2, dtype=torch.int64)
    strided[:, 1] = case.y_a
    lams = torch.zeros(16, 3)
    lams[:, 2] = case.lam
    for y_a in (strided[:, 1], case.y_a.to(torch.int32), case.y_a.to(torch.uint8)):
        target = icm.MixedTarget(y_a, case.y_b, lams[:, 2])
        budget.check_same_bits(F_icm.icm_loss(case.logits, target, backend=backend), expected, "strided target")
    one_lam = icm.MixedTarget(case.y_a, case.y_b, torch.tensor(0.3))
    expanded = icm.MixedTarget(case.y_a, case.y_b, torch.tensor(0.3).expand(16))
    budget.check_same_bits(
        F_icm.icm_loss(case.logits, expanded, backend=backend),
        F_icm.icm_loss(case.logits, one_lam, backend=backend),
        "one lam, expanded",
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_single_and_known_values(backend: str) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    empty = Case(torch.zeros(0, 10), none, none, torch.tensor(0.5))
    for reduction, expected in (("mean", math.nan), ("sum", 0.0)):
        loss, dlogits = loss_and_gradient(empty, backend, reduction=reduction)
        assert dlogits.shape == (0, 10)
        torch.testing.assert_close(loss.item(), expected, equal_nan=True, rtol=0, atol=0)
    assert loss_and_gradient(empty, backend, reduction="none")[0].shape == (0,)
    for lam in (torch.tensor(0.7).expand(0), torch.tensor(0.7).expand(8)[:0]):  # no number behind the pointer
        assert loss_and_gradient(empty._replace(lam=lam), backend)[1].shape == (0, 10)

    single = Case(torch.tensor([[3.0, -50.0, 7.0]]), torch.tensor([0]), torch.tensor([1]), torch.tensor(0.3))
    loss, dlogits = loss_and_gradient(single, backend)
    assert loss.item() == 0 and dlogits.abs().max().item() <= 2 * 2.0**-23

    equal = Case(torch.zeros(8, 10), torch.arange(8), torch.arange(8).flip(0), torch.tensor(0.5))
    assert loss_and_gradient(equal, backend)[0].item() == pytest.approx(2 * math.log(8), rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_invariances(backend: str, generator: torch.Generator) -> None:
    case = REGIMES["normal"](33, 20, torch.float64, generator)
    row_shift = torch.randn(33, 1, generator=generator, dtype=torch.float64)
    class_shift = torch.randn(1, 20, generator=generator, dtype=torch.float64)
    for axis, shift, same in (
        ("class", row_shift, True),
        ("pair", class_shift, True),
        ("pair", row_shift, False),
        ("class", class_shift, False),
    ):
        loss, dlogits = loss_and_gradient(case, backend, axis=axis)
        moved, _ = loss_and_gradient(case._replace(logits=case.logits + shift), backend, axis=axis)
        assert torch.isclose(loss, moved, rtol=1e-12, atol=1e-12).item() == same
        along = dlogits.sum(1 if axis == "class" else 0)  # per image, and per class as a bias's gradient
        assert along.abs().max().item() < 1e-15 * 33
    order = torch.randperm(33, generator=generator)
    permuted = Case(case.logits[order], case.y_a[order], case.y_b[order], case.lam[order])
    both, dboth = loss_and_gradient(case, backend)
    torch.testing.assert_close(loss_and_gradient(permuted, backend)[1], dboth[order], rtol=1e-12, atol=1e-15)
    parts = [loss_and_gradient(case, backend, axis=axis)[0] for axis in ("class", "pair")]
    torch.testing.assert_close(both, sum(parts), rtol=1e-14, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_terms(backend: str, generator: torch.Generator) -> None:
    case = REGIMES["normal"](33, 20, torch.float32, generator)
    leaf = case.logits.requires_grad_()
    for axis, reduction in itertools.product(AXES, ("mean", "sum", "none")):
        options = {"axis": axis, "reduction": reduction, "return_terms": True}
        loss, by_class, by_pair = F_icm.icm_loss(leaf, target_of(case), backend=backend, **options)
        expected = reference.icm_loss(leaf.double(), case, **options)
        assert loss.requires_grad and not by_class.requires_grad and not by_pair.requires_grad
        for ours, truth in zip((loss, by_class, by_pair), expected, strict=True):
            torch.testing.assert_close(ours.double(), truth, rtol=2e-6, atol=1e-6)


def test_extra_memory_is_the_gradient_and_little_more(generator: torch.Generator) -> None:
    batch_size, num_classes = 4096, 100
    case = REGIMES["normal"](batch_size, num_classes, torch.float32, generator)
    threads = torch.get_num_threads()
    # 16 floats per column and thread, 32 rows of tile twice, 32 groups' column sums, and a dozen vectors.
    per_thread = 16 * batch_size + 2 * 32 * (num_classes + 1)
    allowed = 4 * (batch_size * num_classes + threads * per_thread + (32 + 24) * batch_size)
    used = peak_extra_bytes(lambda: loss_and_gradient(case, "cpu"))
    assert used < 1.2 * allowed + (2 << 20), f"{used / 2**20:.1f} MiB, allowed {allowed / 2**20:.1f}"
    assert used < 4 * batch_size**2 / 8, "a (B, B) matrix would need 64 MiB"
