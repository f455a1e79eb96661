"""The operators themselves: schema, fake kernels, rectangles, bad values, reproducibility, instruction sets."""

from __future__ import annotations

import sys

import pytest
import torch
from helpers import backends_of, run_python
from torch import Tensor
from torch.autograd import gradcheck

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast import reference
from icm_fast.testing import budget
from icm_fast.testing.checks import check_icm_loss
from icm_fast.testing.regimes import REGIMES, Case

BACKENDS = backends_of("icm_loss")
BAD_TARGETS = {
    "label too large": ([0, 5], [1, 0], [0.5, 0.5]),
    "label negative": ([0, -1], [1, 0], [0.5, 0.5]),
    "partner too large": ([0, 1], [1, 2**62], [0.5, 0.5]),
    "partner negative, weight 0": ([0, 1], [1, -(2**63)], [0.5, 1.0]),
    "lam below 0": ([0, 1], [1, 0], [0.5, -1e-7]),
    "lam above 1": ([0, 1], [1, 0], [0.5, 1.0000002]),
    "lam NaN": ([0, 1], [1, 0], [0.5, float("nan")]),
    "lam inf": ([0, 1], [1, 0], [0.5, float("inf")]),
}


def operators(backend: str) -> tuple[object, object]:
    target = icm.MixedTarget(torch.tensor([0]), torch.tensor([0]), torch.tensor(1.0))
    F_icm.icm_loss(torch.zeros(1, 1), target, backend=backend)  # loads the library
    return getattr(torch.ops.icm_fast.icm_loss_fwd, backend), getattr(torch.ops.icm_fast.icm_loss_bwd, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_opcheck(dtype: torch.dtype, reduction: int, backend: str, generator: torch.Generator) -> None:
    forward, backward = operators(backend)
    case = REGIMES["normal"](7, 10, dtype, generator)
    logits = case.logits.requires_grad_()
    for scale in (None, torch.tensor(1.5, requires_grad=True)):
        torch.library.opcheck(forward, (logits, *case[1:], scale, 0, True, True, reduction))
    _, _, *saved = forward(case.logits.detach(), *case[1:], None, 0, True, True, reduction)
    grad = torch.ones(7 if reduction == 0 else (), dtype=saved[0].dtype)
    inputs = (case.logits.detach(), *case[1:], None)
    torch.library.opcheck(backward, (grad, grad, *inputs, *saved, 0, True, True, reduction, False))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("registered", [False, True], ids=["function", "registered formula"])
@pytest.mark.parametrize("axis", ["both", "class", "pair"])
@pytest.mark.parametrize("regime", ["normal", "batch_lam", "lam_edges", "same_class", "range_200"])
def test_gradcheck(regime: str, axis: str, registered: bool, backend: str, generator: torch.Generator) -> None:
    case = REGIMES[regime](9, 6, torch.float64, generator)
    logits = case.logits.requires_grad_()
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    forward, _ = operators(backend)

    def loss(logits: Tensor, scale: Tensor) -> Tensor:
        if registered:
            return forward(logits, *case[1:], scale, 0, axis != "pair", axis != "class", 0)[0]
        target = icm.MixedTarget(*case[1:])
        return F_icm.icm_loss(logits, target, axis=axis, reduction="none", logit_scale=scale, backend=backend)

    assert gradcheck(loss, (logits, scale))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("regime", ["normal", "large", "confident", "masked", "range_200"])
@pytest.mark.parametrize("axis", ["both", "class", "pair"])
def test_rectangles(axis: str, regime: str, backend: str, generator: torch.Generator) -> None:
    """Rows of one process against the columns of all: the diagonal starts at a column of its own."""
    forward, backward = operators(backend)
    whole = REGIMES[regime](75, 30, torch.float32, generator)
    for first, rows in ((0, 33), (33, 42), (74, 1), (10, 0)):
        logits = whole.logits[first : first + rows]
        case = Case(logits, *whole[1:])
        options = (first, axis != "pair", axis != "class", 0)
        loss, _, row_stats, column_stats, plan = forward(logits, *whole[1:], None, *options)
        assert row_stats.shape == (4, rows) and column_stats.shape == (3, 75)
        owned = torch.zeros(75)
        owned[first : first + rows] = 1.0
        # The other columns have no gradient, whatever these rows alone make of their sums.
        dlogits, _ = backward(
            torch.ones(rows), owned, logits, *whole[1:], None, row_stats, column_stats, plan, *options, False
        )
        check_icm_loss(loss, dlogits, logits, case, axis=axis, reduction="none", diagonal=first)


@pytest.mark.parametrize("backend", BACKENDS)
def test_column_gradients_of_other_processes(backend: str, generator: torch.Generator) -> None:
    """A column that another process owns still pushes the rows that are here, with its own incoming gradient."""
    forward, backward = operators(backend)
    case = REGIMES["normal"](20, 12, torch.float64, generator)
    grad = torch.randn(20, generator=generator, dtype=torch.float64)
    options = (0, True, True, 0)
    _, _, row_stats, *shared = forward(*case, None, *options)
    expected, _ = backward(grad, grad, *case, None, row_stats, *shared, *options, False)
    parts = []
    for first in (0, 8):
        rows = slice(first, 8 if first == 0 else 20)
        stats = row_stats[:, rows].contiguous()
        shard = (case.logits[rows], *case[1:], None, stats, *shared, first, True, True, 0, False)
        parts.append(backward(grad[rows], grad, *shard)[0])
    torch.testing.assert_close(torch.cat(parts), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", BAD_TARGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_bad_values_give_nan_everywhere(name: str, dtype: torch.dtype, backend: str) -> None:
    forward, backward = operators(backend)
    y_a, y_b, lam = (torch.tensor(values) for values in BAD_TARGETS[name])
    logits = torch.zeros(2, 5, dtype=dtype)
    for reduction in (0, 1, 2):
        loss, terms, *stats = forward(logits, y_a, y_b, lam, None, 0, True, True, reduction)
        assert loss.isnan().all() and terms.isnan().all()
        grad = torch.ones_like(loss)
        saved = (logits, y_a, y_b, lam, None, *stats, 0, True, True, reduction, False)
        dlogits, _ = backward(grad, grad, *saved)
        assert dlogits.isnan().all()
        truth = reference.icm_loss(logits.requires_grad_(), icm.MixedTarget(y_a, y_b, lam))
        assert truth.isnan() and torch.autograd.grad(truth, logits)[0].isnan().all()
        logits = logits.detach()


def test_wrong_shapes_are_refused_by_the_operator() -> None:
    forward, backward = operators("cpu")
    logits, labels, lam = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64), torch.tensor(0.5)
    good = forward(logits, labels, labels, lam, None, 0, True, True, 1)
    bad = {
        "labels of another length": (logits, labels, labels[:3], lam, None, 0, True, True, 1),
        "lam of another length": (logits, labels, labels, torch.zeros(3), None, 0, True, True, 1),
        "int32 labels": (logits, labels.int(), labels, lam, None, 0, True, True, 1),
        "half lam": (logits, labels, labels, lam.half(), None, 0, True, True, 1),
        "integer logits": (logits.long(), labels, labels, lam, None, 0, True, True, 1),
        "logits of one dimension": (logits[0], labels, labels, lam, None, 0, True, True, 1),
        "a diagonal outside": (logits, labels, labels, lam, None, 1, True, True, 1),
        "a diagonal that overflows": (logits, labels, labels, lam, None, 2**63 - 3, True, True, 1),
        "a negative diagonal": (logits, labels, labels, lam, None, -1, True, True, 1),
        "an unknown reduction": (logits, labels, labels, lam, None, 0, True, True, 3),
        "a vector as scale": (logits, labels, labels, lam, torch.zeros(1), 0, True, True, 1),
    }
    for arguments in bad.values():
        with pytest.raises(RuntimeError, match="icm_loss_fwd"):
            forward(*arguments)
    freed = torch.zeros(4, 3)
    freed.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="storage"):
        forward(freed, labels, labels, lam, None, 0, True, True, 1)
    with pytest.raises(RuntimeError, match="one device"):
        forward(logits, labels.to("meta"), labels, lam, None, 0, True, True, 1)
    grad = torch.ones(())
    tail = (0, True, True, 1, False)
    for stats in ((good[2][:3], good[3]), (good[2], good[3].double()), (good[2].T.contiguous().T, good[3])):
        with pytest.raises(RuntimeError, match="statistics"):
            backward(grad, grad, logits, labels, labels, lam, None, *stats, good[4], *tail)
    with pytest.raises(RuntimeError, match="grad_row"):
        backward(torch.ones(3), grad, logits, labels, labels, lam, None, *good[2:], *tail)


@pytest.mark.parametrize("shape", [(33, 20), (700, 50), (1030, 300), (40, 9000)], ids=str)
def test_same_bits_for_any_number_of_threads_and_from_run_to_run(
    shape: tuple[int, int], generator: torch.Generator
) -> None:
    before = torch.get_num_threads()
    try:
        for regime in ("normal", "range_500"):
            case = REGIMES[regime](*shape, torch.float32, generator)
            target = icm.MixedTarget(*case[1:])
            results = []
            for threads in (1, 2, 3, 7, 1, 2):
                torch.set_num_threads(threads)
                leaf = case.logits.detach().requires_grad_()
                loss = F_icm.icm_loss(leaf, target, backend="cpu")
                results.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
            for loss, dlogits in results[1:]:
                budget.check_same_bits(loss, results[0][0], regime)
                budget.check_same_bits(dlogits, results[0][1], regime)
    finally:
        torch.set_num_threads(before)


INSTRUCTION_SETS = """
import torch
from icm_fast import functional as F_icm, MixedTarget, backends
from icm_fast.testing.checks import check_icm_loss
from icm_fast.testing.regimes import REGIMES
print(backends()["cpu"].reason)
for regime in REGIMES.values():
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for shape in ((1, 10), (9, 1), (9, 2), (9, 3), (7, 10), (33, 100), (20, 257), (300, 40)):
            case = regime(*shape, dtype, torch.Generator().manual_seed(1))
            leaf = case.logits.requires_grad_()
            loss = F_icm.icm_loss(leaf, MixedTarget(*case[1:]), backend="cpu")
            check_icm_loss(loss.detach(), torch.autograd.grad(loss, leaf)[0], leaf, case, what=f"{regime.name} {shape}")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ATEN_CPU_CAPABILITY is tested on Linux")
@pytest.mark.parametrize(("capability", "name"), [("default", "portable"), ("avx2", "avx2"), ("avx512", "avx512")])
def test_every_instruction_set(capability: str, name: str) -> None:
    """torch's own cap chooses the kernels; on a processor without an instruction set the next lower one runs."""
    printed = run_python(INSTRUCTION_SETS, env={"ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"})
    order = ["portable", "avx2", "avx512"]
    ran = next(known for known in order if f"{known} kernels" in printed)
    assert order.index(ran) <= order.index(name)
    if ran != name:
        pytest.skip(f"this processor or compiler has no {name}: {ran} ran")
