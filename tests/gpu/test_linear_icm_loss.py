"""The loss of a linear classifier on the device, on each of its ways, against the float64 reference."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from linear_cases import random_case, run

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast import reference
from icm_fast.testing.budget import check_same_bits
from icm_fast.testing.linear import Inputs, Results, check_linear_icm_loss

from .conftest import Covers
from .problems import DTYPES, Kernel, at_home, problem

# Collected here too, for each way.
from .test_streams_and_graphs import test_graph_replays_equal_eager_calls as test_graph_replays_equal_eager_calls
from .test_streams_and_graphs import test_the_host_does_not_wait as test_the_host_does_not_wait
from .test_streams_and_graphs import test_works_on_the_current_stream as test_works_on_the_current_stream

OPERATIONS = ("linear_icm_loss",)
# Rows, features, classes. One of each; primes, which no block divides; more classes than a batch uses; whole tiles.
SHAPES = ((1, 1, 1), (2, 3, 2), (61, 17, 10), (130, 5, 7), (64, 32, 500), (33, 8, 1), (257, 64, 128))
NAN = float("nan")
mark_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
pytestmark = pytest.mark.usefixtures("way")


def drawn(
    shape: tuple[int, int, int], device: torch.device, generator: torch.Generator, *options: Any
) -> tuple[Inputs, icm.MixedTarget]:
    given, target = random_case(shape, generator, *options)
    return Inputs(*(None if each is None else each.to(device) for each in given)), target.to(device)


@mark_dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_random_classifiers(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    kernel: Kernel,
    device: torch.device,
    generator: torch.Generator,
    covers: Covers,
) -> None:
    for bias, scale in ((True, None), (False, 1.7), (True, -0.4)):
        given, target = drawn(shape, device, generator, dtype, bias, scale)
        before = [None if each is None else each.clone() for each in given]
        results = run(given, target, backend=kernel.backend)
        check_linear_icm_loss(results, at_home(given), target, what=f"{shape} {scale}")
        assert all(each is None or torch.equal(each, kept) for each, kept in zip(given, before, strict=True))
    covers(kernel, dtype, (shape[0], shape[2], shape[1]))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("axis", ["both", "class", "pair"])
def test_reductions_and_incoming_gradients(
    axis: str, reduction: str, kernel: Kernel, device: torch.device, generator: torch.Generator
) -> None:
    given, target = drawn((130, 17, 40), device, generator)
    size = (130,) if reduction == "none" else ()
    scaled = (torch.randn(size, generator=generator) * 100).to(device)
    for grad in (scaled, scaled.new_full((), 0.25).expand(size), torch.zeros_like(scaled)):
        results = run(given, target, grad, axis=axis, reduction=reduction, backend=kernel.backend)
        assert results.loss.shape == size and results.loss.device == given.features.device
        how: dict[str, Any] = {"axis": axis, "reduction": reduction, "grad_output": grad}
        check_linear_icm_loss(results, at_home(given), target, **how)


@pytest.mark.parametrize("factor", [30.0, 300.0, 3e4])
def test_blocks_that_lie_far_from_each_other(
    factor: float, kernel: Kernel, device: torch.device, generator: torch.Generator
) -> None:
    """Sums of one block of rows that underflow relative to another's, on either side of a repair."""
    for dtype in (torch.float32, torch.float64):
        given, target = drawn((130, 9, 12), device, generator, dtype)
        given.features[64:] *= factor
        check_linear_icm_loss(run(given, target, backend=kernel.backend), at_home(given), target, what=f"{dtype}")


@mark_dtypes
def test_sparse_gradient(dtype: torch.dtype, kernel: Kernel, device: torch.device, generator: torch.Generator) -> None:
    given, target = drawn((61, 8, 300), device, generator, dtype)
    results = run(given, target, backend=kernel.backend, sparse_grad=True)
    found = results.dweight
    assert found.is_sparse and found.device == given.weight.device and found._nnz() <= 2 * 61
    # Its two parts of a class are rounded to the type of the weight, each by itself.
    whole = found.to_dense().to(dtype) if dtype in (torch.float32, torch.float64) else None
    check_linear_icm_loss(results._replace(dweight=whole), at_home(given), target, what="sparse")
    used = torch.cat((target.y_a, target.y_b)).unique()
    assert not found.to_dense().index_fill(0, used, 0.0).any()


def test_sparse_gradient_without_waiting(kernel: Kernel, gpu: torch.device, generator: torch.Generator) -> None:
    given, target = drawn((300, 8, 1000), gpu, generator)
    for mode in ("default", "default", "error"):  # what is loaded and compiled once may wait
        torch.cuda.set_sync_debug_mode(mode)
        try:
            run(given, target, backend=kernel.backend, sparse_grad=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_float32_products_are_float32(kernel: Kernel, device: torch.device, generator: torch.Generator) -> None:
    """With inputs cut to TF32, errors are a hundred times as large."""
    assert not torch.backends.cuda.matmul.allow_tf32, "the default is another, or somebody changed it"
    given, target = drawn((257, 512, 100), device, generator)
    leaves = given.leaves(torch.float64)
    home = target.to("cpu")
    truth = reference.linear_icm_loss(*leaves[:2], home, leaves.bias)
    expected = torch.autograd.grad(truth, leaves[:3])
    results = run(given, target, backend=kernel.backend)
    for ours, exact in zip(results[1:4], expected, strict=True):
        error = float((ours.cpu().double() - exact).norm() / exact.norm())
        assert error < 1e-5, f"relative error {error:.1e}"


def test_same_bits_every_time(kernel: Kernel, device: torch.device, generator: torch.Generator) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        given = problem(kernel.operation, (300, 100), dtype, device, generator)
        expected = given.run(kernel.backend)
        for number in range(20):
            for ours, before in zip(given.run(kernel.backend), expected, strict=True):
                check_same_bits(ours, before, f"run {number}")


def test_labels_of_other_types_and_one_lam(kernel: Kernel, device: torch.device, generator: torch.Generator) -> None:
    given, target = drawn((61, 17, 40), device, generator)
    for lam in (torch.tensor(0.3, device=device), torch.ones(61, device=device)):
        other = icm.MixedTarget(target.y_a.to(torch.int32), target.y_b.to(torch.uint8), lam)
        check_linear_icm_loss(run(given, other, backend=kernel.backend), at_home(given), other)


def test_bad_targets_make_loss_and_gradients_nan(
    kernel: Kernel, device: torch.device, generator: torch.Generator
) -> None:
    given, target = drawn((61, 17, 40), device, generator)
    for name, value in (("y_a", 40), ("y_b", -1), ("y_a", 2**62), ("lam", 1.0000002), ("lam", NAN)):
        fields = {field: getattr(target, field).clone() for field in ("y_a", "y_b", "lam")}
        fields[name][60] = value
        if device.type == "cpu":  # where plain Python looks at values
            with pytest.raises(ValueError, match="expected"):
                run(given, icm.MixedTarget(**fields), backend=kernel.backend)
            continue
        results = run(given, icm.MixedTarget(**fields), backend=kernel.backend)
        for result, what in zip(results[:3], Results._fields, strict=False):
            assert result.isnan().all(), f"{name} {value}: {what} is not NaN"


@mark_dtypes
def test_hard_labels(dtype: torch.dtype, kernel: Kernel, device: torch.device, generator: torch.Generator) -> None:
    """Cross-entropy, which has one way only."""
    for shape, scale in itertools.product(((61, 17, 10), (40, 5, 900), (1, 3, 4)), (None, -1.5)):
        given, target = drawn(shape, device, generator, dtype, True, scale)
        for reduction in ("mean", "none"):
            results = run(given, target.y_a, reduction=reduction, backend=kernel.backend)
            what = f"hard {shape} {scale}"
            check_linear_icm_loss(results, at_home(given), target.y_a, reduction=reduction, what=what)


def test_no_rows_and_no_grad(kernel: Kernel, device: torch.device, generator: torch.Generator) -> None:
    none = run(*drawn((0, 5, 7), device, generator), reduction="sum", backend=kernel.backend)
    assert none.loss == 0 and not none.dweight.any() and none.dfeatures.shape == (0, 5)
    given, target = drawn((61, 17, 40), device, generator)
    loss = F_icm.linear_icm_loss(given.features, given.weight, target, given.bias, backend=kernel.backend)
    with torch.no_grad():
        alone = F_icm.linear_icm_loss(given.features, given.weight, target, given.bias, backend=kernel.backend)
    check_same_bits(alone, loss.detach(), "without gradients")
