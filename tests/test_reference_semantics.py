"""Spec §2, "semantics that the tests must pin", point by point, on the reference."""

from math import log

import pytest
import torch
import torch.nn.functional as F

from icm_fast.reference import TwoHot, icm_loss, mixed_logits
from icm_fast.testing.budget import check_same_bits
from icm_fast.testing.regimes import REGIMES

AXES = ("both", "class", "pair")
INF, NAN = float("inf"), float("nan")
f64 = torch.float64
CLOSE = {"rtol": 1e-11, "atol": 1e-11}


def two_hot(y_a, y_b, lam):
    return TwoHot(torch.tensor(y_a), torch.tensor(y_b), torch.tensor(lam, dtype=f64))


@pytest.fixture
def case(generator):
    return REGIMES["normal"](8, 5, f64, generator)


def gradient(logits, target, **options):
    leaf = logits.detach().clone().requires_grad_()
    return torch.autograd.grad(icm_loss(leaf, target, **options).sum(), leaf)[0]


# §2.1


def test_class_axis_ignores_a_constant_per_row(case):
    shifted = case.logits + 10 * torch.randn(8, 1, dtype=f64)
    torch.testing.assert_close(
        icm_loss(shifted, case, axis="class"), icm_loss(case.logits, case, axis="class"), **CLOSE
    )
    assert gradient(case.logits, case, axis="class").sum(1).abs().max() < 1e-15
    assert (icm_loss(shifted, case, axis="pair") - icm_loss(case.logits, case, axis="pair")).abs() > 0.1


# §2.2


def test_pair_axis_ignores_a_vector_added_to_every_row(case):
    shifted = case.logits + 10 * torch.randn(1, 5, dtype=f64)
    expected = icm_loss(case.logits, case, axis="pair")
    torch.testing.assert_close(icm_loss(shifted, case, axis="pair"), expected, **CLOSE)
    assert gradient(case.logits, case, axis="pair").sum(0).abs().max() < 1e-15  # that of the bias
    assert (icm_loss(shifted, case, axis="class") - icm_loss(case.logits, case, axis="class")).abs() > 0.1


@pytest.mark.parametrize("axis", AXES)
def test_relabelled_classes_and_permuted_batch(axis, case):
    loss, grad = icm_loss(case.logits, case, axis=axis), gradient(case.logits, case, axis=axis)
    p = torch.randperm(5)
    relabelled = TwoHot(p[case.y_a], p[case.y_b], case.lam)
    torch.testing.assert_close(icm_loss(case.logits[:, p.argsort()], relabelled, axis=axis), loss, **CLOSE)
    q = torch.randperm(8)
    permuted = TwoHot(case.y_a[q], case.y_b[q], case.lam[q])
    torch.testing.assert_close(icm_loss(case.logits[q], permuted, axis=axis), loss, **CLOSE)
    torch.testing.assert_close(gradient(case.logits[q], permuted, axis=axis), grad[q], **CLOSE)
    swapped = TwoHot(case.y_b, case.y_a, 1 - case.lam.double())
    torch.testing.assert_close(icm_loss(case.logits, swapped, axis=axis), loss, **CLOSE)
    one_sided = TwoHot(case.y_a, case.y_b, 1 - case.lam.double())
    assert (icm_loss(case.logits, one_sided, axis=axis) - loss).abs() > 1e-3


# §2.3 (B = 0 and B = 1: test_reference.py)


@pytest.mark.parametrize(("axis", "factor"), [("both", 2), ("class", 1), ("pair", 1)])
def test_equal_scores_give_the_logarithm_of_the_batch(axis, factor, case):
    loss = icm_loss(torch.full_like(case.logits, -7.7), case, axis=axis)
    torch.testing.assert_close(loss, torch.tensor(factor * log(8), dtype=f64), **CLOSE)


# §2.4


@pytest.mark.parametrize("dtype", [torch.float32, f64])
def test_pure_columns_keep_exact_ties(dtype, generator):
    logits = torch.randn(6, 3, generator=generator, dtype=dtype)
    lam = torch.tensor([0.3, 1.0, 0.0, 1 / 3, 1.0, 0.0])
    target = TwoHot(torch.tensor([2, 0, 1, 1, 1, 2]), torch.tensor([2, 1, 2, 1, 1, 0]), lam)
    check_same_bits(mixed_logits(logits, target), logits[:, [2, 0, 2, 1, 1, 0]], "pure columns")


def test_a_weight_next_to_zero_still_takes_part():
    S = torch.tensor([[0.0, -INF]])
    Z = mixed_logits(S, TwoHot(torch.tensor([1, 0]), torch.tensor([0, 1]), torch.tensor([1e-38, 1 - 2.0**-24])))
    assert torch.equal(Z, torch.tensor([[-INF, -INF]]))


# §2.5


@pytest.mark.parametrize("axis", ["class", "pair"])
def test_floor_of_duplicates(axis):
    y = torch.tensor([0, 0, 0, 1, 1, 2])
    target = TwoHot(y, y, torch.tensor(1.0))
    floor = (3 * log(3) + 2 * log(2)) / 6  # groups of 3, 2 and 1
    reached = icm_loss(200 * F.one_hot(y, 3).double(), target, axis=axis)
    torch.testing.assert_close(reached, torch.tensor(floor, dtype=f64), **CLOSE)
    for _ in range(10):
        assert icm_loss(5 * torch.randn(6, 3, dtype=f64), target, axis=axis) >= floor


# §2.6

BAD = {
    "negative y_a": (0, -1),
    "y_a too large": (0, 5),
    "negative y_b": (1, -100),
    "y_b too large": (1, 2**40),
    "lam NaN": (2, NAN),
    "lam negative": (2, -1e-6),
    "lam above one": (2, 1.0001),
    "lam infinite": (2, INF),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("axis", AXES)
def test_bad_values_make_every_entry_nan(axis, bad, case):
    fields = [case.y_a.clone(), case.y_b.clone(), case.lam.clone()]
    which, value = BAD[bad]
    fields[which][3] = value
    target = TwoHot(*fields)
    assert icm_loss(case.logits, target, axis=axis, reduction="none").isnan().all()
    assert gradient(case.logits, target, axis=axis, reduction="none").isnan().all()
    assert mixed_logits(case.logits, target).isnan().all()


def test_a_bad_lam_spoils_classes_that_no_column_uses():
    target = TwoHot(torch.tensor([0, 0]), torch.tensor([0, 0]), torch.tensor(NAN))
    assert gradient(torch.zeros(2, 9), target).isnan().all()


@pytest.mark.parametrize("label", [-1, -100, 5])
def test_bad_hard_labels(label, case):
    labels = case.y_a.clone()
    labels[2] = label
    assert icm_loss(case.logits, labels, reduction="none").isnan().all()
    assert gradient(case.logits, labels).isnan().all()


# §2.7


def test_unused_classes_may_hold_anything(generator):
    case = REGIMES["unused_nan"](12, 6, f64, generator)
    clean = torch.where(case.logits.isfinite(), case.logits, 0.0)
    for axis in AXES:
        assert icm_loss(case.logits, case, axis=axis) == icm_loss(clean, case, axis=axis)
        assert torch.equal(gradient(case.logits, case, axis=axis), gradient(clean, case, axis=axis))


def test_a_masked_class_has_probability_zero():
    # exp Z = [2 0; 1 4]: class terms ln 1, ln 5/4; pair terms ln 3/2, ln 1
    S = torch.tensor([[log(2), -INF], [0, log(4)]], dtype=f64)
    target = two_hot([0, 1], [0, 1], 1.0)
    terms = icm_loss(S, target, axis="class", reduction="none"), icm_loss(S, target, axis="pair", reduction="none")
    torch.testing.assert_close(torch.stack(terms).exp(), torch.tensor([[1, 1.25], [1.5, 1]], dtype=f64), **CLOSE)
    # (P + Q - 2I)/2 with P = [1 0; 1/5 4/5], Q = [2/3 0; 1/3 1]
    expected = torch.tensor([[-1 / 6, 0], [4 / 15, -1 / 10]], dtype=f64)
    torch.testing.assert_close(gradient(S, target), expected, **CLOSE)


def test_own_column_masked():
    S = torch.tensor([[-INF, 0.0, 1.0], [0.0, 2.0, 1.0], [1.0, 0.0, 0.0]], dtype=f64)
    target = two_hot([0, 1, 2], [1, 1, 2], [0.5, 0.5, 0.5])
    by_class = icm_loss(S, target, axis="class", reduction="none")
    by_pair = icm_loss(S, target, axis="pair", reduction="none")
    assert by_class[0] == INF
    assert by_class[1:].isfinite().all()
    assert by_pair[0] == INF
    assert by_pair[1:].isfinite().all()
    assert icm_loss(S, target) == INF
    assert gradient(S, target).isfinite().all()


def test_column_masked_for_every_image():
    S = torch.tensor([[-INF, 0.0], [-INF, 1.0]], dtype=f64)
    target = two_hot([0, 1], [0, 1], 0.5)
    assert icm_loss(S, target, axis="class", reduction="none")[0] == INF
    by_pair = icm_loss(S, target, axis="pair", reduction="none")
    assert by_pair[0].isnan()
    assert by_pair[1].isfinite()


def test_nan_propagates_from_used_classes_only():
    S = torch.tensor([[NAN, 0.0, 0.0], [1.0, 0.0, NAN]], dtype=f64)
    used = icm_loss(S, two_hot([0, 1], [1, 1], 0.5), axis="class", reduction="none")
    assert used[0].isnan()
    assert used[1].isfinite()
    assert icm_loss(S, two_hot([1, 1], [0, 2], 1.0)).isfinite()


def test_dense_targets_follow_matmul():
    S = torch.tensor([[-INF, 0.0]], dtype=f64)
    assert mixed_logits(S, torch.tensor([[0.0, 1.0]], dtype=f64)).isnan().all()


# §2.9


@pytest.mark.parametrize("value", [0.0, 0.5, 3.0, -2.0])
def test_logit_scale_multiplies_the_scores(value, case):
    for target in (case, case.y_a):
        expected = icm_loss(value * case.logits, target)
        torch.testing.assert_close(icm_loss(case.logits, target, logit_scale=value), expected, **CLOSE)
        scale = torch.tensor(value, dtype=torch.float32, requires_grad=True)
        icm_loss(case.logits, target, logit_scale=scale).backward()
        step = 1e-6
        higher, lower = (icm_loss(case.logits, target, logit_scale=value + d) for d in (step, -step))
        torch.testing.assert_close(scale.grad.double(), (higher - lower) / (2 * step), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("regime", ["masked", "masked_own"])
def test_masked_logits_leave_the_gradient_of_the_scale_finite(regime, generator):
    case = REGIMES[regime](9, 7, f64, generator)
    scale = torch.tensor(2.0, dtype=f64, requires_grad=True)
    leaf = case.logits.clone().requires_grad_()
    icm_loss(leaf, case, logit_scale=scale).backward()
    assert scale.grad.isfinite()
    scaled = gradient(2 * case.logits, case)
    torch.testing.assert_close(leaf.grad, 2 * scaled, **CLOSE)


# §2.10


@pytest.mark.parametrize("axis", AXES)
def test_an_unmixed_batch_stays_an_ic_loss(axis, case):
    unmixed = TwoHot(case.y_a, case.y_b, torch.tensor(1.0))
    pure = TwoHot(case.y_a, case.y_a, torch.tensor(0.4))
    assert icm_loss(case.logits, unmixed, axis=axis) == icm_loss(case.logits, pure, axis=axis)
    assert icm_loss(case.logits, unmixed, axis=axis) != icm_loss(case.logits, case.y_a, axis=axis)


# §2.11


def test_not_a_sum_over_samples(case):
    halves = [TwoHot(case.y_a[h], case.y_b[h], case.lam[h]) for h in (slice(0, 4), slice(4, 8))]
    split = (icm_loss(case.logits[:4], halves[0]) + icm_loss(case.logits[4:], halves[1])) / 2
    assert (split - icm_loss(case.logits, case)).abs() > 0.1
