"""The repair of sums that underflow, and what an independent review broke before it was as it is."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import backends_of
from torch import Tensor

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast import reference
from icm_fast.testing.checks import check_icm_loss
from icm_fast.testing.formulations import index_gather
from icm_fast.testing.regimes import REGIMES, Case

BACKENDS = backends_of("icm_loss")
INF = math.inf


def run(case: Case, backend: str, grad: Tensor | None = None, **options: object) -> tuple[Tensor, Tensor]:
    leaf = case.logits.detach().requires_grad_()
    loss = F_icm.icm_loss(leaf, icm.MixedTarget(*case[1:]), backend=backend, **options)
    return loss.detach(), torch.autograd.grad(loss, leaf, torch.ones_like(loss) if grad is None else grad)[0]


def test_the_guard_fires_and_repairs(generator: torch.Generator) -> None:
    """Sums that underflow beside a shared exponential are formed again: `shift` in the statistics says so."""
    operator = torch.ops.icm_fast.icm_loss_fwd.cpu
    F_icm.icm_loss(torch.zeros(2, 2), icm.MixedTarget(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor(0.5)))
    fired = {}
    for name in ("normal", "uniform", "range_50", "range_500", "large", "masked", "masked_class"):
        case = REGIMES[name](64, 100, torch.float32, generator)
        _, _, row_stats, column_stats, _ = operator(*case, None, 0, True, True, 1)
        fired[name] = bool((row_stats[1] != 0).any() or (column_stats[1] != 0).any())
    assert not any(fired[name] for name in ("normal", "uniform", "range_50", "masked"))
    assert all(fired[name] for name in ("range_500", "large", "masked_class"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_single_axis_owes_nothing_to_the_other(backend: str) -> None:
    """An all -inf row or column is NaN on its own axis only, repaired or not."""
    logits = torch.tensor([[0.0, -200.0, -INF, 300.0], [0.0, 1.0, -INF, 0.0], [0.0, 1.0, -INF, 0.0]])
    case = Case(logits, torch.tensor([0, 1, 2]), torch.tensor([0, 3, 2]), torch.tensor([1.0, 0.5, 1.0]))
    grad = torch.tensor([1.0, 1.0, 0.0])
    results = run(case, backend, grad, axis="class", reduction="none")
    check_icm_loss(*results, case.logits, case, axis="class", reduction="none", grad_output=grad)

    logits = torch.tensor([[0.0, 300.0, 1.0], [-INF, -INF, -INF], [0.0, 1.0, 2.0]])
    case = Case(logits, torch.arange(3), torch.arange(3), torch.tensor(1.0))
    grad = torch.tensor([1.0, 0.0, 1.0])
    results = run(case, backend, grad, axis="pair", reduction="none")
    check_icm_loss(*results, case.logits, case, axis="pair", reduction="none", grad_output=grad)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_by_the_lowest_number(dtype: torch.dtype, backend: str, generator: torch.Generator) -> None:
    """A class masked by finfo.min, as many programs do: scores that tie must stay finite and tied."""
    case = REGIMES["normal"](64, 10, dtype, generator)
    case.logits[:, 3] = torch.finfo(dtype).min
    loss, dlogits = run(case, backend, axis="pair")
    truth = reference.icm_loss(case.logits.double(), case, axis="pair")
    assert loss.isfinite() and dlogits.isfinite().all()
    torch.testing.assert_close(loss.double(), truth, rtol=1e-4, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spike", [1e3, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("axis", ["both", "class", "pair"])
def test_one_logit_far_above_the_rest_costs_no_digits(
    axis: str, spike: float, backend: str, generator: torch.Generator
) -> None:
    """Its rounding must not reach the others, so the bound is torch's own error, without the general floor."""
    case = REGIMES["normal"](64, 10, torch.float32, generator)
    case.logits[0, 3] = spike
    _, dlogits = run(case, backend, axis=axis)
    truth_leaf = case.logits.double().requires_grad_()
    truth = torch.autograd.grad(reference.icm_loss(truth_leaf, case, axis=axis), truth_leaf)[0]
    leaf = case.logits.detach().requires_grad_()
    eager = torch.autograd.grad(index_gather(leaf, *case[1:], axis=axis), leaf)[0]
    ours_error, eager_error = ((g.double() - truth).abs().max().item() for g in (dlogits, eager))
    # 12: the rounding of log2(e) and of the difference to the offset, which torch does not have (see budget.py).
    assert ours_error <= 12 * eager_error + 4 * 2.0**-23 / 64


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [60.0, 180.0, 540.0])
def test_confident_columns_beside_rows_of_other_levels(
    spread: float, dtype: torch.dtype, backend: str, generator: torch.Generator
) -> None:
    """A row enters its columns' sums and its gradient with one and the same weight: no negative loss, no residue."""
    for batch_size in (17, 33, 300):
        labels = torch.arange(batch_size)
        logits = torch.randn(batch_size, batch_size, generator=generator, dtype=torch.float64)
        level = torch.linspace(0, 0.4 * spread, batch_size, dtype=torch.float64)
        level[-1] = spread
        logits = logits + level[:, None] + 1500 * torch.eye(batch_size)
        case = Case(logits.to(dtype), labels, labels, torch.tensor(1.0))
        loss, dlogits = run(case, backend, axis="pair", reduction="none")
        check_icm_loss(loss, dlogits, case.logits, case, axis="pair", reduction="none", what=f"B = {batch_size}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("grad", "scale"),
    [(65536.0, 7.5), (1e30, 7.5), (-1e30, 7.5), (1e37, 100.0)],  # the last: their product overflows, the gradient not
)
def test_huge_incoming_gradients(grad: float, scale: float, backend: str, generator: torch.Generator) -> None:
    for regime in ("lam_one", "normal", "range_200"):
        case = REGIMES[regime](16, 10, torch.float32, generator)
        g = torch.tensor(grad)
        loss, dlogits = run(case, backend, g, axis="pair", logit_scale=scale)
        check_icm_loss(loss, dlogits, case.logits, case, axis="pair", grad_output=g, logit_scale=scale)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_repair_whose_maxima_are_the_offsets(backend: str) -> None:
    """One NaN forces a repair though every shift is 0: the backward pass must know of it all the same."""
    logits = torch.full((80, 5), 3.0)
    logits[:32] = 0.0  # the first tile sets another offset for the column sums than the batch's median
    logits[40, 4] = math.nan
    labels = torch.arange(80) % 4
    labels[40] = 4
    case = Case(logits, labels, labels, torch.tensor(1.0))
    for axis in ("both", "class", "pair"):
        loss, dlogits = run(case, backend, axis=axis, reduction="none")
        check_icm_loss(loss, dlogits, case.logits, case, axis=axis, reduction="none")


@pytest.mark.parametrize("rows", [600, 603, 640])
@pytest.mark.parametrize("offset", [-80.0, -88.75, -266.2])
def test_rows_that_fill_no_tile_are_not_taken_for_lost_sums(rows: int, offset: float) -> None:
    """Of lanes without a row the weight may be infinite; repaired, such a batch would take 3 times as long."""
    generator = torch.Generator().manual_seed(0)
    case = REGIMES["normal"](rows, 50, torch.float32, generator)
    operator = torch.ops.icm_fast.icm_loss_fwd.cpu
    with torch.no_grad():
        _, _, row_stats, _, _ = operator(case.logits + offset, *case[1:], None, 0, True, True, 1)
    assert not row_stats[3].isnan().any()  # the mark of a repair
