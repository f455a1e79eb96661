"""icm_fast.integrations.timm: batches that it collates, beside timm's own."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from peers import peer
from torch import Tensor

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast.mixing.mixup import _Plan

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def timm() -> ModuleType:
    peer("timm.data")
    return peer("timm")


@pytest.fixture(scope="module")
def collate_of(timm: ModuleType) -> Callable[..., Any]:
    from icm_fast.integrations.timm import FastCollateMixup

    return FastCollateMixup


def samples(count: int, kind: str = "array") -> list[tuple[Any, int]]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 9, 3), dtype=np.uint8)
    views = [np.rollaxis(p, 2) for p in pixels]  # timm's own layout
    return [(torch.from_numpy(v.copy()) if kind == "tensor" else v, i) for i, v in enumerate(views)]


def stacked(batch: list[tuple[Any, int]]) -> Tensor:
    return torch.stack([torch.as_tensor(image) for image, _ in batch])


def test_workers_that_persist_see_the_switch(timm: ModuleType, collate_of: Callable[..., Any]) -> None:
    collate = collate_of(mixup_alpha=8.0)
    loader = torch.utils.data.DataLoader(
        samples(12), 4, collate_fn=collate, num_workers=2, persistent_workers=True, multiprocessing_context="fork"
    )
    prefetched = timm.data.loader.PrefetchLoader(loader, device=torch.device("cpu"))
    assert prefetched.mixup_enabled
    assert all(isinstance(target, icm.MixedTarget) and float(target.lam) < 1 for _, target in prefetched)
    prefetched.mixup_enabled = False
    assert not collate.mixup_enabled
    labels = torch.cat([target for _, target in prefetched])
    assert labels.tolist() == list(range(12))
    prefetched.mixup_enabled = True
    assert all(isinstance(target, icm.MixedTarget) for _, target in prefetched)
    sent = pickle.loads(ForkingPickler.dumps(collate))  # as a worker of another start method receives it
    prefetched.mixup_enabled = False
    assert not sent.mixup_enabled


def boxes_and_weights(count: int, mode: str, kind: str) -> tuple[Tensor, Tensor]:
    """Per sample; weights of ten binary digits, for which every sum is exact in float32, halves among them."""
    each = torch.arange(count)
    each = torch.minimum(each, count - 1 - each) if mode == "pair" else each * (mode == "elem")
    weight = (379 + 64 * each) / 1024
    weight[each == 1] = 0.5
    box = torch.stack([each % 3, 3 + each, 1 + each % 2, 6 + each % 3], 1)
    cut = torch.tensor([{"mixup": False, "cutmix": True}.get(kind, i % 2 == 0) for i in each.tolist()])
    return torch.where(cut[:, None], box, 0), torch.where(cut, 1.0, weight)


@pytest.mark.parametrize("layout", ["array", "tensor"])
@pytest.mark.parametrize("kind", ["mixup", "cutmix", "either"])
@pytest.mark.parametrize("mode", ["batch", "elem", "pair"])
def test_pixels_and_targets_are_timms(
    mode: str, kind: str, layout: str, timm: ModuleType, collate_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given the same weights and boxes: to the bit, and those of functional.mixup, rounded."""
    count = 6
    box, weight = boxes_and_weights(count, mode, kind)
    drawn = count // 2 if mode == "pair" else count
    area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
    label_lam = torch.where(area > 0, 1 - area / 72.0, weight)

    ours = collate_of(1.0, mode=mode, pairing="flip")
    if mode == "batch":
        plan = _Plan(torch.arange(count).flip(0), weight[0], box[0], label_lam[0])
    else:
        plan = _Plan(torch.arange(count).flip(0), weight, box, label_lam)
    monkeypatch.setattr(ours.mix, "_draw", lambda images: plan)
    images, target = ours(samples(count, layout))

    theirs = timm.data.FastCollateMixup(1.0, mode=mode, label_smoothing=0.0, num_classes=count)
    cut = [bool(a) for a in area[:drawn]]
    boxes = iter([(y1, y2, x1, x2) for y1, y2, x1, x2 in box.tolist() if y2 > 0][: 1 if mode == "batch" else drawn])
    lams = iter(label_lam[area > 0].tolist())
    monkeypatch.setattr(timm.data.mixup, "cutmix_bbox_and_lam", lambda *_, **__: (next(boxes), next(lams)))
    wanted = torch.where(area > 0, 0.25, weight)[:drawn]
    monkeypatch.setattr(theirs, "_params_per_batch", lambda: (float(wanted[0]), cut[0]))
    monkeypatch.setattr(theirs, "_params_per_elem", lambda n: (wanted.numpy().copy(), np.array(cut)))
    # Its pair mode cuts in the very arrays that it is given.
    their_images, their_target = theirs(copy.deepcopy(samples(count, layout)))
    assert images.dtype == torch.uint8 and torch.equal(images, their_images)
    torch.testing.assert_close(target.dense(count), their_target)

    wide = stacked(samples(count)).float()
    blended = F_icm.mixup(wide, plan.index, weight)
    truth = torch.where((area > 0)[:, None, None, None], F_icm.mixup(wide, plan.index, 1.0, box=box), blended)
    assert torch.equal(images, truth.round().to(torch.uint8)) and not torch.equal(images.float(), wide)


@pytest.mark.parametrize("pairing", ["perm", "flip"])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_any_batch_size(batch_size: int, pairing: str, collate_of: Callable[..., Any]) -> None:
    batch = samples(batch_size)
    before = stacked(batch)
    for mode in ("batch", "elem"):
        images, target = collate_of(2.0, mode=mode, pairing=pairing)(batch)
        assert target.y_a.tolist() == list(range(batch_size)) and torch.equal(stacked(batch), before)
        exact = F_icm.mixup(before.double(), target.y_b, target.lam.double())
        assert float((images - exact).abs().max()) <= 0.5 + 1e-4


def test_clean_half_and_gate(collate_of: Callable[..., Any]) -> None:
    batch = samples(5)
    both, target = collate_of(2.0, 1.0, keep_clean=True)(batch)
    assert both.shape[0] == 10 and torch.equal(both[:5], stacked(batch)) and target.clean.tolist() == list(range(5))
    assert bool(icm.RegMixupLoss()(torch.randn(10, 5), target).isfinite())
    images, target = collate_of(2.0, prob=0.0)(batch)  # not mixed, and yet of a mixed batch: an IC loss
    assert torch.equal(images, stacked(batch)) and target.lam.item() == 1.0


BAD: dict[str, tuple[Callable[..., Any], type[Exception], tuple[str, ...]]] = {
    "half": (lambda new: new(mode="half"), ValueError, ("half", 'mode="elem"', "half the batch_size")),
    "normalised": (lambda new: new(mean=[0.5] * 3, std=[0.2] * 3), TypeError, ("mean", "PrefetchLoader normalises")),
    "backend": (lambda new: new(backend="cpu"), TypeError, ("backend", "CPU")),
    "no mixing": (lambda new: new(0.0), ValueError, ("mixup_alpha > 0",)),
    "float tensors": (lambda new: new()([(torch.zeros(3, 4, 4), 0)]), TypeError, ("uint8", "--no-prefetcher", "Mixup")),
    "float arrays": (lambda new: new()([(np.zeros((3, 4, 4)), 0)]), TypeError, ("float64", "use_prefetcher=True")),
    "pictures": (lambda new: new()([(peer("PIL.Image").new("RGB", (4, 4)), 0)]), TypeError, ("uint8", "Image")),
    "two shapes": (
        lambda new: new()([*samples(1), (np.zeros((3, 4, 4), np.uint8), 0)]),
        ValueError,
        ("one shape", "(3, 4, 4), (3, 8, 9)"),
    ),
    "one-hot labels": (
        lambda new: new()([(image, torch.eye(4)[label]) for image, label in samples(4)]),
        TypeError,
        ("integer labels", "argmax(1)"),
    ),
    "mixed twice": (lambda new: icm.Mixup()(*float_pair(new(num_classes=4)(samples(4)))), TypeError, ("mixed once",)),
}


def float_pair(batch: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
    return batch[0].float(), batch[1]


@pytest.mark.parametrize("name", BAD)
def test_mistakes_say_what_to_do(name: str, collate_of: Callable[..., Any]) -> None:
    function, exception, words = BAD[name]
    with pytest.raises(exception) as caught:
        function(collate_of)
    for word in words:
        assert word in str(caught.value)


def test_is_timms_own_kind(timm: ModuleType, collate_of: Callable[..., Any]) -> None:
    collate = collate_of(0.3, 1.0, mode="pair", num_classes=10)
    assert isinstance(collate, timm.data.FastCollateMixup)
    assert (collate.mixup_alpha, collate.cutmix_alpha, collate.mode, collate.num_classes) == (0.3, 1.0, "pair", 10)
    assert "mixup_alpha=0.3" in repr(collate)
    other = copy.deepcopy(collate)
    other.mixup_enabled = False
    assert collate.mixup_enabled  # a copy has a switch of its own
