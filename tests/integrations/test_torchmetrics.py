"""MixedAccuracy as a torchmetrics metric: worked by hand, exact over batches and processes."""

from __future__ import annotations

import copy
import importlib
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers import run_python
from peers import peer
from torch import Tensor

import icm_fast as icm
from icm_fast.metrics import mixup_accuracy

pytestmark = pytest.mark.long
B, C = 50, 7


@pytest.fixture(scope="module")
def ours() -> ModuleType:
    peer("torchmetrics")
    return importlib.import_module("icm_fast.integrations.torchmetrics")


@pytest.fixture
def batch(generator: torch.Generator) -> tuple[Tensor, icm.MixedTarget]:
    y_a, y_b = torch.randint(C, (2, B), generator=generator)
    logits = torch.randn(B, C, generator=generator)
    return logits, icm.MixedTarget(y_a, y_b, torch.rand(B, generator=generator))


def cut(target: icm.MixedTarget, at: Tensor) -> icm.MixedTarget:
    return icm.MixedTarget(target.y_a[at], target.y_b[at], target.lam[at])


def test_hard_labels_equal_torchmetrics_own(ours: ModuleType, batch: Any) -> None:
    logits, target = batch
    for k in (1, 3):
        theirs = peer("torchmetrics").Accuracy(task="multiclass", num_classes=C, top_k=k, average="micro")
        mine = ours.MixedAccuracy(top_k=k)
        for at in torch.arange(B).split(13):
            torch.testing.assert_close(mine(logits[at], target.y_a[at]), theirs(logits[at], target.y_a[at]))
        torch.testing.assert_close(mine.compute(), theirs.compute())


def test_batches_add_up_to_the_whole_in_any_order(ours: ModuleType, batch: Any, generator: torch.Generator) -> None:
    logits, target = batch
    whole = mixup_accuracy(logits, target)[0]
    for _ in range(3):
        accuracy = ours.MixedAccuracy()
        for at in torch.randperm(B, generator=generator).split(8):  # the last one smaller
            accuracy.update(logits[at], cut(target, at))
        assert torch.equal(accuracy.compute(), whole)
    accuracy.reset()
    accuracy.update(logits[:3], cut(target, torch.arange(3)))
    assert torch.equal(accuracy.compute(), mixup_accuracy(logits[:3], cut(target, torch.arange(3)))[0])


def test_kinds_of_target_may_change(ours: ModuleType) -> None:
    """RegMixup's two halves, then hard labels, then dense ones: 2 rows each."""
    logits, labels = torch.eye(2), torch.tensor([0, 1])
    accuracy = ours.MixedAccuracy()
    accuracy.update(logits.repeat(2, 1), icm.MixedTarget(labels, labels.flip(0), torch.tensor(0.75), clean=labels))
    accuracy.update(logits, labels.flip(0))
    accuracy.update(logits, torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    assert accuracy.compute().item() == (2 + 1.5 + 0 + 0.5) / 8


def test_a_modules_type_does_not_reach_the_sums(ours: ModuleType, batch: Any) -> None:
    """torchmetrics lets `.to(dtype)` of a module convert floating-point states: sums would round to 8 bits."""
    logits, target = batch
    module = torch.nn.ModuleDict({"accuracy": ours.MixedAccuracy()}).to(torch.bfloat16)
    for _ in range(50):
        module["accuracy"].update(logits.bfloat16().float(), target)
    expected = mixup_accuracy(logits.bfloat16(), target)[0]
    assert torch.equal(module["accuracy"].compute(), expected)


def test_works_in_a_collection_and_is_copied(ours: ModuleType, batch: Any) -> None:
    collection = peer("torchmetrics").MetricCollection(
        {"top1": ours.MixedAccuracy(), "top3": ours.MixedAccuracy(top_k=3)}
    )
    for _ in range(2):  # equal states of different top_k must not be shared after the first update
        collection.update(*batch)
    top1, top3 = mixup_accuracy(*batch, topk=(1, 3))
    for metrics in (collection, copy.deepcopy(collection)):
        assert metrics.compute() == {"top1": top1, "top3": top3} and top1 != top3


def test_processes_give_the_accuracy_of_all(ours: ModuleType) -> None:
    """Two processes with unequal shares; each has the result of one process over all."""
    run_python(
        "import sys; sys.path.insert(0, 'tests')\n"
        "from peers import peer; peer('torchmetrics')\n"
        "import tempfile, torch, torch.distributed as dist, torch.multiprocessing as mp\n"
        "import icm_fast as icm\n"
        "from icm_fast.integrations.torchmetrics import MixedAccuracy\n"
        "logits, labels = torch.randn(30, 5), torch.randint(5, (2, 30))\n"
        "lam, single = torch.rand(30), MixedAccuracy()\n"
        "target = lambda at: icm.MixedTarget(labels[0, at], labels[1, at], lam[at])\n"
        "single.update(logits, target(slice(None)))\n"
        "def work(rank, file):\n"
        "    dist.init_process_group('gloo', init_method=f'file://{file}', rank=rank, world_size=2)\n"
        "    accuracy = MixedAccuracy()\n"
        "    for at in torch.arange(30).split([11, 19])[rank].split(4): accuracy.update(logits[at], target(at))\n"
        "    assert torch.equal(accuracy.compute(), single.compute()), rank\n"
        "    dist.destroy_process_group()\n"
        "mp.start_processes(work, (tempfile.mktemp(),), nprocs=2, start_method='fork')\n"
    )


def test_bad_values_and_no_samples(ours: ModuleType, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, target = batch
    accuracy = ours.MixedAccuracy()
    with pytest.raises(ValueError, match=r"MixedAccuracy: expected labels in \[0, 7\)"):
        accuracy.update(logits, target.y_a + C)
    with pytest.raises(TypeError, match=r"MixedAccuracy.*MixedTarget.from_tuple"):
        accuracy.update(logits, (target.y_a, target.y_b, 0.5))
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert ours.MixedAccuracy().compute().isnan()
    monkeypatch.setattr("icm_fast.metrics.check_values", lambda *_: None)  # as on a GPU
    accuracy.update(logits, target)
    accuracy.update(logits, target.y_a + C)
    assert accuracy.compute().isnan()


def test_torchmetrics_own_refuses_mixed_targets(batch: Any) -> None:
    """Which the docstring promises: no wrong number, an error."""
    theirs = peer("torchmetrics").Accuracy(task="multiclass", num_classes=C)
    with pytest.raises((AttributeError, TypeError)):
        theirs(*batch)
