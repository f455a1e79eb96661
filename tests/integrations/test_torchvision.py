"""The loop of torchvision's references with our mixing as its collate function, or with its own and our loss."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from peers import peer
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

import icm_fast as icm
from icm_fast import reference

pytestmark = pytest.mark.long
C, SIZE = 10, 16


@pytest.fixture(scope="module")
def v2() -> ModuleType:
    return peer("torchvision.transforms.v2")


def dataset(v2: ModuleType, count: int = 23) -> Any:
    transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    return peer("torchvision.datasets").FakeData(count, (3, SIZE, SIZE), C, transform)


def ours(v2: ModuleType) -> Callable[..., Any]:
    mix = icm.Mixup(mixup_alpha=0.2, cutmix_alpha=1.0)
    return lambda batch: mix(*default_collate(batch))


def ours_dense(v2: ModuleType) -> Callable[..., Any]:
    mix = icm.Mixup(mixup_alpha=0.2, cutmix_alpha=1.0, target="dense", num_classes=C)
    return lambda batch: mix(*default_collate(batch))


def theirs(v2: ModuleType) -> Callable[..., Any]:
    mix = v2.RandomChoice([v2.MixUp(alpha=0.2, num_classes=C), v2.CutMix(alpha=1.0, num_classes=C)])
    return lambda batch: mix(*default_collate(batch))


def accuracy(output: Tensor, target: Tensor) -> float:
    """What the references' utils.accuracy asks of a target."""
    batch_size = target.size(0)
    if target.ndim == 2:
        target = target.max(dim=1)[1]
    _, prediction = output.topk(1, 1, True, True)
    return float(prediction.t().eq(target[None]).flatten().sum() * (100.0 / batch_size))


@pytest.mark.parametrize("mixing", [ours, ours_dense, theirs])
@pytest.mark.parametrize("workers", [0, 2])
def test_training_and_validation(mixing: Callable[..., Any], workers: int, v2: ModuleType) -> None:
    loader = DataLoader(dataset(v2), 8, collate_fn=mixing(v2), num_workers=workers)  # a last batch of 7
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, C))
    criterion, optimizer = icm.ICMLoss(), torch.optim.SGD(model.parameters(), lr=0.01)
    history: list[float] = []
    for seen, (image, target) in enumerate(loader):
        image, target = image.to("cpu"), target.to("cpu")
        assert target.size(0) == image.shape[0] == (7 if seen == 2 else 8)
        for _ in range(3):  # the batch again: its own loss falls
            output = model(image)
            loss = criterion(output, target)
            truth = reference.icm_loss(output.detach().double(), target)
            torch.testing.assert_close(loss.detach().double(), truth, rtol=1e-5, atol=1e-5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        assert history[-1] < history[-3]
        if mixing is not ours:
            assert 0 <= accuracy(output, target) <= 100
    assert len(history) == 9

    model.eval()
    with torch.inference_mode():
        for image, target in DataLoader(dataset(v2), 8):
            output = model(image)
            torch.testing.assert_close(criterion(output, target), nn.functional.cross_entropy(output, target))
            assert 0 <= accuracy(output, target) <= 100


@pytest.mark.parametrize("name", ["MixUp", "CutMix"])
def test_dense_and_mixed_targets_give_one_loss(name: str, v2: ModuleType) -> None:
    """What torchvision makes dense is a MixedTarget with lam on the sample itself and the one before it as partner."""
    images, labels = torch.rand(8, 3, SIZE, SIZE), torch.arange(8)
    torch.manual_seed(3)
    mixed, rows = getattr(v2, name)(num_classes=C)(images, labels)
    lam = rows[0, 0]
    assert abs(float(lam) - 0.5) > 0.01  # a swapped side would show
    target = icm.MixedTarget(labels, labels.roll(1), lam)
    torch.testing.assert_close(target.dense(C), rows)
    logits = torch.randn(8, C)
    torch.testing.assert_close(icm.ICMLoss()(logits, target), icm.ICMLoss()(logits, rows))
    if name == "MixUp":
        torch.testing.assert_close(icm.functional.mixup(images, torch.arange(8).roll(1), lam), mixed)


def test_mistakes_say_what_to_do(v2: ModuleType) -> None:
    """Mixed by both; one-hot labels; a target without one number per class."""
    images, labels = torch.rand(8, 3, SIZE, SIZE), torch.arange(8)
    with pytest.raises(TypeError, match="mixed once"):
        icm.Mixup()(*v2.MixUp(num_classes=C)(images, labels))
    with pytest.raises(TypeError, match=r"argmax\(1\)"):
        icm.Mixup()(images, nn.functional.one_hot(labels, C))
    with pytest.raises(ValueError, match=r"\(8, 10\) like the logits, got a float32 tensor of shape \(8, 5\)"):
        icm.ICMLoss()(torch.randn(8, C), v2.MixUp(num_classes=5)(images, labels % 5)[1])
