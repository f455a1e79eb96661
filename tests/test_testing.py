"""The assertions themselves: a right implementation passes in every regime, and planted faults are rejected."""

import math

import pytest
import torch

from icm_fast import reference
from icm_fast.testing import budget, byte_counts, checks
from icm_fast.testing.regimes import REGIMES, SHAPES

AXES = ("both", "class", "pair")
DTYPES = {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
LOG2E = math.log2(math.e)


def sketch(case, axis="both", fault=None):
    """icm_loss written as kernels write it: base 2, offsets subtracted first, explicit gradient; or with a fault."""
    logits, y_a, y_b, lam = case
    acc = torch.float64 if logits.dtype == torch.float64 else torch.float32
    B, C = logits.shape
    S = logits.to(acc)
    if fault == "partner column off by one":
        y_b = y_b.roll(1)
    w_a = lam.to(acc).expand(B)
    if fault == "lam on the partner":
        w_a = 1 - w_a
    if fault == "axes swapped":
        axis = {"class": "pair", "pair": "class", "both": "both"}[axis]
    w_b = 1 - w_a
    pure = (y_a == y_b) | (w_a == 0) | (w_b == 0)
    first = torch.where(w_a == 0, y_b, y_a)
    second = torch.where(pure, first, y_b)
    w_a, w_b = w_a.masked_fill(pure, 1.0), w_b.masked_fill(pure, 0.0)

    used = torch.zeros(C, dtype=torch.bool)
    used[first] = used[second] = True
    M = S.masked_fill(~(used & S.isfinite()), -torch.finfo(acc).max).amax(1)  # the largest finite used logit
    if fault == "no maximum":
        M = torch.zeros_like(M)
    T = (S - M[:, None]) * LOG2E
    x = torch.where(pure, T[:, first], w_a * T[:, first] + w_b * T[:, second])
    P, row_terms = softmax2(x, 1, fault)
    Q, col_terms = softmax2(x + ((M - M.max()) * LOG2E)[:, None], 0, fault)
    if fault == "one exponential for both axes, not repaired":
        e = torch.exp2(x)
        P, row_terms = e / e.sum(1, keepdim=True), (e.sum(1).log2() - x.diagonal()) / LOG2E
        e = e * torch.exp2((M - M.max()) * LOG2E)[:, None]
        Q, col_terms = e / e.sum(0), (e.sum(0).log2() - x.diagonal() - (M - M.max()) * LOG2E) / LOG2E
    if fault == "probability rounded before the one is subtracted":
        P, Q = (p.bfloat16().to(acc) for p in (P, Q))
    eye = torch.eye(B, dtype=acc)
    dz = torch.zeros(B, B, dtype=acc)
    terms = torch.zeros(B, dtype=acc)
    if axis != "pair":
        dz, terms = dz + (P - eye), terms + row_terms
    if axis != "class":
        dz, terms = dz + (Q - eye), terms + col_terms
    grad = (
        torch.zeros(B, C, dtype=acc).index_add(1, first, w_a * dz).index_add(1, second, torch.where(pure, 0, w_b * dz))
        / B
    )
    if fault == "gradient scaled by 1 + 1e-3":
        grad = grad * (1 + 1e-3)
    return terms.mean(), grad.to(logits.dtype)


def softmax2(x, dim, fault):
    m = torch.zeros(()) if fault == "no maximum" else x.amax(dim, keepdim=True)
    e = torch.exp2(x - m)
    total = e.sum(dim, keepdim=True)
    return e / total, ((m + total.log2()).squeeze(dim) - x.diagonal()) / LOG2E


def draw(regime, B, C, dtype):
    return REGIMES[regime](B, C, dtype, torch.Generator().manual_seed(1000 * B + C))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("regime", REGIMES)
def test_right_implementations_pass(regime, dtype):
    for B, C in SHAPES[::3]:
        case = draw(regime, B, C, dtype)
        for axis in AXES:
            what = f"B{B}-C{C}-{axis}"
            checks.check_icm_loss(*sketch(case, axis), case.logits, case, axis=axis, what=f"sketch {what}")
            leaf = case.logits.clone().requires_grad_()
            loss = reference.icm_loss(leaf, case, axis=axis, reduction="none")
            g = torch.rand(B) + 0.5
            (dlogits,) = torch.autograd.grad(loss, leaf, g.to(loss.dtype))
            options = {"axis": axis, "reduction": "none", "grad_output": g, "what": f"reference {what}"}
            checks.check_icm_loss(loss, dlogits, case.logits, case, **options)
            assert REGIMES[regime].finite <= bool(loss.isfinite().all())


# --- planted faults ------------------------------------------------------------------------------------------

# The regimes in which a fault must be seen, alone and by every type that can resolve it.
ALL, FINE = tuple(DTYPES), ("f64", "f32", "f16")  # one rounding to bfloat16 is 4e-3
FAULTS = {
    "axes swapped": (("normal", "confident", "dominant_class", "dominant_image", "batch_lam"), ALL),
    "lam on the partner": (("normal", "confident", "batch_lam", "lam_zero", "lam_one", "large", "range_50"), ALL),
    "partner column off by one": (("normal", "uniform", "confident", "batch_lam", "lam_half", "masked"), ALL),
    "no maximum": (("large", "offset"), ALL),
    "one exponential for both axes, not repaired": (("large", "range_500"), ("f32", "bf16", "f16")),
    "gradient scaled by 1 + 1e-3": (
        ("normal", "uniform", "confident", "dominant_class", "duplicates", "range_50"),
        FINE,
    ),
    "probability rounded before the one is subtracted": (("confident", "normal", "lam_one", "range_50"), ALL),
}


VISIBLE_ON = {
    "axes swapped": ("class", "pair"),
    "one exponential for both axes, not repaired": ("both", "pair"),  # the class axis chose the maximum
}
GRID = [
    pytest.param(fault, regime, DTYPES[dtype], id=f"{fault}-{regime}-{dtype}".replace(" ", "_"))
    for fault, (regimes, dtypes) in FAULTS.items()
    for regime in regimes
    for dtype in dtypes
]


@pytest.mark.parametrize(("fault", "regime", "dtype"), GRID)
def test_planted_faults_are_rejected(fault, regime, dtype):
    case = draw(regime, 33, 100, dtype)
    for axis in VISIBLE_ON.get(fault, AXES):
        loss, dlogits = sketch(case, axis, fault)
        with pytest.raises(AssertionError, match=r"dlogits: .*(beyond the budget|disagree on NaN)"):
            checks.check_icm_loss(None, dlogits, case.logits, case, axis=axis)
        if "gradient" in fault or "probability" in fault:
            continue  # their loss is right
        with pytest.raises(AssertionError, match=r"loss: .*(beyond the budget|disagree on)"):
            checks.check_icm_loss(loss, None, case.logits, case, axis=axis)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_one_wrong_element_is_rejected(value, dtype):
    case = draw("normal", 33, 10, dtype)
    loss, dlogits = sketch(case)
    checks.check_icm_loss(loss, dlogits, case.logits, case)
    dlogits.view(-1)[dlogits.abs().argmax()] = value
    with pytest.raises(AssertionError, match=r"1 of 330 elements .* at \(\d+, \d+\): ours (nan|inf|0), torch "):
        checks.check_icm_loss(None, dlogits, case.logits, case)


def test_a_finite_result_where_the_truth_is_not_is_rejected():
    case = draw("masked_own", 33, 10, torch.float32)
    with pytest.raises(AssertionError, match=r"loss: 1 of 1 elements disagree on \+inf"):
        checks.check_icm_loss(torch.tensor(5.0), None, case.logits, case)
    with pytest.raises(AssertionError, match="disagree on NaN"):
        checks.check_icm_loss(torch.tensor(math.nan), None, case.logits, case)


def test_shape_and_type_are_checked():
    case = draw("normal", 7, 10, torch.bfloat16)
    loss, dlogits = sketch(case)
    with pytest.raises(AssertionError, match=r"expected shape \(7, 10\), got \(6, 10\)"):
        checks.check_icm_loss(None, dlogits[:6], case.logits, case)
    with pytest.raises(AssertionError, match=r"expected torch\.bfloat16, got torch\.float32"):
        checks.check_icm_loss(None, dlogits.float(), case.logits, case)
    with pytest.raises(AssertionError, match=r"expected torch\.float32, got torch\.bfloat16"):
        checks.check_icm_loss(loss.bfloat16(), None, case.logits, case)


def test_wrong_reduction_and_incoming_gradient_are_rejected():
    case = draw("normal", 33, 10, torch.float32)
    loss, dlogits = sketch(case)
    checks.check_icm_loss(33 * loss, 33 * dlogits, case.logits, case, reduction="sum")
    checks.check_icm_loss(None, 3 * dlogits, case.logits, case, grad_output=torch.tensor(3.0))
    for wrong in ({"reduction": "sum"}, {"grad_output": torch.tensor(3.0)}, {"logit_scale": 1.1}):
        with pytest.raises(AssertionError, match="beyond the budget"):
            checks.check_icm_loss(None, dlogits, case.logits, case, **wrong)


# --- logit_scale, rectangular and dense inputs, the other operations -----------------------------------------


FINITE = [(regime, value) for regime in ("normal", "confident", "offset", "range_200") for value in (0.0, 2.5, -0.7)]


@pytest.mark.parametrize(("regime", "value"), [*FINITE, ("masked", 2.5), ("masked_own", 2.5)])
def test_gradient_of_the_scale(regime, value):
    case = draw(regime, 17, 10, torch.float32)
    leaf, scale = case.logits.clone().requires_grad_(), torch.tensor(value, requires_grad=True)
    loss = reference.icm_loss(leaf, case, logit_scale=scale)
    dlogits, dscale = torch.autograd.grad(loss, (leaf, scale))
    checks.check_icm_loss(loss.detach(), dlogits, case.logits, case, logit_scale=value, dscale=dscale)
    if regime not in ("offset", "masked_own"):  # 1 % of the gradient is below what an offset of 1e4 costs
        with pytest.raises(AssertionError, match="dscale"):
            checks.check_icm_loss(None, None, case.logits, case, logit_scale=value, dscale=dscale * 1.01 + 1e-3)


def test_rectangular_and_dense_inputs():
    case = draw("normal", 33, 10, torch.float32)
    rows = case.logits[5:12].clone().requires_grad_()
    loss = reference.score_loss(reference.mixed_logits(rows, case), diagonal=5)
    (drows,) = torch.autograd.grad(loss, rows)
    checks.check_icm_loss(loss, drows, rows, case, diagonal=5)
    with pytest.raises(AssertionError):
        checks.check_icm_loss(loss, drows, rows, case, diagonal=4)
    Y = torch.rand(33, 10)
    leaf = case.logits.clone().requires_grad_()
    loss = reference.icm_loss(leaf, Y)
    checks.check_icm_loss(loss, torch.autograd.grad(loss, leaf)[0], leaf, Y)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("regime", REGIMES)
def test_mixed_cross_entropy_in_every_regime(regime, dtype):
    weight = torch.rand(10) + 0.1
    for options in ({}, {"weight": weight, "label_smoothing": 0.1, "reduction": "sum"}, {"reduction": "none"}):
        case = draw(regime, 33, 10, dtype)
        leaf = case.logits.clone().requires_grad_()
        loss = reference.mixup_cross_entropy(leaf, case, **options)
        (dlogits,) = torch.autograd.grad(loss, leaf, torch.ones_like(loss))
        checks.check_mixup_cross_entropy(loss, dlogits, case.logits, case, **options)
        if regime in ("normal", "confident", "batch_lam") and dtype == torch.float32:
            for wrong in (loss * (1 + 1e-3) + 1e-3, dlogits * (1 + 1e-3)):
                arguments = (wrong, None) if wrong.shape == loss.shape else (None, wrong)
                with pytest.raises(AssertionError, match="beyond the budget"):
                    checks.check_mixup_cross_entropy(*arguments, case.logits, case, **options)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_mixup_check(dtype):
    x, index = torch.randn(7, 3, 4, 4).to(dtype), torch.randperm(7)
    box = torch.tensor([1, 3, 0, 2])
    for lam in (torch.tensor(0.3), torch.rand(7)):
        leaf, g = x.clone().requires_grad_(), torch.randn(7, 3, 4, 4)
        out = reference.mixup(leaf, index, lam)
        (dx,) = torch.autograd.grad(out, leaf, g.to(dtype))
        checks.check_mixup(out, dx, x, index, lam, grad_output=g.to(dtype))
        checks.check_mixup(reference.mixup(x, index, lam, box=box), None, x, index, lam, box=box)
        for wrong in (reference.mixup(x, index, 1 - lam), out * 1.01, out.roll(1)):
            with pytest.raises(AssertionError):
                checks.check_mixup(wrong, None, x, index, lam)
        with pytest.raises(AssertionError):
            checks.check_mixup(None, dx * 1.01, x, index, lam, grad_output=g.to(dtype))


def test_byte_mixup_check():
    x, index, lam = torch.randint(256, (7, 3, 4, 4), dtype=torch.uint8), torch.randperm(7), torch.rand(7)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])
    for dtype in DTYPES.values():
        out = reference.mixup(x, index, lam, mean=mean, std=std, dtype=dtype, keep_clean=True)
        checks.check_byte_mixup(out, x, index, lam, mean, std, keep_clean=True)
        with pytest.raises(AssertionError):
            checks.check_byte_mixup(out, x, index, lam, mean + 0.01, std, keep_clean=True)


# --- small parts ---------------------------------------------------------------------------------------------


def test_same_bits():
    one = torch.tensor([1.0, math.nan, -0.0])
    budget.check_same_bits(one, one.clone(), "equal")
    for other in (torch.tensor([1.0, math.nan, 0.0]), torch.tensor([1.0, 0.0, -0.0]), one.double(), one[:2]):
        with pytest.raises(AssertionError):
            budget.check_same_bits(one, other, "different")


def test_ulps():
    one = torch.tensor(1.0)
    assert budget.ulps(one + 2**-23, one, torch.float32) == 1
    assert budget.ulps(3 * one, 2 * one, torch.bfloat16) == 64


def test_a_nan_scale_cannot_pass():
    zero = torch.zeros(3)
    with pytest.raises(AssertionError):
        budget.check(zero, zero, zero, out_dtype=zero.dtype, acc_dtype=zero.dtype, scale=math.nan, what="nan")


def test_byte_counts():
    f32 = torch.float32
    fwd, bwd = (byte_counts.icm_loss_bytes(128, 100, f32, mode) for mode in ("fwd", "bwd"))
    assert fwd == 51200 + 128 * 20
    assert bwd == fwd + 51200 + 1024
    assert byte_counts.icm_loss_bytes(128, 100, f32, "fwdbwd", scalar_lam=True) == fwd + bwd - 2 * 127 * 4
    assert byte_counts.mixup_cross_entropy_bytes(128, 100, torch.bfloat16, "fwd") == 25600 + 128 * 20
    assert byte_counts.mixup_bytes(100, torch.uint8, torch.bfloat16, keep_clean=True) == 500
