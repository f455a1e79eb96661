"""timm's own loader, models, training task and metrics, with our mixing and loss where timm's were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from peers import peer
from torch import Tensor, nn

import icm_fast as icm
from icm_fast import reference

pytestmark = pytest.mark.long
C, SIZE, CPU = 10, 32, torch.device("cpu")
# As timm's train.py writes them.
MIXUP_ARGS: dict[str, Any] = {
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
    "cutmix_minmax": None,
    "prob": 1.0,
    "switch_prob": 0.5,
    "mode": "batch",
    "label_smoothing": 0.0,
    "num_classes": C,
}


@pytest.fixture(scope="module")
def timm() -> ModuleType:
    for name in ("timm.data", "timm.task", "timm.utils"):
        peer(name)
    return peer("timm")


class Pictures(torch.utils.data.Dataset):
    """(image, label), the image a PIL one until create_loader sets the transform."""

    def __init__(self, count: int) -> None:
        image = peer("PIL.Image")
        pixels = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
        self.images = [image.fromarray(p) for p in pixels]
        self.transform: Callable[[Any], Any] = lambda picture: picture

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.transform(self.images[i]), i % C


def loader_of(timm: ModuleType, count: int = 24, batch_size: int = 12, training: bool = True, **options: Any) -> Any:
    return timm.data.create_loader(
        Pictures(count),
        input_size=(3, SIZE, SIZE),
        batch_size=batch_size,
        is_training=training,
        num_workers=options.pop("num_workers", 0),
        device=CPU,
        **options,
    )


def swap_mixup(timm: ModuleType, **options: Any) -> tuple[Any, Any]:
    return loader_of(timm, use_prefetcher=False), icm.Mixup(**{**MIXUP_ARGS, **options})


def swap_collate(timm: ModuleType, **options: Any) -> tuple[Any, Any]:
    from icm_fast.integrations.timm import FastCollateMixup

    return loader_of(timm, collate_fn=FastCollateMixup(**{**MIXUP_ARGS, **options})), None


def swap_loss(timm: ModuleType, **options: Any) -> tuple[Any, Any]:
    return loader_of(timm, use_prefetcher=False), timm.data.Mixup(**{**MIXUP_ARGS, **options})


def swap_loss_prefetched(timm: ModuleType, **options: Any) -> tuple[Any, Any]:
    return loader_of(timm, collate_fn=timm.data.FastCollateMixup(**{**MIXUP_ARGS, **options})), None


def epoch(loader: Any, mixup_fn: Any) -> Iterator[tuple[Tensor, Any]]:
    """What train.py hands to the task: batches of the prefetcher, or mixed on the device."""
    for images, target in loader:
        yield (images, target) if mixup_fn is None else mixup_fn(images.to(CPU), target.to(device=CPU))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("swap", [swap_mixup, swap_collate, swap_loss, swap_loss_prefetched])
def test_training_and_validation(swap: Callable[..., Any], smoothing: float, timm: ModuleType) -> None:
    """train.py's loop: its loss is the one of the equations and falls on a batch seen again; validation is timm's."""
    model = timm.create_model("resnet10t", num_classes=C).to(memory_format=torch.channels_last)
    task = timm.task.ClassificationTask(model, criterion=icm.ICMLoss().to(device=CPU), device=CPU, verbose=False)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.02)
    loader, mixup_fn = swap(timm, label_smoothing=smoothing)
    batches = list(epoch(loader, mixup_fn))
    dense = smoothing > 0 or swap in (swap_loss, swap_loss_prefetched)
    assert len(batches) == 2 and all(isinstance(target, Tensor if dense else icm.MixedTarget) for _, target in batches)
    losses = timm.utils.AverageMeter()
    for images, target in batches[:1] * 6:
        images = images.contiguous(memory_format=torch.channels_last)
        result = task(images, target)
        truth = reference.icm_loss(result["output"].detach().double(), target)
        torch.testing.assert_close(result["loss"].detach().double(), truth, rtol=1e-5, atol=1e-5)
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()
        losses.update(result["loss"].item(), images.size(0))
    assert np.isfinite(losses.avg) and losses.val < losses.avg

    model.eval()
    top1 = timm.utils.AverageMeter()
    with torch.inference_mode():
        for images, labels in loader_of(timm, count=11, batch_size=4, training=False):
            output = model(images)
            for criterion in (nn.CrossEntropyLoss(), icm.ICMLoss()):
                torch.testing.assert_close(criterion(output, labels), nn.functional.cross_entropy(output, labels))
            top1.update(timm.utils.accuracy(output, labels, topk=(1, 5))[0].item(), len(images))
    assert top1.count == 11


@pytest.mark.parametrize("swap", [swap_mixup, swap_collate])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("asked", [None, "dense"])
def test_off_epoch_is_plain_training(
    asked: str | None, smoothing: float, swap: Callable[..., Any], timm: ModuleType
) -> None:
    loader, mixup_fn = swap(timm, label_smoothing=smoothing, target=asked)
    assert all(not mixed(target) for _, target in off(loader, mixup_fn))
    logits = torch.randn(12, C)
    for _, target in epoch(loader, mixup_fn):
        if asked == "dense":  # as timm's: one-hot rows, smoothed, for timm's losses
            classes = target.argmax(1)
            torch.testing.assert_close(target, timm.data.mixup.mixup_target(classes, C, smoothing=smoothing))
        else:
            assert target.dtype == torch.int64 and target.shape == (12,)
            torch.testing.assert_close(icm.ICMLoss()(logits, target), nn.functional.cross_entropy(logits, target))


def mixed(target: Any) -> bool:
    if isinstance(target, Tensor):
        return target.dim() == 2 and bool(((target > 0.02).sum(1) > 1).any())
    return isinstance(target, icm.MixedTarget)


def off(loader: Any, mixup_fn: Any) -> Iterator[tuple[Tensor, Any]]:
    """train.py at --mixup-off-epoch."""
    if getattr(loader, "mixup_enabled", False):
        loader.mixup_enabled = False
    elif mixup_fn is not None:
        mixup_fn.mixup_enabled = False
    return epoch(loader, mixup_fn)


def test_accuracy_of_mixed_targets_is_refused(timm: ModuleType) -> None:
    _, target = icm.Mixup(2.0)(torch.rand(8, 3, 4, 4), torch.arange(8))
    logits = nn.functional.one_hot(target.y_a, C).float()
    with pytest.raises(AttributeError, match="MixedTarget"):
        timm.utils.accuracy(logits, target)
    assert timm.utils.accuracy(logits, target.y_a)[0].item() == 100.0
