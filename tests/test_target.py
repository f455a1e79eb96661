"""MixedTarget: what it keeps, converts and refuses (messages: test_validation.py)."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle

import pytest
import torch
from torch.utils.data import DataLoader

import icm_fast as icm


def make() -> icm.MixedTarget:
    return icm.MixedTarget(torch.tensor([0, 2, 1]), torch.tensor([2, 2, 0]), torch.tensor([0.75, 0.5, 0.0]))


def test_types_are_normalised_once() -> None:
    target = icm.MixedTarget(
        torch.tensor([1, 2], dtype=torch.int32), torch.tensor([3, 4], dtype=torch.uint8), torch.tensor(0.5).bfloat16()
    )
    assert target.y_a.dtype == target.y_b.dtype == torch.int64 and target.lam.dtype == torch.float32
    assert icm.MixedTarget(target.y_a, target.y_b, target.lam.double()).lam.dtype == torch.float64
    with pytest.raises(dataclasses.FrozenInstanceError):
        target.lam = torch.tensor(1.0)  # type: ignore[misc]


def test_looks_like_a_tensor_of_labels() -> None:
    target = make()
    assert len(target) == target.size(0) == target.shape[0] == 3
    assert target.size() == torch.Size([3]) and target.ndim == 1 and target.device == torch.device("cpu")
    assert target != make() and target == target  # compared by identity: an elementwise answer would surprise


def test_dense_and_back() -> None:
    target = make()
    rows = target.dense(3)
    assert rows.tolist() == [[0.75, 0.0, 0.25], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    assert torch.equal(icm.MixedTarget.from_dense(rows).dense(3), rows)
    assert icm.MixedTarget.from_dense(torch.ones(2, 1)).dense(1).tolist() == [[1.0], [1.0]]
    assert target.dense(4, dtype=torch.float64).dtype == torch.float64


def test_lam_is_the_weight_of_the_sample_itself_whoever_made_the_target() -> None:
    y_a, y_b = torch.tensor([0, 1]), torch.tensor([1, 0])
    by_tuple = icm.MixedTarget.from_tuple((y_a, y_b, 0.9))
    by_kornia = icm.MixedTarget.from_kornia(torch.tensor([[0.0, 1.0, 0.1], [1.0, 0.0, 0.1]]))  # weight of the partner
    for target in (by_tuple, by_kornia):
        torch.testing.assert_close(target.dense(2), torch.tensor([[0.9, 0.1], [0.1, 0.9]]))


def test_travels() -> None:
    target = dataclasses.replace(make(), clean=torch.tensor([0, 2, 1]))
    meta = target.to("meta", non_blocking=True)
    assert meta.device.type == "meta" and meta.lam.device.type == "meta" and meta.clean.device.type == "meta"
    kept = io.BytesIO()
    torch.save({"y_a": target.y_a, "target": target}, kept)
    kept.seek(0)
    loaded = torch.load(kept, weights_only=True)["target"]  # no code of a file is run
    for other in (loaded, copy.deepcopy(target), pickle.loads(pickle.dumps(target))):
        assert torch.equal(other.dense(3), target.dense(3)) and torch.equal(other.clean, target.clean)


def test_says_what_it_is_where_a_tensor_was_expected() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'reshape': .*mixup_accuracy.*dense\(num_classes\)"):
        make().reshape(1, -1)  # what metrics of other libraries begin with
    assert not hasattr(make(), "argmax")
    with pytest.raises(TypeError, match=r"compared with a tensor.*mixup_accuracy"):
        assert not torch.tensor([0, 1, 2]) == make()  # noqa: SIM201 - an accuracy of 0 without a word, else
    with pytest.raises(TypeError, match=r"expected a device, got torch\.float16"):
        make().to("cpu", torch.float16)
    with pytest.raises(TypeError, match="Integer labels go into every loss as they are"):
        icm.MixedTarget.from_dense(torch.tensor([1, 2]))


def collate(batch: list[int]) -> icm.MixedTarget:
    labels = torch.tensor(batch)
    return icm.MixedTarget(labels, labels.flip(0), torch.tensor(0.3))


def test_crosses_dataloader_workers() -> None:
    batches = list(DataLoader(list(range(8)), batch_size=4, collate_fn=collate, num_workers=1))
    assert [len(target) for target in batches] == [4, 4] and batches[0].y_b.tolist() == [3, 2, 1, 0]
