"""The cross-entropy operators themselves: schema, autograd, compilation, threads, instruction sets, bad values."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from helpers import run_python
from test_mixup_cross_entropy import BACKENDS, DTYPES, NAN, loss_and_gradient, target_of
from torch import Tensor

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast.testing import budget
from icm_fast.testing.memory import peak_extra_bytes
from icm_fast.testing.regimes import REGIMES


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("bad", ["label", "negative label", "partner label", "lam", "negative lam", "nan lam"])
def test_bad_values_are_nan_everywhere_in_the_operator(bad: str, dtype: torch.dtype, backend: str) -> None:
    y_a, y_b, lam = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]), torch.tensor([0.5, 0.2, 1.0])
    where, value = {
        "label": (y_a, 5),
        "negative label": (y_a, -1),
        "partner label": (y_b, 2**40),
        "lam": (lam, 1.01),
        "negative lam": (lam, -0.01),
        "nan lam": (lam, NAN),
    }[bad]
    where[2] = value
    forward = getattr(torch.ops.icm_fast.mixup_cross_entropy_fwd, backend)
    backward = getattr(torch.ops.icm_fast.mixup_cross_entropy_bwd, backend)
    logits = torch.randn(3, 5).to(dtype)
    for reduction in (0, 1, 2):
        loss, stats = forward(logits, y_a, y_b, lam, None, 0.0, reduction)
        grad = torch.ones((), dtype=loss.dtype).expand_as(loss)
        dlogits = backward(grad, logits, y_a, y_b, lam, None, stats, 0.0, reduction)
        assert loss.isnan().all() and dlogits.isnan().all() and dlogits.dtype == dtype


@pytest.mark.parametrize("backend", BACKENDS)
def test_autograd(backend: str, generator: torch.Generator) -> None:
    case = REGIMES["normal"](7, 5, torch.float64, generator)
    weight = torch.rand(5, generator=generator, dtype=torch.float64)
    leaf = case.logits.requires_grad_()
    for reduction, smoothing in itertools.product(("mean", "sum", "none"), (0.0, 0.3)):
        options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing, "weight": weight}
        assert torch.autograd.gradcheck(
            lambda S, options=options: F_icm.mixup_cross_entropy(S, target_of(case), backend=backend, **options), leaf
        )
    loss = F_icm.mixup_cross_entropy(leaf, target_of(case), backend=backend)
    first = torch.autograd.grad(loss, leaf, retain_graph=True)[0]
    budget.check_same_bits(torch.autograd.grad(loss, leaf)[0], first, "backward twice")
    loss = F_icm.mixup_cross_entropy(leaf, target_of(case), backend=backend)
    (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        gradient.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_opcheck(dtype: torch.dtype, backend: str, generator: torch.Generator) -> None:
    case = REGIMES["normal"](7, 5, dtype, generator)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    forward = getattr(torch.ops.icm_fast.mixup_cross_entropy_fwd, backend)
    backward = getattr(torch.ops.icm_fast.mixup_cross_entropy_bwd, backend)
    for weight, smoothing, reduction in ((None, 0.0, 1), (torch.rand(5, dtype=acc), 0.1, 0)):
        leaf = case.logits.detach().requires_grad_()
        torch.library.opcheck(forward, (leaf, *case[1:], weight, smoothing, reduction))
        loss, stats = forward(case.logits, *case[1:], weight, smoothing, reduction)
        arguments = (torch.ones_like(loss), case.logits, *case[1:], weight, stats, smoothing, reduction)
        torch.library.opcheck(backward, arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_and_transformed(backend: str, generator: torch.Generator) -> None:
    case = REGIMES["normal"](17, 10, torch.float32, generator)
    expected = loss_and_gradient(case, backend, label_smoothing=0.1)

    def compute(logits: Tensor, y_a: Tensor, y_b: Tensor, lam: Tensor) -> Tensor:
        target = icm.MixedTarget(y_a, y_b, lam)
        return F_icm.mixup_cross_entropy(logits, target, label_smoothing=0.1, backend=backend)

    leaf = case.logits.detach().requires_grad_()
    loss = torch.compile(compute, fullgraph=True, backend="aot_eager")(leaf, *case[1:])
    loss.backward()
    budget.check_same_bits(loss, expected[0], "compiled loss")
    assert leaf.grad is not None
    budget.check_same_bits(leaf.grad, expected[1], "compiled gradient")
    gradient = torch.func.grad(lambda logits: compute(logits, *case[1:]))(case.logits)
    torch.testing.assert_close(gradient, expected[1])


def test_the_same_bits_for_any_number_of_threads(generator: torch.Generator) -> None:
    case = REGIMES["normal"](1111, 257, torch.float32, generator)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(loss_and_gradient(case, "cpu", label_smoothing=0.1))
    finally:
        torch.set_num_threads(before)
    for loss, dlogits in results[1:]:
        budget.check_same_bits(loss, results[0][0], "loss")
        budget.check_same_bits(dlogits, results[0][1], "gradient")


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_instruction_sets(capability: str) -> None:
    code = """
import itertools, torch, icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast.testing.checks import check_mixup_cross_entropy
from icm_fast.testing.memory import peak_extra_bytes
from icm_fast.testing.regimes import REGIMES
g = torch.Generator().manual_seed(0)
dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
for name, dtype, C in itertools.product(("normal", "large", "masked", "used_nan"), dtypes, (3, 17, 100)):
    case = REGIMES[name](33, C, dtype, g)
    leaf = case.logits.detach().requires_grad_()
    loss = F_icm.mixup_cross_entropy(leaf, icm.MixedTarget(*case[1:]), label_smoothing=0.1, backend="cpu")
    loss.backward()
    check_mixup_cross_entropy(loss.detach(), leaf.grad, case.logits, case, label_smoothing=0.1)
"""
    run_python(code, env={"ATEN_CPU_CAPABILITY": capability})


def test_extra_memory_is_the_gradient_and_little_more(generator: torch.Generator) -> None:
    case = REGIMES["normal"](4096, 1000, torch.float32, generator)
    gradient_bytes = 4 * case.logits.numel()
    used = peak_extra_bytes(lambda: loss_and_gradient(case, "cpu", label_smoothing=0.1))
    assert used < 1.1 * gradient_bytes + (2 << 20), f"{used / 2**20:.1f} MiB, gradient {gradient_bytes / 2**20:.1f}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(3)}, "expected logits of shape"),
        ({"logits": torch.zeros(3, 5, dtype=torch.int32)}, "expected a float32, float64, bfloat16 or float16"),
        ({"y_a": torch.arange(2)}, "expected y_a and y_b of one shape"),
        ({"y_a": torch.arange(2), "y_b": torch.arange(2)}, "expected 3 labels, one per row"),
        ({"y_a": torch.arange(3).int()}, "expected int64 labels"),
        ({"lam": torch.zeros(2)}, "expected lam of shape"),
        ({"weight": torch.ones(4)}, "expected a contiguous weight of shape"),
        ({"weight": torch.ones(5, dtype=torch.float64)}, "float64 for float64 logits, else float32"),
        ({"label_smoothing": -0.1}, "expected label_smoothing in"),
        ({"reduction": 3}, "expected reduction 0"),
    ],
)
def test_operators_check_what_memory_safety_needs(change: dict[str, Any], message: str) -> None:
    labels = torch.arange(3)
    target = {"y_a": labels, "y_b": labels, "lam": torch.tensor(0.5), "weight": None}
    arguments = {"logits": torch.zeros(3, 5), **target, "label_smoothing": 0.0, "reduction": 1, **change}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.icm_fast.mixup_cross_entropy_fwd.cpu(*arguments.values())
    if "logits" not in change:
        stats = torch.zeros(2, 3)
        with pytest.raises(RuntimeError, match=message):
            torch.ops.icm_fast.mixup_cross_entropy_bwd.cpu(
                torch.ones(()), *list(arguments.values())[:5], stats, *list(arguments.values())[5:]
            )


def test_backward_checks_the_statistics_and_the_gradient() -> None:
    labels, logits = torch.arange(3), torch.zeros(3, 5)
    backward = torch.ops.icm_fast.mixup_cross_entropy_bwd.cpu
    rest = (logits, labels, labels, torch.tensor(0.5), None)
    with pytest.raises(RuntimeError, match="statistics that the forward operator returned"):
        backward(torch.ones(()), *rest, torch.zeros(3, 2, dtype=torch.float64), 0.0, 1)
    with pytest.raises(RuntimeError, match="expected grad of shape"):
        backward(torch.ones(4), *rest, torch.zeros(2, 3), 0.0, 1)
