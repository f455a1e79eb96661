"""Mixup, RemixRule and AMMixup: what they draw, what images and labels become of it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast import reference
from icm_fast.testing import budget

B, C, H, W = 8, 3, 12, 10
LABELS = torch.arange(B)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distinct_images(batch_size: int = B, dtype: torch.dtype = torch.float32) -> Tensor:
    """Image i is 2^i throughout, so that a mixed pixel names its two sources and their weights."""
    return (2.0 ** torch.arange(batch_size)).to(dtype)[:, None, None, None].expand(batch_size, C, H, W).contiguous()


def expected_images(target: icm.MixedTarget, images: Tensor) -> Tensor:
    lam = target.lam.expand(len(target))[:, None, None, None]
    return lam * images[target.y_a] + (1 - lam) * images[target.y_b]


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("mode", ["batch", "elem", "pair"])
@pytest.mark.parametrize("batch_size", [1, 2, 7, 8])
def test_labels_tell_what_was_done_to_the_images(batch_size: int, mode: str, backend: str | None) -> None:
    images, labels = distinct_images(batch_size), torch.arange(batch_size)
    mix = icm.Mixup(mixup_alpha=2.0, mode=mode, pairing="flip", generator=seeded(), backend=backend)
    before = images.clone()
    mixed, target = mix(images, labels)
    assert target.lam.shape == (() if mode == "batch" else (batch_size,))
    assert target.y_a.tolist() == labels.tolist() and target.y_b.tolist() == labels.tolist()[::-1]
    assert bool(((target.lam > 0) & (target.lam < 1) & (target.lam != 0.5)).all())  # asymmetric: a swapped side shows
    torch.testing.assert_close(mixed, expected_images(target, images))
    budget.check_same_bits(images, before, "images")
    if mode == "pair":
        assert target.lam.tolist() == target.lam.flip(0).tolist()


@pytest.mark.parametrize("pairing", ["perm", "flip", "roll"])
def test_pairings(pairing: str) -> None:
    mixed, target = icm.Mixup(1.0, pairing=pairing, generator=seeded())(distinct_images(), LABELS)
    fixed = {"flip": [7, 6, 5, 4, 3, 2, 1, 0], "roll": [7, 0, 1, 2, 3, 4, 5, 6]}
    assert target.y_b.tolist() == fixed.get(pairing, target.y_b.tolist())
    assert sorted(target.y_b.tolist()) == LABELS.tolist()
    torch.testing.assert_close(mixed, expected_images(target, distinct_images()))


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("mode", ["batch", "elem", "pair"])
@pytest.mark.parametrize("box", [{"cutmix_alpha": 1.0}, {"cutmix_minmax": (0.3, 0.6)}], ids=["alpha", "minmax"])
def test_cutmix_labels_are_the_shares_of_pixels(box: dict[str, Any], mode: str, backend: str | None) -> None:
    images = distinct_images()
    for seed in range(20):
        mix = icm.Mixup(0.0, mode=mode, pairing="flip", generator=seeded(seed), backend=backend, **box)
        mixed, target = mix(images, LABELS)
        own, other = mixed == images, mixed == images.flip(0)
        assert bool((own | other).all())
        torch.testing.assert_close(own.float().mean((1, 2, 3)), target.lam.expand(B))
        if "cutmix_minmax" in box:
            rows, columns = other[:, 0].any(2).sum(1), other[:, 0].any(1).sum(1)
            assert int(rows.min()) >= 3 and int(rows.max()) <= 7 and int(columns.min()) >= 3 and int(columns.max()) <= 6


def test_uncorrected_lam_is_the_drawn_one() -> None:
    options: dict[str, Any] = {"cutmix_alpha": 1.0, "mode": "elem"}
    _, corrected = icm.Mixup(0.0, generator=seeded(), **options)(distinct_images(), LABELS)
    _, drawn = icm.Mixup(0.0, correct_lam=False, generator=seeded(), **options)(distinct_images(), LABELS)
    assert bool((corrected.lam >= drawn.lam - 1e-6).all()) and not torch.equal(corrected.lam, drawn.lam)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_switch_between_mixup_and_cutmix(backend: str | None) -> None:
    images, cut = distinct_images(), 0
    mix = icm.Mixup(8.0, 1.0, switch_prob=0.25, mode="elem", pairing="flip", generator=seeded(), backend=backend)
    for _ in range(100):
        mixed, target = mix(images, LABELS)
        is_cut = ((mixed == images) | (mixed == images.flip(0))).flatten(1).all(1)
        cut += int(is_cut.sum())
        blended = expected_images(target, images)
        torch.testing.assert_close(mixed[~is_cut], blended[~is_cut])
        torch.testing.assert_close(mixed.mean((1, 2, 3)), blended.mean((1, 2, 3)), rtol=1e-5, atol=1e-5)
    assert abs(cut - 200) < 5 * math.sqrt(800 * 0.25 * 0.75)  # five deviations of a binomial draw


@pytest.mark.parametrize("options", [{}, {"cutmix_alpha": 1.0}, {"mixup_alpha": 0, "cutmix_alpha": 1.0}], ids=str)
def test_gate(options: dict[str, Any]) -> None:
    images = distinct_images()
    mix = icm.Mixup(**{"mixup_alpha": 8.0, **options}, prob=0.3, mode="elem", pairing="roll", generator=seeded())
    mixed_batches = 0
    for _ in range(300):
        mixed, target = mix(images, LABELS)
        if torch.equal(mixed, images):  # a mixed batch of eight lam of 1, or eight empty boxes, does not occur
            assert target.lam.tolist() == [1.0] * B
        else:
            mixed_batches += 1
    assert abs(mixed_batches - 90) < 5 * math.sqrt(300 * 0.3 * 0.7)


def test_gate_at_its_ends() -> None:
    images = distinct_images()
    for _ in range(20):
        mixed, target = icm.Mixup(1.0, prob=0.0)(images, LABELS)
        assert torch.equal(mixed, images) and target.lam.item() == 1.0
        assert icm.Mixup(1.0, prob=1.0)(images, LABELS)[1].lam.item() != 1.0


@pytest.mark.parametrize("alpha", [0.2, 1.0, 20.0])
def test_distribution_of_lam(alpha: float) -> None:
    lam = F_icm.sample_lam(alpha, 20000, generator=seeded()).double()
    variance = 1 / (4 * (2 * alpha + 1))  # of Beta(alpha, alpha), whose mean is 1/2
    assert abs(lam.mean() - 0.5) < 5 * math.sqrt(variance / 20000)
    assert lam.var().item() == pytest.approx(variance, rel=0.05)
    _, target = icm.Mixup(alpha, mode="elem", generator=seeded())(torch.zeros(20000, 1), torch.zeros(20000).long())
    assert target.lam.var().item() == pytest.approx(variance, rel=0.05)


def test_tiny_alpha_is_zero_or_one_and_not_one_half() -> None:
    lam = F_icm.sample_lam(0.01, 5000, generator=seeded())
    assert bool(((lam >= 0) & (lam <= 1)).all()) and float(((lam > 0.01) & (lam < 0.99)).float().mean()) < 0.1


def test_generator_makes_draws_reproducible_and_state_continues_them() -> None:
    mix = icm.Mixup(1.0, 1.0, prob=0.9, mode="elem", generator=seeded(3))
    torch.rand(5)  # the global generator has no part in it
    first = [mix(distinct_images(), LABELS) for _ in range(3)]
    state = mix.state_dict()
    fourth = mix(distinct_images(), LABELS)
    again = icm.Mixup(1.0, 1.0, prob=0.9, mode="elem", generator=seeded(3))
    for images, target in first:
        other_images, other = again(distinct_images(), LABELS)
        assert torch.equal(images, other_images) and torch.equal(target.lam, other.lam)
    resumed = icm.Mixup(1.0, 1.0, prob=0.9, mode="elem", generator=seeded(99))
    resumed.load_state_dict(state)
    assert torch.equal(resumed(distinct_images(), LABELS)[0], fourth[0])
    torch.manual_seed(7)
    unseeded = icm.Mixup(1.0)(distinct_images(), LABELS)[1].lam
    torch.manual_seed(7)
    assert torch.equal(icm.Mixup(1.0)(distinct_images(), LABELS)[1].lam, unseeded)


def test_remix_gives_labels_a_lam_of_their_own() -> None:
    counts, images = torch.tensor([400, 200, 100, 50, 30, 20, 10, 5]), distinct_images()
    rule = icm.RemixRule(counts, kappa=3.0, tau=0.5)
    for seed in range(10):
        plain = icm.Mixup(1.0, generator=seeded(seed))(images, LABELS)
        mixed, target = icm.Mixup(1.0, remix=rule, generator=seeded(seed))(images, LABELS)
        assert torch.equal(mixed, plain[0])
        expected = reference.remix_lam(plain[1].lam, LABELS, target.y_b, counts)
        assert torch.equal(target.lam, expected) and target.lam.shape == (B,)
    head_to_tail = rule.lam(torch.tensor(0.4), torch.tensor([0, 7]), torch.tensor([7, 0]))
    assert head_to_tail.tolist() == pytest.approx([0.0, 0.4])  # 1 - lam = 0.6 is not below tau


@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_keep_clean(mode: str) -> None:
    images = distinct_images()
    both, target = icm.Mixup(1.0, 1.0, mode=mode, keep_clean=True, generator=seeded())(images, LABELS)
    mixed, same = icm.Mixup(1.0, 1.0, mode=mode, generator=seeded())(images, LABELS)
    assert torch.equal(both, torch.cat([images, mixed])) and torch.equal(target.lam, same.lam)
    assert target.clean is not None and torch.equal(target.clean, LABELS) and same.clean is None


def test_uint8_is_normalised_on_the_way() -> None:
    pixels = torch.randint(256, (B, C, H, W), dtype=torch.uint8)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    for dtype in (None, torch.bfloat16):
        mixed, target = icm.Mixup(1.0, mean=mean, std=std, dtype=dtype, generator=seeded())(pixels, LABELS)
        truth = reference.mixup(pixels, target.y_b, target.lam, mean=mean, std=std, dtype=dtype)
        torch.testing.assert_close(mixed, truth)
        assert mixed.dtype == (dtype or torch.float32)


def test_disabled_mixing_is_plain_training() -> None:
    pixels = torch.randint(256, (B, C, H, W), dtype=torch.uint8)
    mix = icm.Mixup(1.0, 1.0, mean=[0.5] * C, std=[0.25] * C, keep_clean=True, generator=seeded())
    state = mix.state_dict()["generator"]
    mix.mixup_enabled = False
    images, labels = mix(pixels, LABELS.short())
    torch.testing.assert_close(images, (pixels / 255 - 0.5) / 0.25)
    assert torch.equal(labels, LABELS) and labels.dtype == torch.int64
    logits = torch.randn(B, 10)
    for criterion in (icm.ICMLoss(), icm.RegMixupLoss(), icm.MixupCrossEntropyLoss()):
        torch.testing.assert_close(criterion(logits, labels), torch.nn.functional.cross_entropy(logits, LABELS))
    assert torch.equal(mix.state_dict()["generator"], state)
    mix.mixup_enabled = True
    assert mix(pixels, LABELS)[0].shape[0] == 2 * B

    dense = icm.Mixup(1.0, target="dense", num_classes=10, label_smoothing=0.1)
    dense.mixup_enabled = False
    smoothed = torch.full((B, 10), 0.01).scatter_(1, LABELS[:, None], 0.91)
    torch.testing.assert_close(dense(distinct_images(), LABELS)[1], smoothed)


@pytest.mark.parametrize("mode", ["batch", "elem", "pair"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_timms_arguments_all_count(mode: str, smoothing: float, caplog: pytest.LogCaptureFixture) -> None:
    """As timm's train.py names them, every one of them: nothing is dropped, and of smoothing the log says more."""
    mix = icm.Mixup(
        mixup_alpha=0.8,
        cutmix_alpha=1.0,
        cutmix_minmax=None,
        prob=1.0,
        switch_prob=0.5,
        mode=mode,
        label_smoothing=smoothing,
        num_classes=10,
    )
    _, target = mix(distinct_images(), LABELS)
    assert mix.pairing == ("flip" if mode == "pair" else "perm")
    if smoothing:
        assert target.shape == (B, 10) and float(target.min()) == pytest.approx(smoothing / 10)
        assert "label_smoothing=0.1" in caplog.text and "pair axis" in caplog.text
    else:
        assert isinstance(target, icm.MixedTarget) and caplog.text == ""


def test_dense_target_is_timms() -> None:
    _, rows = icm.Mixup(1.0, target="dense", num_classes=10, label_smoothing=0.1, generator=seeded())(
        distinct_images(), LABELS
    )
    _, target = icm.Mixup(1.0, generator=seeded())(distinct_images(), LABELS)
    off, on = 0.1 / 10, 1 - 0.1 + 0.1 / 10  # timm's one_hot

    def smooth(y: Tensor) -> Tensor:
        return torch.full((B, 10), off).scatter_(1, y[:, None], on)

    torch.testing.assert_close(rows, smooth(target.y_a) * target.lam + smooth(target.y_b) * (1 - target.lam))


def test_empty_batch_and_narrow_labels() -> None:
    for options in itertools.product(("batch", "elem", "pair"), (0.0, 1.0)):
        mix = icm.Mixup(1.0, options[1], mode=options[0], pairing="flip")
        mixed, target = mix(torch.empty(0, C, H, W), torch.empty(0, dtype=torch.int64))
        assert mixed.shape == (0, C, H, W) and len(target) == 0
    assert icm.Mixup(1.0)(torch.zeros(3, 5), torch.tensor([1, 2, 3], dtype=torch.int16))[1].y_a.dtype == torch.int64


def test_images_are_differentiable_and_feed_the_loss() -> None:
    features = torch.randn(B, 16, requires_grad=True)
    mixed, target = icm.Mixup(1.0)(features, LABELS)
    icm.functional.icm_loss(mixed, target, backend="reference").backward()
    assert features.grad is not None and bool(features.grad.isfinite().all())


def test_compiles_whole() -> None:
    torch._dynamo.reset()
    mix = icm.Mixup(1.0, 1.0, prob=0.5)
    compiled = torch.compile(lambda x, y: mix(x, y), backend="eager", fullgraph=True)
    mixed, target = compiled(distinct_images(), LABELS)
    assert mixed.shape == (B, C, H, W) and 0 <= float(target.lam) <= 1


def test_am_mixup(generator: torch.Generator) -> None:
    am_mixup = icm.AMMixup(generator=generator)
    features = (2.0 ** torch.arange(B))[:, None].repeat(1, 5).requires_grad_()
    for accuracy in (0.0, 0.5, 1.0):
        am_mixup.update(accuracy)
        assert am_mixup.rate == pytest.approx(math.exp(-0.67 * accuracy))
        mixed, labels = am_mixup(features, LABELS)
        assert torch.equal(labels, LABELS)
    strong = icm.AMMixup(beta=2.0, generator=generator)
    strong.update(1.0)  # rate 0.135: the partner's label
    mixed, labels = strong(features, LABELS)
    torch.testing.assert_close(mixed, strong.rate * features + (1 - strong.rate) * features[labels])
    (dx,) = torch.autograd.grad(mixed.sum(), features)
    torch.testing.assert_close(dx, torch.ones_like(features))
    other = icm.AMMixup(beta=2.0, generator=seeded(5))
    other.load_state_dict(strong.state_dict())
    assert other.rate == strong.rate and torch.equal(other(features, LABELS)[1], strong(features, LABELS)[1])


def test_repr_names_the_settings() -> None:
    assert "mixup_alpha=0.2" in repr(icm.Mixup()) and "cutmix_minmax=(0.2, 0.5)" in repr(
        icm.Mixup(cutmix_minmax=(0.2, 0.5))
    )
    assert repr(icm.AMMixup()) == "AMMixup(beta=0.67, rate=1)"
