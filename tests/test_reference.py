"""The loss of the specification, against numbers worked out by hand, the paper's formula and identities."""

import doctest
import importlib
from math import log

import pytest
import torch
import torch.nn.functional as F

from icm_fast.reference import TwoHot, icm_loss, mixed_logits, score_loss
from icm_fast.testing import formulations
from icm_fast.testing.regimes import REGIMES

AXES = ("both", "class", "pair")
f64 = torch.float64


def two_hot(y_a, y_b, lam):
    return TwoHot(torch.tensor(y_a), torch.tensor(y_b), torch.tensor(lam, dtype=f64))


def random_case(generator, B=9, C=6, dtype=f64):
    return REGIMES["normal"](B, C, dtype, generator)


def loss_and_gradient(logits, target, **options):
    leaf = logits.detach().clone().requires_grad_()
    loss = icm_loss(leaf, target, **options)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


def assert_close(actual, expected, tol=1e-12):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=tol, atol=tol)


# --- by hand ---------------------------------------------------------------------------------------------

# 2 x 2. S = ln 16 on the diagonal; column 0 is half class 0, half class 1; column 1 is 1/4 class 1, 3/4 class 0.
#
#   Z[0, 0] = 1/2 ln 16 = ln 4      Z[0, 1] = 3/4 ln 16 = ln 8
#   Z[1, 0] = 1/2 ln 16 = ln 4      Z[1, 1] = 1/4 ln 16 = ln 2
#
# class: row 0  ln(4 + 8) - ln 4 = ln 3      row 1  ln(4 + 2) - ln 2 = ln 3
# pair:  col 0  ln(4 + 4) - ln 4 = ln 2      col 1  ln(8 + 2) - ln 2 = ln 5
S2 = torch.tensor([[log(16), 0], [0, log(16)]], dtype=f64)
TARGET2 = two_hot([0, 1], [1, 0], [0.5, 0.25])

# P = [1/3 2/3; 2/3 1/3], so dL_cc/dZ = (P - I)/2 = [-1/3 1/3; 1/3 -1/3]
# Q = [1/2 4/5; 1/2 1/5], so dL_ci/dZ = (Q - I)/2 = [-1/4 2/5; 1/4 -2/5]
# dS[i, 0] = 1/2 dZ[i, 0] + 3/4 dZ[i, 1]      dS[i, 1] = 1/2 dZ[i, 0] + 1/4 dZ[i, 1]
CLASS2 = [[1 / 12, -1 / 12], [-1 / 12, 1 / 12]]
PAIR2 = [[7 / 40, -1 / 40], [-7 / 40, 1 / 40]]


def test_two_by_two_by_hand():
    assert_close(mixed_logits(S2, TARGET2), [[log(4), log(8)], [log(4), log(2)]])
    assert_close(icm_loss(S2, TARGET2, axis="class", reduction="none"), [log(3), log(3)])
    assert_close(icm_loss(S2, TARGET2, axis="pair", reduction="none"), [log(2), log(5)])
    assert_close(icm_loss(S2, TARGET2, axis="class"), log(3))
    assert_close(icm_loss(S2, TARGET2, axis="pair"), log(10) / 2)
    assert_close(icm_loss(S2, TARGET2), log(3) + log(10) / 2)
    assert_close(icm_loss(S2, TARGET2, reduction="sum"), 2 * log(3) + log(10))


def test_two_by_two_gradient_by_hand():
    assert_close(loss_and_gradient(S2, TARGET2, axis="class")[1], CLASS2)
    assert_close(loss_and_gradient(S2, TARGET2, axis="pair")[1], PAIR2)
    assert_close(loss_and_gradient(S2, TARGET2)[1], torch.tensor(CLASS2) + torch.tensor(PAIR2), 1e-7)


# 3 x 3, one lam = 3/4, column j = 3/4 class j + 1/4 class j+1. S = E ln 16, so exp Z[i, j] = 2^(3 E[i, j] + E[i, j+1]):
#
#   E = [1 0  0]      exp Z = [8  1    2 ]      row sums  11, 11, 13/8
#       [0 1  0]              [2  8    1 ]      column sums  11, 19/2, 25/8
#       [0 0 -1]              [1 1/2  1/8]      diagonal  8, 8, 1/8
def test_three_by_three_by_hand():
    S = log(16) * torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, -1]], dtype=f64)
    target = two_hot([0, 1, 2], [1, 2, 0], 0.75)
    assert_close(mixed_logits(S, target).exp(), [[8, 1, 2], [2, 8, 1], [1, 1 / 2, 1 / 8]])
    by_class = [log(11 / 8), log(11 / 8), log(13)]
    by_pair = [log(11 / 8), log(19 / 16), log(25)]
    assert_close(icm_loss(S, target, axis="class", reduction="none"), by_class)
    assert_close(icm_loss(S, target, axis="pair", reduction="none"), by_pair)
    assert_close(icm_loss(S, target), (sum(by_class) + sum(by_pair)) / 3)


# --- the paper's formula and torch -------------------------------------------------------------------------


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("regime", ["normal", "batch_lam", "lam_half", "duplicates", "same_class", "offset"])
def test_equals_the_authors_formulation(regime, axis, generator):
    case = REGIMES[regime](11, 5, f64, generator)
    leaf = case.logits.clone().requires_grad_()
    theirs = formulations.authors(leaf, *case[1:], axis=axis)
    loss, gradient = loss_and_gradient(case.logits, case, axis=axis)
    assert_close(loss, theirs.detach(), 1e-11)
    assert_close(gradient, torch.autograd.grad(theirs, leaf)[0], 1e-11)
    assert_close(loss, formulations.index_gather(*case, axis=axis), 1e-11)


@pytest.mark.parametrize("axis", AXES)
def test_dense_targets_of_any_support(axis, generator):
    case = random_case(generator)
    Y = case.lam.double()[:, None] * F.one_hot(case.y_a, 6) + (1 - case.lam.double())[:, None] * F.one_hot(case.y_b, 6)
    assert_close(icm_loss(case.logits, Y, axis=axis), icm_loss(case.logits, case, axis=axis))
    # spec §2.8: smoothing by eps is (1 - eps) Z + eps * the mean logit of each image
    Z = 0.9 * mixed_logits(case.logits, case) + 0.1 * case.logits.mean(1, keepdim=True)
    assert_close(icm_loss(case.logits, 0.9 * Y + 0.1 / 6, axis=axis), score_loss(Z, axis=axis))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_integer_labels_are_cross_entropy_on_every_axis(reduction, dtype, generator):
    logits, labels, _, _ = random_case(generator)
    expected = F.cross_entropy(logits, labels, reduction=reduction)
    for axis in AXES:
        assert_close(icm_loss(logits, labels.to(dtype), axis=axis, reduction=reduction), expected)


def test_autocast_does_not_lower_the_precision(generator):
    case = random_case(generator, dtype=torch.float32)
    for target in (case, torch.rand(9, 6)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = icm_loss(case.logits, target)
        assert loss.dtype == torch.float32
        assert_close(loss.double(), icm_loss(case.logits.double(), target), 1e-5)


@pytest.mark.parametrize("axis", AXES)
def test_differentiable_twice(axis, generator):
    logits = 2 * torch.randn(4, 3, generator=generator, dtype=f64).requires_grad_()
    scale = torch.tensor(-1.3, dtype=f64, requires_grad=True)
    target = two_hot([0, 1, 2, 1], [1, 1, 0, 2], [0.7, 0.2, 1.0, 0.0])
    for reduction in ("mean", "none"):

        def loss(S, s, reduction=reduction):
            return icm_loss(S, target, axis=axis, reduction=reduction, logit_scale=s)

        assert torch.autograd.gradcheck(loss, (logits, scale))
        assert torch.autograd.gradgradcheck(loss, (logits, scale))
    assert torch.autograd.gradgradcheck(
        lambda S: icm_loss(S, torch.eye(3, dtype=f64)[[0, 1, 2, 1]], axis=axis), (logits,)
    )


def test_works_under_function_transforms(generator):
    case = random_case(generator)
    expected = loss_and_gradient(case.logits, case)[1]
    assert_close(torch.func.grad(lambda S: icm_loss(S, case))(case.logits), expected)
    tangent = torch.randn_like(case.logits)
    _, directional = torch.func.jvp(lambda S: icm_loss(S, case), (case.logits,), (tangent,))
    assert_close(directional, (expected * tangent).sum())


def test_reads_nothing_back_to_the_host():
    logits = torch.empty(5, 4, device="meta", requires_grad=True)
    y = torch.empty(5, dtype=torch.int64, device="meta")
    icm_loss(logits, TwoHot(y, y, torch.empty(5, device="meta")), logit_scale=torch.ones((), device="meta")).backward()
    icm_loss(logits, y).backward()
    assert logits.grad is not None


# --- types and small batches --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_types(dtype, generator):
    case = random_case(generator, dtype=dtype)
    leaf = case.logits.clone().requires_grad_()
    loss = icm_loss(leaf, case)
    loss.backward()
    assert loss.dtype == (f64 if dtype == f64 else torch.float32)
    assert leaf.grad.dtype == dtype
    assert torch.equal(leaf.detach(), case.logits)


def test_float64_weights_are_kept_for_float64_logits():
    lam = 1 / 3
    Z = mixed_logits(torch.tensor([[0.0, 1.0]], dtype=f64), two_hot([0], [1], lam))
    assert Z.item() == 1 - lam


@pytest.mark.parametrize("axis", AXES)
def test_no_row_and_one_row(axis):
    none = torch.zeros(0, dtype=torch.int64)
    empty, target = torch.zeros(0, 4, requires_grad=True), TwoHot(none, none, torch.tensor(0.5))
    for t in (target, none, torch.zeros(0, 4)):
        assert icm_loss(empty, t, axis=axis).isnan()
        assert icm_loss(empty, t, axis=axis, reduction="sum") == 0
        assert icm_loss(empty, t, axis=axis, reduction="none").shape == (0,)
        icm_loss(empty, t, axis=axis).backward()
    loss, gradient = loss_and_gradient(torch.tensor([[1.0, -2.0, 3.0]]), two_hot([0], [2], 0.3), axis=axis)
    assert loss == 0
    assert not gradient.any()


def test_rectangular_scores(generator):
    Z = torch.randn(9, 9, generator=generator, dtype=f64)
    rows = slice(3, 7)
    by_class = score_loss(Z, axis="class", reduction="none")[rows]
    by_pair = score_loss(Z[rows, rows], axis="pair", reduction="none")
    assert_close(score_loss(Z[rows], axis="class", reduction="none", diagonal=3), by_class)
    assert_close(score_loss(Z[rows], axis="pair", reduction="none", diagonal=3), by_pair)
    assert_close(score_loss(Z[rows], diagonal=3), (by_class + by_pair).mean())
    with pytest.raises(ValueError, match="do not fit 9 columns"):
        score_loss(Z[rows], diagonal=6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_terms(reduction, generator):
    case = random_case(generator)
    by_class, by_pair = (icm_loss(case.logits, case, axis=a, reduction=reduction) for a in ("class", "pair"))
    leaf = case.logits.clone().requires_grad_()
    loss, class_term, pair_term = icm_loss(leaf, case, reduction=reduction, return_terms=True)
    assert_close(class_term, by_class)
    assert_close(pair_term, by_pair)
    assert_close(loss.detach(), class_term + pair_term)
    assert loss.requires_grad
    assert not class_term.requires_grad
    assert not pair_term.requires_grad
    loss, class_term, pair_term = icm_loss(leaf, case, axis="pair", reduction=reduction, return_terms=True)
    assert not class_term.any()
    assert torch.equal(loss, pair_term)


def test_refuses_what_it_cannot_mean(generator):
    case = random_case(generator)
    with pytest.raises(TypeError, match=r"from_tuple.*got tuple"):
        icm_loss(case.logits, (case.y_a, case.y_b, case.lam))
    with pytest.raises(TypeError, match="floating-point"):
        icm_loss(case.logits.long(), case)
    with pytest.raises(ValueError, match="rows but target has 8"):
        icm_loss(case.logits, TwoHot(case.y_a[:8], case.y_b[:8], case.lam[:8]))
    with pytest.raises(ValueError, match="lam carries no gradient"):
        icm_loss(case.logits, TwoHot(case.y_a, case.y_b, case.lam.clone().requires_grad_()))
    with pytest.raises(ValueError, match="target carries no gradient"):
        icm_loss(case.logits, torch.rand(9, 6, requires_grad=True))
    with pytest.raises(ValueError, match="axis"):
        icm_loss(case.logits, case, axis="row")
    with pytest.raises(ValueError, match="reduction"):
        icm_loss(case.logits, case, reduction="avg")


@pytest.mark.parametrize(
    "module", ["am_mixup_loss", "icm_loss", "mixed_logits", "mixup", "mixup_cross_entropy", "remix"]
)
def test_examples_of_the_docstrings(module):
    result = doctest.testmod(importlib.import_module(f"icm_fast.reference.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
