"""Batches with one lam: exponentials factored, equal columns merged; and columns sorted by class."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast.testing import budget
from icm_fast.testing.checks import check_icm_loss
from icm_fast.testing.regimes import REGIMES, Case

# At least 256 columns, and two for each class that is used: from there on the CPU kernels factor. C = 2 and 7: less
# than a vector; (259, 7): more than a group of rows and a tile that is not full; (300, 100): no table of pairs.
SHAPES = [(256, 2), (259, 7), (300, 100)]


def loss_and_gradient(logits: Tensor, target: icm.MixedTarget, grad: Tensor | None = None, **options: object) -> tuple:
    leaf = logits.detach().requires_grad_()
    loss = F_icm.icm_loss(leaf, target, backend="cpu", **options)
    return loss.detach(), *torch.autograd.grad(loss, leaf, torch.ones_like(loss) if grad is None else grad)


@pytest.mark.parametrize("lam", [0.3, 0.0, 1.0, 0.5, 1e-30, 1 - 2.0**-24], ids=str)
@pytest.mark.parametrize("regime", REGIMES)
def test_one_lam_is_within_the_budget(regime: str, lam: float, generator: torch.Generator) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for shape in SHAPES if lam == 0.3 else SHAPES[1:2]:
            case = REGIMES[regime](*shape, dtype, generator)._replace(lam=torch.tensor(lam))
            target = icm.MixedTarget(case.y_a, case.y_b, case.lam)
            check_icm_loss(*loss_and_gradient(case.logits, target), case.logits, case, what=f"{dtype} {shape}")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("axis", ["both", "class", "pair"])
def test_equal_columns_with_incoming_gradients_of_their_own(
    axis: str, shape: tuple[int, int], generator: torch.Generator
) -> None:
    case = REGIMES["batch_lam"](*shape, torch.float32, generator)
    target = icm.MixedTarget(case.y_a, case.y_b, case.lam)
    grad = torch.randn(shape[0], generator=generator) * 100
    loss, dlogits = loss_and_gradient(case.logits, target, grad, axis=axis, reduction="none")
    check_icm_loss(loss, dlogits, case.logits, case, axis=axis, reduction="none", grad_output=grad)


def test_the_factors_are_reached(generator: torch.Generator) -> None:
    # The same numbers with lam given per sample take an exponential per score: close, and not the same bits. Without
    # the second half the tests of this file might all test that path.
    case = REGIMES["batch_lam"](257, 10, torch.float32, generator)
    one = loss_and_gradient(case.logits, icm.MixedTarget(case.y_a, case.y_b, case.lam))
    each = loss_and_gradient(case.logits, icm.MixedTarget(case.y_a, case.y_b, case.lam.repeat(257)))
    for ours, general in zip(one, each, strict=True):
        torch.testing.assert_close(ours, general, rtol=1e-5, atol=1e-7)
    assert not torch.equal(one[1], each[1])


def test_a_wrong_count_of_equal_columns_would_be_seen(generator: torch.Generator) -> None:
    # The negative control: what merging would give that forgot how often a column stands there.
    case = REGIMES["batch_lam"](256, 3, torch.float32, generator)
    pairs = torch.stack((case.y_a, case.y_b))
    first = [j for j in range(256) if not any((pairs[:, k] == pairs[:, j]).all() for k in range(j))]
    fewer = Case(case.logits[first], case.y_a[first], case.y_b[first], case.lam)
    wrong, _ = loss_and_gradient(fewer.logits, icm.MixedTarget(fewer.y_a, fewer.y_b, fewer.lam))
    loss, dlogits = loss_and_gradient(case.logits, icm.MixedTarget(case.y_a, case.y_b, case.lam))
    check_icm_loss(loss, dlogits, case.logits, case)
    with pytest.raises(AssertionError):  # by the loss alone: the gradient is the right one
        check_icm_loss(wrong, dlogits, case.logits, case)


# Tiles of four vectors of rows up to 2048 classes for the sums and up to 512 for the gradient, of two beyond; with
# 49 to 64 rows, which four vectors hold, and one row over.
@pytest.mark.parametrize("shape", [(49, 510), (65, 510), (65, 520), (1100, 2050)], ids=str)
@pytest.mark.parametrize("regime", ["normal", "range_200", "batch_lam"])
def test_wide_and_narrow_tiles(regime: str, shape: tuple[int, int], generator: torch.Generator) -> None:
    case = REGIMES[regime](*shape, torch.float32, generator)
    check_icm_loss(*loss_and_gradient(case.logits, icm.MixedTarget(case.y_a, case.y_b, case.lam)), case.logits, case)


@pytest.mark.parametrize("rows", [40, 300, 1000])
def test_the_order_of_the_columns_changes_roundings_alone(rows: int, generator: torch.Generator) -> None:
    # Rows of one process, columns of all: the columns' sums are returned in the order of the batch, not of the classes.
    case = REGIMES["normal"](rows, 10, torch.float64, generator)
    for lam in (case.lam, torch.tensor(0.3)):
        loss, dlogits = loss_and_gradient(case.logits, icm.MixedTarget(case.y_a, case.y_b, lam), reduction="none")
        order = torch.randperm(rows, generator=generator)
        shuffled = icm.MixedTarget(case.y_a[order], case.y_b[order], lam if lam.dim() == 0 else lam[order])
        again, again_dlogits = loss_and_gradient(case.logits[order], shuffled, reduction="none")
        torch.testing.assert_close(again, loss[order], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(again_dlogits, dlogits[order], rtol=1e-12, atol=1e-12)


def test_one_lam_is_the_same_for_any_number_of_threads(generator: torch.Generator) -> None:
    case = REGIMES["batch_lam"](2000, 40, torch.float32, generator)
    target = icm.MixedTarget(case.y_a, case.y_b, case.lam)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(loss_and_gradient(case.logits, target))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for ours, first in zip(other, results[0], strict=True):
            budget.check_same_bits(ours, first, "threads")
