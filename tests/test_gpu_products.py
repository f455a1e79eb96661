"""Races of what is made of matrix products, without a GPU: the truth of two views, and who takes part."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import chunked, floors, race, tables, truths
from benchmarks.gpu.contenders import contenders
from benchmarks.gpu.parts import Budget
from benchmarks.gpu.timing import StandInClock
from benchmarks.gpu.workloads import PRODUCTS, Spec, make
from icm_fast import reference
from icm_fast.testing.linear import Inputs, pairs
from icm_fast.testing.linear import _scales as linear_scales


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1.0, -2.5])
@pytest.mark.parametrize("shape", [(1, 3), (61, 17)], ids=str)
def test_the_chunked_truth_of_views_is_the_reference(
    shape: tuple[int, int],
    scale: float,
    dtype: torch.dtype,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunked, "CHUNK_BYTES", 8 * 61 * 4)
    x, y = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    given = Inputs(x, y, None, torch.tensor(scale))
    leaves = [each.double().requires_grad_() for each in (x, y, given.logit_scale)]
    loss = reference.contrastive_loss(*leaves)
    found = chunked.views(x, y, scale, dtype)
    results = found.loss, found.dx, found.dy, found.dscale
    torch.testing.assert_close(results, (loss.detach(), *torch.autograd.grad(loss, leaves)), rtol=1e-9, atol=1e-12)
    # From bounds, where the budget of the small sizes takes each score as it is.
    terms = reference.contrastive_loss(*(each.detach() for each in leaves), reduction="none")
    how = ("both", "mean", torch.float32, dtype, None)
    exact = linear_scales(given.leaves(torch.float64), pairs(shape[0]), terms, *how)
    assert (found.dx_scale >= exact.dfeatures).all() and (found.dy_scale >= exact.dweight).all()
    if shape[0] > 1:
        assert found.dx_scale.sum() < 6 * exact.dfeatures.sum()
        assert exact.loss / 2 < found.loss_scale < 2 * exact.loss


@pytest.mark.parametrize("operation", PRODUCTS)
def test_a_race_of_what_is_made_of_products(operation: str) -> None:
    spec = Spec.parse(f"{operation}-9x7x5" if operation == "linear_icm_loss" else f"{operation}-9x5")
    workload = make(spec, "cpu")
    found = contenders(workload, ["plain"], "cpu")
    assert ("icm_fast cpu, icm_loss of full logits" in found) == (operation == "linear_icm_loss")
    assert [name for name in found if tables.is_function(name)] == ["icm_fast cpu"]
    track = race.Race(spec, StandInClock(), Budget.of(60), lambda name: truths.truth(workload, name))
    results = track.run(found, 0.05)
    assert all(result["error"] < 1e-5 for result in results.values())
    entry = {"results": results, "finished": True, "work": floors.described(spec, floors.Rates(4.8e12, 4.2e12, 7e14))}
    text = tables.race(spec, entry)
    assert "of a large square one" in text and text.count("x faster") + text.count("x slower") == len(results) - 1


def test_who_has_no_kernel_takes_no_part() -> None:
    found = contenders(make(Spec.parse("linear_icm_loss-9x7x5"), "cpu"), [], "cuda")
    whole = "icm_loss of full logits"
    ours = ["icm_fast auto", "icm_fast triton"]
    assert list(found) == [*ours, f"icm_fast cuda, {whole}", f"icm_fast triton, {whole}"]
    assert [name for name in found if tables.is_function(name)] == ours
    assert list(contenders(make(Spec.parse("contrastive_loss-9x5"), "cpu"), [], "cuda")) == ["icm_fast triton"]
