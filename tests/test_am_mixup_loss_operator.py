"""The AM-Mixup operators themselves: schema, autograd, compilation, threads, instruction sets, bad values, errors."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from helpers import run_python
from test_am_mixup_loss import BACKENDS, DTYPES, NAN, RATES, drawn, loss_and_gradient
from torch import Tensor

from icm_fast import functional as F_icm
from icm_fast.testing import budget
from icm_fast.testing.memory import peak_extra_bytes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("bad", ["index", "negative index", "label", "negative label", "rate", "nan rate"])
def test_bad_values_are_nan_everywhere_in_the_operator(bad: str, dtype: torch.dtype, backend: str) -> None:
    index, labels, rate = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]), torch.tensor(0.75)
    where, value = {
        "index": (index[2], 3),
        "negative index": (index[2], -1),
        "label": (labels[2], 2**40),
        "negative label": (labels[2], -1),
        "rate": (rate, 1.01),
        "nan rate": (rate, NAN),
    }[bad]
    where.fill_(value)
    forward = getattr(torch.ops.icm_fast.am_mixup_loss_fwd, backend)
    backward = getattr(torch.ops.icm_fast.am_mixup_loss_bwd, backend)
    logits = torch.randn(3, 5).to(dtype)
    for reduction in (0, 1, 2):
        loss, stats = forward(logits, index, rate, labels, reduction)
        grad = torch.ones((), dtype=loss.dtype).expand_as(loss)
        dlogits = backward(grad, logits, index, rate, labels, stats, reduction)
        assert loss.isnan().all() and dlogits.isnan().all() and dlogits.dtype == dtype


@pytest.mark.parametrize("backend", BACKENDS)
def test_autograd(backend: str, generator: torch.Generator) -> None:
    logits, index, labels = drawn("normal", (7, 5), torch.float64, generator)
    leaf = logits.requires_grad_()
    for reduction, rate in itertools.product(("mean", "sum", "none"), RATES):
        assert torch.autograd.gradcheck(
            lambda S, rate=rate, how=reduction: F_icm.am_mixup_loss(
                S, index, rate, labels, reduction=how, backend=backend
            ),
            leaf,
        )
    loss = F_icm.am_mixup_loss(leaf, index, 0.75, labels, backend=backend)
    first = torch.autograd.grad(loss, leaf, retain_graph=True)[0]
    budget.check_same_bits(torch.autograd.grad(loss, leaf)[0], first, "backward twice")
    loss = F_icm.am_mixup_loss(leaf, index, 0.75, labels, backend=backend)
    (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        gradient.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_opcheck(dtype: torch.dtype, backend: str, generator: torch.Generator) -> None:
    logits, index, labels = drawn("normal", (7, 5), dtype, generator)
    forward = getattr(torch.ops.icm_fast.am_mixup_loss_fwd, backend)
    backward = getattr(torch.ops.icm_fast.am_mixup_loss_bwd, backend)
    for reduction in (0, 1):
        inputs = (index, torch.tensor(0.75), labels)
        torch.library.opcheck(forward, (logits.detach().requires_grad_(), *inputs, reduction))
        loss, stats = forward(logits, *inputs, reduction)
        torch.library.opcheck(backward, (torch.ones_like(loss), logits, *inputs, stats, reduction))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_and_transformed(backend: str, generator: torch.Generator) -> None:
    logits, index, labels = drawn("normal", (17, 10), torch.float32, generator)
    expected = loss_and_gradient(logits, index, 0.75, labels, backend)

    def compute(S: Tensor, index: Tensor, rate: Tensor, labels: Tensor) -> Tensor:
        return F_icm.am_mixup_loss(S, index, rate, labels, backend=backend)

    leaf, rate = logits.detach().requires_grad_(), torch.tensor(0.75)
    loss = torch.compile(compute, fullgraph=True, backend="aot_eager")(leaf, index, rate, labels)
    loss.backward()
    budget.check_same_bits(loss, expected[0], "compiled loss")
    assert leaf.grad is not None
    budget.check_same_bits(leaf.grad, expected[1], "compiled gradient")
    gradient = torch.func.grad(lambda S: compute(S, index, rate, labels))(logits)
    torch.testing.assert_close(gradient, expected[1])


def test_the_same_bits_for_any_number_of_threads(generator: torch.Generator) -> None:
    logits, index, labels = drawn("normal", (1111, 257), torch.float32, generator)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(loss_and_gradient(logits, index, 0.75, labels, "cpu"))
    finally:
        torch.set_num_threads(before)
    for loss, dlogits in results[1:]:
        budget.check_same_bits(loss, results[0][0], "loss")
        budget.check_same_bits(dlogits, results[0][1], "gradient")


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_instruction_sets(capability: str) -> None:
    code = """
import itertools, torch
from icm_fast import functional as F_icm
from icm_fast.testing.am_mixup import check_am_mixup_loss
from icm_fast.testing.memory import peak_extra_bytes
from icm_fast.testing.regimes import REGIMES
g = torch.Generator().manual_seed(0)
dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
for name, dtype, C in itertools.product(("normal", "large", "masked", "used_nan"), dtypes, (3, 17, 100)):
    case = REGIMES[name](33, C, dtype, g)
    index = torch.randint(33, (33,), generator=g)
    leaf = case.logits.detach().requires_grad_()
    loss = F_icm.am_mixup_loss(leaf, index, 0.75, case.y_a, backend="cpu")
    loss.backward()
    check_am_mixup_loss(loss.detach(), leaf.grad, case.logits, index, 0.75, case.y_a)
"""
    run_python(code, env={"ATEN_CPU_CAPABILITY": capability})


def test_extra_memory_is_the_gradient_and_little_more(generator: torch.Generator) -> None:
    logits, index, labels = drawn("normal", (4096, 1000), torch.float32, generator)
    gradient_bytes = 4 * logits.numel()
    used = peak_extra_bytes(lambda: loss_and_gradient(logits, index, 0.75, labels, "cpu"))
    assert used < 1.1 * gradient_bytes + (2 << 20), f"{used / 2**20:.1f} MiB, gradient {gradient_bytes / 2**20:.1f}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(3)}, "expected logits of shape"),
        ({"index": torch.arange(2)}, "expected int64 index and labels of shape"),
        ({"labels": torch.arange(3).int()}, "expected int64 index and labels of shape"),
        ({"rate": torch.zeros(2)}, "expected rate of shape"),
        ({"rate": torch.tensor(1)}, "expected rate in float32 or float64"),
        ({"reduction": 3}, "expected reduction 0"),
    ],
)
def test_operators_check_what_memory_safety_needs(change: dict[str, Any], message: str) -> None:
    labels = torch.arange(3)
    inputs = {"logits": torch.zeros(3, 5), "index": labels, "rate": torch.tensor(0.5), "labels": labels, **change}
    reduction = inputs.pop("reduction", 1)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.icm_fast.am_mixup_loss_fwd.cpu(*inputs.values(), reduction)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.icm_fast.am_mixup_loss_bwd.cpu(torch.ones(()), *inputs.values(), torch.zeros(2, 3), reduction)


def good() -> dict[str, Any]:
    labels = torch.tensor([0, 1, 2])
    return {"logits": torch.zeros(3, 5), "index": labels.flip(0), "rate": 0.75, "labels": labels}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": [1.0]}, TypeError, "expected logits to be a tensor, got a list of 1"),
        ({"logits": torch.zeros(5)}, ValueError, r"expected logits of shape \(B, C\)"),
        ({"index": 3}, TypeError, "expected index to be a tensor, got 3"),
        ({"index": torch.zeros(3)}, TypeError, "expected index to hold integer"),
        ({"index": torch.tensor([0, 1])}, ValueError, "logits has 3 rows but index has 2"),
        ({"index": torch.tensor([0, 1, 3])}, ValueError, r"expected index in \[0, 3\), got index\[2\] = 3"),
        ({"index": torch.tensor([0, -1, 2])}, ValueError, r"expected index in \[0, 3\), got index\[1\] = -1"),
        ({"rate": "a"}, TypeError, "expected rate to be a number or a 0-d float tensor, got 'a'"),
        ({"rate": True}, TypeError, "expected rate to be a number or a 0-d float tensor, got True"),
        ({"rate": torch.ones(3)}, TypeError, "expected rate to be a number or a 0-d float tensor, got a float32"),
        ({"rate": torch.tensor(1)}, TypeError, "expected rate to be a number or a 0-d float tensor, got a int64"),
        ({"rate": torch.tensor(0.5, requires_grad=True)}, TypeError, "rate.detach()"),
        ({"rate": 1.5}, ValueError, r"expected rate in \[0, 1\], got 1.5"),
        ({"rate": NAN}, ValueError, r"expected rate in \[0, 1\], got nan"),
        ({"rate": torch.tensor(-0.5)}, ValueError, r"expected rate in \[0, 1\], got -0.5"),
        ({"labels": torch.zeros(3, 5)}, TypeError, "expected labels to hold integer labels"),
        ({"labels": torch.tensor([0])}, ValueError, "logits has 3 rows but labels has 1"),
        ({"labels": torch.tensor([0, 5, 1])}, ValueError, r"\[0, 5\) .* got labels\[1\] = 5"),
        ({"labels": torch.tensor([0, 1, 2], device="meta")}, ValueError, "logits is on cpu but labels is on meta"),
        ({"reduction": "avg"}, ValueError, "expected reduction to be one of 'none', 'mean', 'sum', got 'avg'"),
        # Where Triton works it works on another device.
        (
            {"backend": "triton"},
            (RuntimeError, ValueError),
            "backend='triton' (was requested but is not|works on cuda)",
        ),
    ],
)
def test_errors(change: dict[str, Any], error: type[Exception] | tuple[type[Exception], ...], message: str) -> None:
    with pytest.raises(error, match=message) as info:
        F_icm.am_mixup_loss(**{**good(), **change})
    assert "am_mixup_loss: " in str(info.value)
