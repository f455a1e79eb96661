"""The other methods of spec §3 on the reference: mixing, boxes, Remix, mixed cross-entropy, AM-Mixup."""

from math import exp, log

import pytest
import torch
import torch.nn.functional as F

from icm_fast.reference import TwoHot, am_mixup_loss, am_mixup_rate, cutmix_box, mixup, mixup_cross_entropy, remix_lam
from icm_fast.testing.budget import check_same_bits
from icm_fast.testing.formulations import two_cross_entropies
from icm_fast.testing.regimes import REGIMES

INF, NAN = float("inf"), float("nan")
f64 = torch.float64
CLOSE = {"rtol": 1e-12, "atol": 1e-12}
INDEX = torch.tensor([1, 2, 0, 3])  # 3 is a fixed point


# --- mixup -------------------------------------------------------------------------------------------------


def test_mixup_by_hand():
    x = torch.tensor([[0.0, 8.0], [4.0, 0.0], [16.0, -8.0]])
    index = torch.tensor([1, 2, 0])
    one_ratio = mixup(x, index, torch.tensor(0.75))  # 3/4 of itself, 1/4 of its partner
    assert torch.equal(one_ratio, torch.tensor([[1.0, 6.0], [7.0, -2.0], [12.0, -4.0]]))
    per_sample = mixup(x, index, torch.tensor([0.25, 0.5, 1.0]))
    assert torch.equal(per_sample, torch.tensor([[3.0, 2.0], [10.0, -4.0], [16.0, -8.0]]))
    not_a_permutation = mixup(x, torch.tensor([1, 1, 1]), 0.5)
    assert torch.equal(not_a_permutation, torch.tensor([[2.0, 4.0], [4.0, 0.0], [10.0, -4.0]]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(4,), (4, 7), (4, 3, 5, 2)])
def test_mixup_laws_are_exact(shape, dtype):
    x = torch.randn(shape, dtype=dtype)
    check_same_bits(mixup(x, INDEX, torch.tensor(1.0)), x, "lam = 1")
    check_same_bits(mixup(x, INDEX, torch.tensor(0.0)), x[INDEX], "lam = 0")
    check_same_bits(mixup(x, torch.arange(4), torch.rand(4)), x, "identity index")
    mixed = mixup(x, INDEX, torch.tensor([1.0, 0.0, 0.3, 0.3]))
    check_same_bits(mixed[[0, 1, 3]], x[[0, 2, 3]], "per sample")


def test_mixup_does_not_read_what_takes_no_part():
    x = torch.tensor([[1.0], [NAN], [-0.0], [INF]], requires_grad=True)
    out = mixup(x, torch.tensor([1, 0, 1, 3]), torch.tensor([1.0, 0.0, 1.0, 0.3]))
    check_same_bits(out, torch.tensor([[1.0], [1.0], [-0.0], [INF]]), "mixed")
    out.sum().backward()
    assert torch.equal(x.grad, torch.tensor([[2.0], [0.0], [1.0], [1.0]]))


def test_mixup_gradient_is_the_transpose():
    x = torch.randn(4, 3, dtype=f64, requires_grad=True)
    lam = torch.tensor([0.2, 0.7, 1.0, 0.4])
    assert torch.autograd.gradcheck(lambda v: mixup(v, INDEX, lam), (x,))
    assert torch.autograd.gradgradcheck(lambda v: mixup(v, INDEX, lam) ** 2, (x,))
    half = torch.randn(4, 3).half().requires_grad_()
    mixup(half, torch.zeros(4, dtype=torch.int64), 0.3).sum().backward()
    # 0.3 of itself, 0.7 of each of the other three, its own 1: rounded once, not four times
    assert torch.equal(half.grad[0], torch.full((3,), 1 + 3 * 0.7).half())


@pytest.mark.parametrize("bad", [NAN, -0.1, 1.1])
def test_mixup_of_bad_weights_and_indices_is_nan(bad):
    x = torch.ones(4, 2, requires_grad=True)
    lam = torch.tensor([0.5, bad, 0.5, bad])
    out = mixup(x, INDEX, lam)
    assert torch.equal(out.isnan().any(1), torch.tensor([False, True, False, True]))
    index = torch.tensor([0, 4, -1, 2])
    assert torch.equal(mixup(x, index, 1.0).isnan().any(1), torch.tensor([False, True, True, False]))
    out.sum().backward()
    assert x.grad[1].isnan().all()


def test_mixup_of_bytes_by_hand():
    x = torch.zeros(2, 2, 1, 2, dtype=torch.uint8)
    x[0, 0], x[0, 1] = torch.tensor([0, 255]), torch.tensor([102, 51])
    mean, std = [0.5, 0.2], torch.tensor([0.5, 0.1])
    out = mixup(x, torch.tensor([1, 0]), torch.tensor(0.5), mean=mean, std=std, keep_clean=True, dtype=f64)
    clean = [[-1, 1], [2, 0]], [[-1, -1], [-2, -2]]  # (v / 255 - mean) / std
    mixed = [[-1, 0], [0, -1]]  # 0 and 127.5; 51 and 25.5
    expected = torch.tensor([*clean, mixed, mixed], dtype=f64).reshape(4, 2, 1, 2)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-7)
    assert mixup(x, torch.tensor([1, 0]), 0.5, mean=mean, std=std).dtype == torch.float32


def test_clean_half_of_bytes_is_what_lam_one_gives():
    x = torch.randint(256, (4, 3, 5, 5), dtype=torch.uint8)
    stats = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    both = mixup(x, INDEX, torch.tensor(1.0), keep_clean=True, **stats)
    check_same_bits(both[4:], both[:4], "lam = 1")
    x = torch.randn(4, 3)
    check_same_bits(mixup(x, INDEX, 0.3, keep_clean=True), torch.cat([x, mixup(x, INDEX, 0.3)]), "keep_clean")


def test_mixup_refuses_what_it_cannot_mean():
    bytes_, floats = torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.zeros(4, 3)
    with pytest.raises(TypeError, match="needs mean and std"):
        mixup(bytes_, INDEX, 0.5)
    with pytest.raises(TypeError, match="needs mean and std"):
        mixup(bytes_, INDEX, 0.5, mean=[0.0] * 3)
    with pytest.raises(TypeError, match="go with uint8"):
        mixup(floats, INDEX, 0.5, mean=[0.0] * 3, std=[1.0] * 3)
    with pytest.raises(TypeError, match="go with uint8"):
        mixup(floats, INDEX, 0.5, dtype=torch.float64)
    with pytest.raises(TypeError, match="floating-point"):
        mixup(floats.long(), INDEX, 0.5)


# --- CutMix ------------------------------------------------------------------------------------------------


def test_cutmix_box_by_hand():
    # sqrt(1 - 0.75) = 1/2 of 8 x 12: 4 x 6 pixels, so 2 up and down, 3 left and right
    box, lam = cutmix_box(torch.tensor(0.75), 8, 12, 4, 6)
    assert box.tolist() == [2, 6, 3, 9]
    assert lam == 0.75
    box, lam = cutmix_box(torch.tensor(0.75), 8, 12, 0, 11)  # clipped to 2 x 4
    assert box.tolist() == [0, 2, 8, 12]
    assert lam == torch.tensor(1 - 8 / 96)
    box, lam = cutmix_box(torch.tensor([1.0, 0.0]), 7, 7, torch.tensor([3, 3]), torch.tensor([3, 3]))
    assert box.tolist() == [[3, 3, 3, 3], [0, 6, 0, 6]]  # an odd side is one short: 2 * floor(7 / 2)
    assert torch.equal(lam, torch.tensor([1.0, 1 - 36 / 49]))
    assert cutmix_box(torch.tensor([NAN, 2.0]), 4, 4, torch.tensor([1, 1]), torch.tensor([1, 1]))[1].isnan().all()


def test_pixels_inside_the_box_come_from_the_partner():
    x = torch.randn(4, 2, 5, 6)
    boxes = torch.tensor([[1, 3, 2, 6], [0, 0, 0, 6], [0, 5, 0, 6], [1, 2, 1, 2]])
    out = mixup(x, INDEX, torch.rand(4), box=boxes)
    expected = x.clone()
    for i, (y1, y2, x1, x2) in enumerate(boxes.tolist()):
        expected[i, :, y1:y2, x1:x2] = x[INDEX[i], :, y1:y2, x1:x2]
    check_same_bits(out, expected, "a box per sample")
    shared = mixup(x, INDEX, torch.tensor(0.1), box=boxes[0])
    check_same_bits(shared, mixup(x, INDEX, 0.1, box=boxes[:1].expand(4, 4)), "one box")


def test_the_corrected_lam_is_the_share_of_own_pixels():
    for lam in torch.rand(20):
        cy, cx = torch.randint(9, ()), torch.randint(11, ())
        box, corrected = cutmix_box(lam, 9, 11, cy, cx)
        x = torch.tensor([1.0, 0.0])[:, None, None].expand(2, 9, 11)
        out = mixup(x, torch.tensor([1, 0]), lam, box=box)
        torch.testing.assert_close(out[0].mean(), corrected)
        assert corrected >= lam - 1e-6


# --- Remix -------------------------------------------------------------------------------------------------

# counts of classes 0, 1, 2: 300, 100, 90, so n_0/n_1 = 3 exactly, n_0/n_2 = 3.3, n_1/n_2 = 1.1
REMIX = [
    (0, 1, 0.4, 0.0),  # ratio = kappa and lam < tau: the partner's (rarer) label
    (0, 2, 0.49, 0.0),
    (0, 1, 0.5, 0.5),  # not below tau
    (0, 1, 0.9, 0.9),
    (1, 0, 0.6, 1.0),  # ratio = 1/kappa and 1 - lam < tau: its own label
    (2, 0, 0.51, 1.0),
    (1, 0, 0.5, 0.5),
    (1, 0, 0.1, 0.1),
    (1, 2, 0.1, 0.1),  # balanced
    (0, 0, 0.1, 0.1),
]


def test_remix_by_hand():
    y_a, y_b, lam, expected = (torch.tensor(column) for column in zip(*REMIX, strict=True))
    counts = torch.tensor([300, 100, 90])
    assert torch.equal(remix_lam(lam, y_a, y_b, counts), expected)
    assert remix_lam(torch.tensor(0.4, dtype=f64), y_a, y_b, counts).tolist()[:2] == [0.0, 0.0]
    assert remix_lam(torch.tensor(0.4), y_a[:1], y_b[:1], counts, kappa=3.1).item() == pytest.approx(0.4)
    assert remix_lam(torch.tensor(0.4), y_a[:1], y_b[:1], counts, tau=0.3).item() == pytest.approx(0.4)


def test_remix_passes_bad_values_on():
    counts = torch.tensor([300, 100])
    labels = torch.tensor([0, 0, 2, -1]), torch.tensor([1, 1, 1, 0])
    out = remix_lam(torch.tensor([NAN, -0.5, 0.4, 0.4]), *labels, counts)
    assert out.isnan().all()


# --- mixed cross-entropy -------------------------------------------------------------------------------------


def test_mixed_cross_entropy_by_hand():
    # row 0: probabilities 1/4 1/4 1/2; row 1: 1/2 1/2 0
    S = torch.tensor([[0.0, 0.0, log(2)], [0.0, 0.0, -INF]], dtype=f64)
    target = TwoHot(torch.tensor([2, 0]), torch.tensor([0, 1]), torch.tensor([0.75, 0.3]))
    expected = torch.tensor([0.75 * log(2) + 0.25 * log(4), log(2)], dtype=f64)
    torch.testing.assert_close(mixup_cross_entropy(S, target, reduction="none"), expected, rtol=1e-7, atol=0)
    weight = torch.tensor([2.0, 1.0, 4.0])
    expected = torch.tensor([4 * 0.75 * log(2) + 2 * 0.25 * log(4), (2 * 0.3 + 0.7) * log(2)], dtype=f64)
    actual = mixup_cross_entropy(S, target, weight=weight, reduction="sum")
    torch.testing.assert_close(actual, expected.sum(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_mixed_cross_entropy_equals_torch(weighted, smoothing, reduction, generator):
    case = REGIMES["normal"](9, 6, f64, generator)
    options = {
        "weight": torch.rand(6, dtype=f64) if weighted else None,
        "label_smoothing": smoothing,
        "reduction": reduction,
    }
    lam = case.lam.double()[:, None]
    Y = lam * F.one_hot(case.y_a, 6) + (1 - lam) * F.one_hot(case.y_b, 6)
    expected = F.cross_entropy(case.logits, Y, **options)
    torch.testing.assert_close(mixup_cross_entropy(case.logits, case, **options), expected, **CLOSE)
    torch.testing.assert_close(mixup_cross_entropy(case.logits, Y, **options), expected, **CLOSE)
    torch.testing.assert_close(two_cross_entropies(*case, **options), expected, **CLOSE)
    hard = F.cross_entropy(case.logits, case.y_a, **options)
    torch.testing.assert_close(mixup_cross_entropy(case.logits, case.y_a.int(), **options), hard, **CLOSE)


def test_mixed_cross_entropy_is_differentiable_twice(generator):
    S = torch.randn(4, 3, generator=generator, dtype=f64, requires_grad=True)
    target = TwoHot(torch.tensor([0, 1, 2, 1]), torch.tensor([1, 1, 0, 2]), torch.tensor([0.7, 0.2, 1.0, 0.0]))
    weight = torch.tensor([1.0, 2.0, 0.5], dtype=f64)
    for t in (target, torch.rand(4, 3, dtype=f64), torch.tensor([0, 1, 2, 1])):

        def loss(S, t=t):
            return mixup_cross_entropy(S, t, weight=weight, label_smoothing=0.1)

        assert torch.autograd.gradcheck(loss, (S,))
        assert torch.autograd.gradgradcheck(loss, (S,))


def test_mixed_cross_entropy_edges(generator):
    logits = torch.tensor([[0.0, -INF], [0.0, 1.0]], requires_grad=True)
    target = TwoHot(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([1.0, 0.5]))
    loss = mixup_cross_entropy(logits, target, reduction="none")
    assert loss[0] == 0
    assert loss.isfinite().all()
    for bad in (
        TwoHot(target.y_a, target.y_b + 1, target.lam),
        TwoHot(*target[:2], torch.tensor(NAN)),
        torch.tensor([0, -100]),
    ):
        loss = mixup_cross_entropy(logits, bad, reduction="none")
        assert loss.isnan().all()
        assert torch.autograd.grad(loss.sum(), logits)[0].isnan().all()
    none = torch.zeros(0, dtype=torch.int64)
    for empty in (TwoHot(none, none, torch.tensor(0.5)), none, torch.zeros(0, 3)):
        assert mixup_cross_entropy(torch.zeros(0, 3), empty).isnan()
        assert mixup_cross_entropy(torch.zeros(0, 3), empty, reduction="sum") == 0
    assert mixup_cross_entropy(torch.zeros(2, 3).half(), target).dtype == torch.float32


# --- AM-Mixup ------------------------------------------------------------------------------------------------


def test_am_mixup_by_hand():
    # r = 3/4: row 0 is 3/4 (ln 16, 0) + 1/4 (0, 0) = (ln 8, 0), row 1 is (ln 2, 0); labels are the own ones
    S = torch.tensor([[log(16), 0.0], [0.0, 0.0]], dtype=f64)
    index, labels = torch.tensor([1, 0]), torch.tensor([0, 1])
    loss = am_mixup_loss(S, index, 0.75, labels, reduction="none")
    torch.testing.assert_close(loss.exp(), torch.tensor([9 / 8, 3], dtype=f64), **CLOSE)
    # r = 1/4: the same rows in the other order, and the partner's labels
    loss = am_mixup_loss(S, index, torch.tensor(0.25), labels, reduction="none")
    torch.testing.assert_close(loss.exp(), torch.tensor([3, 9 / 8], dtype=f64), **CLOSE)
    # at r = 1/2 the label is the own one
    loss = am_mixup_loss(S, index, 0.5, labels, reduction="none")
    torch.testing.assert_close(loss.exp(), torch.tensor([5 / 4, 5], dtype=f64), **CLOSE)


def test_am_mixup_of_logits_is_that_of_features():
    head, features = torch.nn.Linear(7, 5, dtype=f64), torch.randn(4, 7, dtype=f64)
    labels = torch.tensor([0, 3, 2, 4])
    expected = F.cross_entropy(head(mixup(features, INDEX, 0.6)), labels)
    torch.testing.assert_close(am_mixup_loss(head(features), INDEX, 0.6, labels), expected, **CLOSE)


def test_am_mixup_rate_and_bad_values():
    assert am_mixup_rate(0.0) == 1.0
    assert am_mixup_rate(0.5) == exp(-0.335)
    logits = torch.randn(4, 5, dtype=f64, requires_grad=True)
    labels = torch.tensor([0, 3, 2, 4])
    assert torch.autograd.gradgradcheck(lambda S: am_mixup_loss(S, INDEX, 0.6, labels), (logits,))
    for arguments in ((INDEX, NAN, labels), (INDEX, 1.5, labels), (INDEX + 1, 0.6, labels), (INDEX, 0.6, labels + 1)):
        loss = am_mixup_loss(logits, *arguments, reduction="none")
        assert loss.isnan().all()
        assert torch.autograd.grad(loss.sum(), logits)[0].isnan().all()
