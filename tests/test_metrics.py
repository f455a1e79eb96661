"""mixup_accuracy: worked by hand, against its definition, and what it refuses."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

import icm_fast as icm
from icm_fast.metrics import UNIT, count_hits, mixup_accuracy

B, C = 33, 7


@pytest.fixture(params=["ties", "no ties"])
def logits(generator: torch.Generator, request: pytest.FixtureRequest) -> Tensor:
    """Exact in float16; equal scores in every row, or in none."""
    if request.param == "ties":
        return torch.randint(5, (B, C), generator=generator).float()
    return torch.rand(B, C, generator=generator).argsort(dim=1).float()


@pytest.fixture
def target(generator: torch.Generator) -> icm.MixedTarget:
    y_a, y_b = torch.randint(C, (2, B), generator=generator)
    return icm.MixedTarget(y_a, y_b, torch.rand(B, generator=generator))


def by_definition(logits: Tensor, rows: Tensor, k: int) -> float:
    """The mean weight of the k best classes; Python's sort is stable, so equal scores keep the order of the classes."""
    total = 0.0
    for scores, weights in zip(logits.tolist(), rows.tolist(), strict=True):
        best = sorted(range(len(scores)), key=lambda c: -scores[c])[:k]
        total += sum(weights[c] for c in best)
    return total / len(logits)


def test_worked_by_hand() -> None:
    logits = torch.tensor([[9.0, 1.0, 5.0], [1.0, 9.0, 5.0], [5.0, 1.0, 9.0], [9.0, 5.0, 1.0]])
    target = icm.MixedTarget(
        torch.tensor([0, 0, 2, 1]), torch.tensor([2, 1, 2, 2]), torch.tensor([0.75, 0.75, 0.5, 0.125])
    )
    # Right first: 0.75 (y_a), 0.25 (y_b), 1 (both), 0. Second: 0.25 (y_b), 0, 0, 0.125 (y_a). Third: the rest.
    top1, top2, top3 = mixup_accuracy(logits, target, topk=(1, 2, 3)).tolist()
    assert (top1, top2, top3) == (2.0 / 4, (2.0 + 0.375) / 4, 1.0)


def test_lam_is_the_weight_of_the_sample_itself() -> None:
    logits = torch.eye(2)  # predicts y_a of both
    target = icm.MixedTarget(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor(0.875))
    assert mixup_accuracy(logits, target).item() == 0.875
    assert mixup_accuracy(logits.flip(1), target).item() == 0.125


def test_every_kind_of_target_is_the_definition(logits: Tensor, target: icm.MixedTarget) -> None:
    rows, one_hot = target.dense(C, torch.float64), torch.eye(C)[target.y_a]
    for k in (1, 2, C):
        for given, weights in (
            (target, rows),
            (rows, rows),
            (rows * 0.9 + 0.1 / C, rows * 0.9 + 0.1 / C),
            (target.y_a, one_hot),
            (target.y_a.to(torch.uint8), one_hot),
        ):
            expected = by_definition(logits, weights, k)
            assert mixup_accuracy(logits, given, topk=(k,)).item() == pytest.approx(expected, abs=1e-6)


def test_hard_labels_are_the_ordinary_accuracy(logits: Tensor, target: icm.MixedTarget) -> None:
    expected = (logits.argmax(1) == target.y_a).float().mean()
    assert torch.equal(mixup_accuracy(logits, target.y_a)[0], expected)


def test_one_lam_for_the_batch_is_that_lam_for_each(logits: Tensor, target: icm.MixedTarget) -> None:
    one = dataclasses.replace(target, lam=torch.tensor(0.3))
    each = dataclasses.replace(target, lam=torch.full((B,), 0.3))
    assert torch.equal(mixup_accuracy(logits, one, (1, 3)), mixup_accuracy(logits, each, (1, 3)))


def test_equal_classes_count_once_whatever_lam(generator: torch.Generator) -> None:
    labels, lam = torch.randint(C, (B,), generator=generator), torch.rand(B, generator=generator)
    hits, samples, _ = count_hits("here", torch.eye(C)[labels], icm.MixedTarget(labels, labels, lam), (1,))
    assert hits.tolist() == [B * UNIT] and samples == B


def test_counts_are_exact_in_any_order(logits: Tensor, target: icm.MixedTarget, generator: torch.Generator) -> None:
    order = torch.randperm(B, generator=generator)
    whole = count_hits("here", logits, target, (1, 2))[0]
    parts = [
        count_hits("here", logits[at], icm.MixedTarget(target.y_a[at], target.y_b[at], target.lam[at]), (1, 2))[0]
        for at in order.split(5)
    ]
    assert torch.equal(torch.stack(parts).sum(0), whole)


def test_both_halves_of_keep_clean_count(logits: Tensor, target: icm.MixedTarget) -> None:
    with_clean = dataclasses.replace(target, clean=target.y_a)
    clean, mixed = mixup_accuracy(logits.flip(1), target.y_a), mixup_accuracy(logits, target)
    both = mixup_accuracy(torch.cat([logits.flip(1), logits]), with_clean)
    torch.testing.assert_close(both, (clean + mixed) / 2)
    assert torch.equal(mixup_accuracy(logits, with_clean), mixed)  # of the mixed half alone


@pytest.mark.parametrize("kind", ["mixed", "hard", "dense"])
def test_nan_scores_are_never_right(kind: str, target: icm.MixedTarget) -> None:
    """A diverged network must not look perfect."""
    given = {"mixed": target, "hard": target.y_a, "dense": target.dense(C)}[kind]
    assert mixup_accuracy(torch.full((B, C), torch.nan), given, (1, C)).tolist() == [0.0, 0.0]
    one_nan = torch.tensor([[torch.nan, 2.0, 1.0]])  # ranks first, as for argmax
    assert mixup_accuracy(one_nan, torch.tensor([1]), (1, 2)).tolist() == [0.0, 1.0]
    assert mixup_accuracy(one_nan, torch.tensor([[0.0, 1.0, 0.0]]), (1, 2)).tolist() == [0.0, 1.0]


def test_types_strides_and_an_empty_batch(logits: Tensor, target: icm.MixedTarget) -> None:
    expected = mixup_accuracy(logits, target)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert torch.equal(mixup_accuracy(logits.to(dtype).requires_grad_(), target), expected)
    strided = logits.T.contiguous().T
    assert torch.equal(mixup_accuracy(strided, target), expected) and not expected.requires_grad
    assert mixup_accuracy(torch.zeros(0, C), torch.zeros(0, dtype=torch.int64)).isnan().item()


def test_a_bad_dense_weight_gives_nan(logits: Tensor, target: icm.MixedTarget) -> None:
    rows = target.dense(C)
    for bad in (-0.5, 1.5, torch.nan):
        rows[0, 0] = bad
        assert mixup_accuracy(logits, rows).isnan().item()


def test_bad_values_say_which(logits: Tensor, target: icm.MixedTarget) -> None:
    beyond = target.y_a.clone()
    beyond[3] = C
    for given, text in (
        (beyond, r"labels in \[0, 7\).*target\[3\] = 7"),
        (-1 - beyond, r"labels in \[0, 7\).*target\[0\]"),
        (dataclasses.replace(target, y_b=beyond), r"y_b\[3\] = 7"),
        (dataclasses.replace(target, lam=torch.tensor(1.5)), r"lam in \[0, 1\].*1\.5"),
        (dataclasses.replace(target, lam=torch.tensor(torch.nan)), r"lam in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=text):
            mixup_accuracy(logits, given)


def test_bad_arguments_say_what_to_do(logits: Tensor, target: icm.MixedTarget) -> None:
    for error, text, call in (
        (TypeError, "MixedTarget.from_tuple", lambda: mixup_accuracy(logits, (target.y_a, target.y_b, 0.5))),
        (TypeError, "expected logits", lambda: mixup_accuracy(logits.argmax(1), target)),
        (ValueError, r"shape \(B, C\)", lambda: mixup_accuracy(logits[0], target)),
        (ValueError, "33 rows but target has 3", lambda: mixup_accuracy(logits, _first(target, 3))),
        (TypeError, r"tuple such as \(1, 5\), got 5", lambda: mixup_accuracy(logits, target, 5)),
        (TypeError, r"tuple such as \(1, 5\)", lambda: mixup_accuracy(logits, target, ())),
        (ValueError, r"1\.\.7, got 8", lambda: mixup_accuracy(logits, target, (1, 8))),
        (ValueError, r"1\.\.7, got 0", lambda: mixup_accuracy(logits, target, (0,))),
    ):
        with pytest.raises(error, match=text):
            call()


def _first(target: icm.MixedTarget, n: int) -> icm.MixedTarget:
    return icm.MixedTarget(target.y_a[:n], target.y_b[:n], target.lam[:n])


def test_where_nothing_is_read_bad_values_give_nan(
    logits: Tensor, target: icm.MixedTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: no index out of range, no wrong number."""
    monkeypatch.setattr("icm_fast.metrics.check_values", lambda *_: None)
    beyond = target.y_a + C
    for given in (beyond, -1 - beyond, dataclasses.replace(target, lam=torch.tensor(torch.nan))):
        assert mixup_accuracy(logits, given).isnan().item()
    assert not mixup_accuracy(logits, target).isnan().item()


def test_compiles_whole() -> None:
    logits, labels = torch.randn(8, C), torch.randint(C, (8,))
    target = icm.MixedTarget(labels, labels.flip(0), torch.tensor(0.3))
    torch._dynamo.reset()
    compiled = torch.compile(mixup_accuracy, fullgraph=True, backend="eager")
    for given in (target, labels):
        assert torch.equal(compiled(logits, given, (1, 2)), mixup_accuracy(logits, given, (1, 2)))
