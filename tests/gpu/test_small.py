"""A few small calls of everything: short enough to run under compute-sanitizer."""

from __future__ import annotations

import itertools

import pytest
import score_cases
import torch

from .conftest import Covers
from .problems import Kernel, layouts, of, problem

SHAPES = ((1, 1), (7, 10), (33, 257), (130, 100), (600, 12))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_small(
    shape: tuple[int, int],
    dtype: torch.dtype,
    kernel: Kernel,
    device: torch.device,
    generator: torch.Generator,
    covers: Covers,
) -> None:
    for regime in ("normal", "range_500"):
        given = problem(kernel.operation, shape, dtype, device, generator, regime)
        given.run_and_check(kernel.backend)
    covers(kernel, dtype, shape)


@of("contrastive_loss")
@pytest.mark.parametrize("regime", ["normal", "masked_row", "masked_column"])
def test_given_scores(regime: str, kernel: Kernel, device: torch.device) -> None:
    """The passes over a block of scores, without the products before and after them."""
    operators = torch.ops.icm_fast
    for shape, dtype in itertools.product(score_cases.SHAPES, (torch.float32, torch.bfloat16)):
        scores, scale = score_cases.scores_of(regime, shape, dtype), score_cases.number(-1.5, dtype)
        grads = score_cases.grads_of(*shape[:2], dtype)
        block, factor = scores.to(device, copy=True), scale.to(device)
        stats = getattr(operators.score_sums, kernel.backend)(block, factor, shape[2])
        given = (*(each.to(device) for each in grads), *stats, shape[2], True, True, True)
        dscale = getattr(operators.score_gradient, kernel.backend)(block, factor, *given)
        results = score_cases.Results(*(each.cpu() for each in (*stats, block, dscale)))
        score_cases.check(results, scores, scale, grads, shape[2], (True, True), f"{shape} {dtype}")


def test_odd_places(kernel: Kernel, device: torch.device, generator: torch.Generator) -> None:
    given = problem(kernel.operation, (33, 19), torch.float32, device, generator)
    for view in layouts(given.leaf).values():
        given.run_and_check(kernel.backend, view)


def test_labels_out_of_range_are_not_followed(kernel: Kernel, device: torch.device, generator: torch.Generator) -> None:
    if device.type == "cpu":
        pytest.skip("on a CPU plain Python refuses them first")
    given = problem(kernel.operation, (130, 19), torch.float32, device, generator)
    for value in (19, -1, 2**40):
        for tensor in given.indices:
            kept = tensor[7].clone()
            tensor[7] = value
            result, *_ = given.run(kernel.backend)
            assert result.isnan().any()
            tensor[7] = kept
    given.run_and_check(kernel.backend)
