"""The operators on a block of given scores, `score_sums` and `score_gradient`, against plain formulae in float64."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, backends_of
from score_cases import (
    AXES,
    DTYPES,
    INF,
    REGIMES,
    SCALES,
    SHAPES,
    Grads,
    check,
    grads_of,
    number,
    ours,
    scores_of,
)

from icm_fast.testing import budget

BACKENDS = backends_of("contrastive_loss")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("regime", REGIMES)
def test_sums_and_gradient(regime: str, dtype: torch.dtype, backend: str) -> None:
    for shape, scale in itertools.product(SHAPES, SCALES):
        scores, factor = scores_of(regime, shape, dtype), number(scale, dtype)
        grads = grads_of(*shape[:2], dtype)
        results = ours(backend, scores, factor, grads, shape[2], (True, True))
        check(results, scores, factor, grads, shape[2], (True, True), f"{shape}, scale {scale}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("axes", AXES, ids=["both", "class", "pair", "neither"])
def test_axes(axes: tuple[bool, bool], backend: str) -> None:
    for regime, shape in itertools.product(("normal", "masked_row", "masked_column", "nan"), SHAPES[:3]):
        scores, factor = scores_of(regime, shape, torch.float32), torch.tensor(0.7)
        grads = grads_of(*shape[:2], torch.float32)
        results = ours(backend, scores, factor, grads, shape[2], axes)
        check(results, scores, factor, grads, shape[2], axes, f"{regime} {shape}")
        if axes == (False, False) and regime == "normal":
            assert (results.dscores == 0).all() and results.dscale == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["one for all", "zeros", "zero for unowned columns", "strided", "float64"])
def test_incoming_gradients(kind: str, backend: str) -> None:
    for regime, shape in itertools.product(("normal", "masked_column", "masked_row"), SHAPES[1:3]):
        rows, columns, diagonal = shape
        scores, grads = scores_of(regime, shape, torch.float32), grads_of(rows, columns, torch.float32)
        if kind == "one for all":
            grads = Grads(torch.tensor(0.3), torch.tensor(-0.2))
        elif kind == "zeros":
            grads = Grads(torch.zeros(rows), torch.zeros(columns))
        elif kind == "zero for unowned columns":
            grads.column[:diagonal] = 0
            grads.column[diagonal + rows :] = 0
        elif kind == "strided":
            grads = Grads(torch.randn(rows, 2)[:, 1], torch.ones(1).expand(columns))
        else:
            grads = Grads(grads.row.double(), grads.column.double())
        results = ours(backend, scores, torch.tensor(1.3), grads, diagonal, (True, True))
        check(results, scores, torch.tensor(1.3), grads, diagonal, (True, True), f"{regime} {shape}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_but_masks(backend: str) -> None:
    """What a row and a column of nothing but -inf give, whatever a reference would make of them."""
    scores = torch.randn(5, 8)
    scores[:, 1] = -INF
    grads = Grads(torch.ones(5), torch.ones(8))
    grads.column[1] = 0
    results = ours(backend, scores, None, grads, 2, (True, True))
    assert results.column_stats[:, 1].tolist() == [-INF, 0]
    assert (results.dscores[:, 1] == 0).all() and results.dscores.isfinite().all() and results.dscale.isfinite()
    scores[3] = -INF
    results = ours(backend, scores, None, grads, 2, (True, True))
    assert results.row_stats[0, 3] == -INF and results.row_stats[1, 3].isnan()
    assert results.dscores[3].isnan().all() and results.dscores[:3].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_confident_score_is_not_rounded_before_its_target(backend: str) -> None:
    """p - 1 of a confident score is -(the others' sum), which 1 + that sum could not hold in half precision."""
    for dtype in DTYPES:
        scores = torch.zeros(33, 40, dtype=dtype)
        scores.diagonal(4).fill_(8)
        grads = Grads(torch.tensor(1.0), torch.tensor(0.0))
        own = ours(backend, scores, None, grads, 4, (True, False)).dscores.diagonal(4)
        others = torch.tensor(39 * torch.e**-8.0, dtype=torch.float64)
        torch.testing.assert_close(own.double(), (-others / (1 + others)).expand(33), rtol=0.005, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_place_and_without_the_gradient_of_the_scale(backend: str) -> None:
    scores, grads = torch.randn(20, 30), Grads(torch.ones(20), torch.ones(30))
    expected = ours(backend, scores, torch.tensor(2.0), grads, 10, (True, True))
    given, address = scores.clone(), scores.data_ptr()
    stats = (expected.row_stats, expected.column_stats)
    gradient = getattr(torch.ops.icm_fast.score_gradient, backend)
    dscale = gradient(scores, torch.tensor(2.0), *grads, *stats, 10, True, True, False)
    assert scores.data_ptr() == address and not torch.equal(scores, given)
    budget.check_same_bits(scores, expected.dscores, "gradient")
    assert dscale == 0 and dscale.shape == () and dscale.dtype == torch.float32


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows(backend: str) -> None:
    for columns in (0, 3):
        scores, grads = torch.zeros(0, columns), Grads(torch.ones(()), torch.ones(()))
        results = ours(backend, scores, None, grads, 0, (True, True))
        assert results.row_stats.shape == (3, 0) and results.dscale == 0
        assert results.column_stats.tolist() == [[-INF] * columns, [0] * columns]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_bits_from_run_to_run_and_for_any_number_of_threads(backend: str) -> None:
    shapes = [(150, 200, 50)] if backend == "triton" else [(150, 200, 50), (700, 900, 100), (130, 5000, 0)]
    before = torch.get_num_threads()
    try:
        for shape, regime in itertools.product(shapes, ("normal", "range_200")):
            scores, grads = scores_of(regime, shape, torch.float32), grads_of(*shape[:2], torch.float32)
            runs = []
            for threads in (1, 2, 1, 2):
                torch.set_num_threads(threads)
                runs.append(ours(backend, scores, torch.tensor(0.7), grads, shape[2], (True, True)))
            for run, (name, expected) in itertools.product(runs[1:], runs[0]._asdict().items()):
                budget.check_same_bits(getattr(run, name), expected, f"{regime} {shape}: {name}")
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_opcheck(dtype: torch.dtype, backend: str) -> None:
    scores, grads = torch.randn(5, 7).to(dtype), grads_of(5, 7, dtype)
    sums, gradient = (getattr(getattr(torch.ops.icm_fast, name), backend) for name in ("score_sums", "score_gradient"))
    for scale in (None, number(1.5, dtype)):
        torch.library.opcheck(sums, (scores, scale, 2))
        stats = sums(scores, scale, 2)
        torch.library.opcheck(gradient, (scores, scale, *grads, *stats, 2, True, True, scale is not None))


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_arguments_are_refused(backend: str) -> None:
    sums, gradient = (getattr(getattr(torch.ops.icm_fast, name), backend) for name in ("score_sums", "score_gradient"))
    scores = torch.zeros(4, 6)
    bad: tuple[tuple[Any, ...], ...] = (
        (scores.T.contiguous().T, None, 0),
        (scores[:, :5], None, 0),
        (scores[0], None, 0),
        (scores.long(), None, 0),
        (scores, torch.ones(1), 0),
        (scores, torch.ones((), dtype=torch.int64), 0),
        (scores, None, 3),
        (scores, None, -1),
        (scores, None, 2**63 - 3),
        (torch.zeros(6, 4), None, 0),
    )
    stats = sums(scores, None, 0)
    one = torch.ones(())
    for arguments in bad:
        with pytest.raises(RuntimeError, match="score_sums"):
            sums(*arguments)
        with pytest.raises(RuntimeError, match="score_gradient"):
            gradient(*arguments[:2], one, one, *stats, arguments[2], True, True, True)
    row_stats, column_stats = stats
    for wrong in (
        (row_stats[:2], column_stats),
        (row_stats.double(), column_stats),
        (row_stats, column_stats[:, :5]),
        (row_stats.T.contiguous().T, column_stats),
    ):
        with pytest.raises(RuntimeError, match="statistics"):
            gradient(scores, None, one, one, *wrong, 0, True, True, True)
    for name, wrong in (("grad_row", (torch.ones(3), one)), ("grad_column", (one, torch.ones(4)))):
        with pytest.raises(RuntimeError, match=name):
            gradient(scores, None, *wrong, *stats, 0, True, True, True)
    with pytest.raises(RuntimeError, match="grad_row"):
        gradient(scores, None, one.half(), one, *stats, 0, True, True, True)
    assert (scores == 0).all()


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_instruction_sets(capability: str) -> None:
    """torch's own cap chooses the kernels; the processor's best are those of the other tests."""
    chosen = "cpu and sums_and_gradient and (normal or masked_entries or nan)"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__)), "-k", chosen]
    capped = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=capped, capture_output=True, text=True)
    assert result.returncode == 0 and " passed" in result.stdout, result.stdout[-3000:]
