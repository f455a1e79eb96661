"""The fused loss of AM-Mixup against the float64 reference, on every backend that has it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import backends_of
from torch import Tensor

from icm_fast import functional as F_icm
from icm_fast.testing import budget
from icm_fast.testing.am_mixup import check_am_mixup_loss
from icm_fast.testing.regimes import REGIMES, SHAPES

BACKENDS = backends_of("am_mixup_loss")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NAN, INF = math.nan, math.inf

# Exact in float32. 0 and 1: one row takes no part. 0.5: the label changes sides there.
RATES = (0.75, 0.5, 0.4375, 0.0, 1.0)


def loss_and_gradient(
    logits: Tensor, index: Tensor, rate: Any, labels: Tensor, backend: str, grad: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    leaf = logits.detach().requires_grad_()
    loss = F_icm.am_mixup_loss(leaf, index, rate, labels, backend=backend, **options)
    (dlogits,) = torch.autograd.grad(loss, leaf, torch.ones_like(loss) if grad is None else grad)
    return loss.detach(), dlogits


def drawn(
    regime: str, shape: tuple[int, int], dtype: torch.dtype, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, any index (no permutation, fixed points) and labels."""
    case = REGIMES[regime](*shape, dtype, generator)
    return case.logits, torch.randint(shape[0], (shape[0],), generator=generator), case.y_a


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("regime", REGIMES)
def test_loss_and_gradient_are_within_the_budget(
    regime: str, dtype: torch.dtype, backend: str, generator: torch.Generator
) -> None:
    for number, shape in enumerate(SHAPES):
        logits, index, labels = drawn(regime, shape, dtype, generator)
        before = logits.clone()
        for rate in (RATES[0], RATES[1 + number % 4]):
            loss, dlogits = loss_and_gradient(logits, index, rate, labels, backend)
            check_am_mixup_loss(loss, dlogits, logits, index, rate, labels, what=f"{shape} rate {rate}")
        budget.check_same_bits(logits, before, "logits after the call")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("pairing", ["permutation", "one partner for all", "identity"])
def test_pairings_reductions_and_incoming_gradients(
    pairing: str, reduction: str, backend: str, generator: torch.Generator
) -> None:
    shape = (33,) if reduction == "none" else ()
    index = {
        "permutation": torch.randperm(33, generator=generator),
        "one partner for all": torch.full((33,), 7),
        "identity": torch.arange(33),
    }[pairing]
    grads = (torch.randn(shape, generator=generator) * 1000, torch.tensor(0.25).expand(shape), torch.zeros(shape))
    for dtype, grad, rate in itertools.product(DTYPES, grads, RATES):
        logits, _, labels = drawn("normal", (33, 20), dtype, generator)
        incoming = grad.double() if dtype == torch.float64 else grad
        loss, dlogits = loss_and_gradient(logits, index, rate, labels, backend, incoming, reduction=reduction)
        assert loss.shape == shape
        check_am_mixup_loss(
            loss, dlogits, logits, index, rate, labels, reduction=reduction, grad_output=grad, what=f"rate {rate}"
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str) -> None:
    logits = torch.tensor([[0.0, 4.0], [8.0, 0.0]], dtype=torch.float64)
    labels, index = torch.tensor([0, 1]), torch.tensor([1, 0])
    # Rows (6, 1) and (2, 3) at 1/4: the partner's labels, 1 and 0.
    loss, _ = loss_and_gradient(logits, index, 0.25, labels, backend, reduction="none")
    expected = [5 + math.log1p(math.exp(-5)), 1 + math.log1p(math.exp(-1))]
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))
    # Rows (2, 3) and (6, 1) at 3/4: the own labels, 0 and 1.
    swapped, _ = loss_and_gradient(logits, index, 0.75, labels, backend, reduction="none")
    torch.testing.assert_close(swapped, loss.flip(0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_what_takes_no_part_is_not_read(dtype: torch.dtype, backend: str, generator: torch.Generator) -> None:
    logits = torch.randn(4, 19, generator=generator).to(dtype)
    logits[3] = NAN
    labels, index = torch.tensor([0, 18, 2, 3]), torch.tensor([3, 3, 0, 0])
    loss, dlogits = loss_and_gradient(logits, index, 1.0, labels, backend, reduction="none")
    assert torch.equal(loss.isnan(), torch.tensor([False, False, False, True]))
    assert dlogits[:3].isfinite().all() and dlogits[3].isnan().all()
    # At rate 0 nobody reads rows 1 and 2: their gradient is 0.
    loss, dlogits = loss_and_gradient(logits, index, 0.0, labels, backend, reduction="none")
    assert torch.equal(loss.isnan(), torch.tensor([True, True, False, False]))
    assert torch.equal(dlogits[1:3], torch.zeros_like(dlogits[1:3])) and dlogits[0].isfinite().all()
    fixed, _ = loss_and_gradient(logits[:1], torch.tensor([0]), 0.3, labels[:1], backend)
    expected = F.cross_entropy(logits[:1].to(fixed.dtype), labels[:1])
    torch.testing.assert_close(fixed, expected, rtol=10 * torch.finfo(fixed.dtype).eps, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(37, 50), (37, 7)], ids=str)
def test_strides_and_types(shape: tuple[int, int], backend: str, generator: torch.Generator) -> None:
    B, C = shape
    for dtype in DTYPES:
        logits, index, labels = drawn("normal", shape, dtype, generator)
        expected = loss_and_gradient(logits, index, 0.75, labels, backend)
        wide, padded, twice = (torch.zeros(s, dtype=dtype) for s in ((B, 2 * C + 1), (B, C + 3), (2 * B, C)))
        wide[:, 1::2], padded[:, 1 : C + 1], twice[::2] = logits, logits, logits
        # Without a fused multiply-add, or where classes are strided, a mixed logit is rounded once more.
        for view in (logits.T.contiguous().T, wide[:, 1::2]):
            loss, dlogits = loss_and_gradient(view, index, 0.75, labels, backend)
            check_am_mixup_loss(loss, dlogits, logits, index, 0.75, labels)
        for view in (padded[:, 1 : C + 1], twice[::2]):
            loss, dlogits = loss_and_gradient(view, index, 0.75, labels, backend)
            budget.check_same_bits(loss, expected[0], "strided")
            budget.check_same_bits(dlogits, expected[1], "strided")
        rate = torch.tensor(0.75, dtype=torch.float64)
        strided = torch.stack([index.int()] * 2, 1)[:, 0], rate, torch.stack([labels] * 3, 1)[:, 1]
        for arguments in (strided, (index.short(), rate.half(), labels.to(torch.uint8))):
            budget.check_same_bits(loss_and_gradient(logits, *arguments, backend)[0], expected[0], "types")


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty(backend: str) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    for reduction, expected in (("mean", NAN), ("sum", 0.0)):
        loss, dlogits = loss_and_gradient(torch.zeros(0, 10), none, 0.5, none, backend, reduction=reduction)
        assert dlogits.shape == (0, 10)
        budget.check_same_bits(loss, torch.tensor(expected), reduction)
    assert loss_and_gradient(torch.zeros(0, 10), none, 0.5, none, backend, reduction="none")[0].shape == (0,)


@pytest.mark.parametrize("fault", ["rate on the partner", "partner's label", "own part only", "scaled", "off by one"])
def test_planted_faults_are_rejected(fault: str, generator: torch.Generator) -> None:
    logits, index, labels = drawn("normal", (33, 20), torch.float32, generator)
    rate, wrong = 0.75, {"index": index, "rate": 0.75, "labels": labels}
    if fault == "rate on the partner":
        wrong["rate"] = 0.25
    if fault == "partner's label":
        wrong["labels"] = labels[index]
    if fault == "off by one":
        wrong["index"] = index.roll(1)
    loss, dlogits = loss_and_gradient(logits, wrong["index"], wrong["rate"], wrong["labels"], "reference")
    right = loss_and_gradient(logits, index, rate, labels, "reference")
    if fault == "scaled":
        loss, dlogits = loss * (1 + 1e-3), dlogits * (1 + 1e-3)
    if fault == "own part only":  # the gradient of a partner that is held constant
        leaf = logits.detach().requires_grad_()
        F.cross_entropy(rate * leaf + (1 - rate) * logits[index], labels).backward()
        loss, dlogits = right[0], leaf.grad
    with pytest.raises(AssertionError, match=r"dlogits.*beyond the budget"):
        check_am_mixup_loss(right[0], dlogits, logits, index, rate, labels)
    if fault != "own part only":
        with pytest.raises(AssertionError, match=r"loss.*beyond the budget"):
            check_am_mixup_loss(loss, right[1], logits, index, rate, labels)
