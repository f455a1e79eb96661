"""How far a contender's result lies from the truth, which is the reference's in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast import reference
from icm_fast.testing import checks, linear

from . import gate
from .errors import largest_error
from .workloads import Workload

Loss = Callable[..., Any]
Labels = Callable[[Workload], Sequence[Any]]
# Of a workload, the error of a result; prepared once for all that are judged by it.
Judge = Callable[[Workload], Callable[[Any], float]]

# Scores and logits up to which ours is held to the elementwise budget: its truth and scale take half a minute beyond.
BUDGETED = 1 << 24


def function(operation: str, functions: Any = F_icm) -> Loss:
    """The function of an operation, ours or the reference's, called with the leaves and the target."""
    if operation == "linear_icm_loss":
        loss = functions.linear_icm_loss
        return lambda features, weight, bias, target, **options: loss(features, weight, target, bias, **options)
    found: Loss = getattr(functions, operation.removesuffix("_dense"))
    return found


def given(workload: Workload) -> list[Any]:
    """The target, as ours takes it."""
    return [workload.inputs["target"]] if "target" in workload.inputs else []


def exact(workload: Workload) -> Any:
    """The reference's result in float64, as a contender returns it."""
    if workload.operation == "mixup":
        return exact_mix(workload, workload.inputs["lam"])
    return of_loss(function(workload.operation, reference), given)(workload)


def of_loss(loss_of: Loss, labels: Labels, **options: Any) -> Callable[[Workload], tuple[Tensor, ...]]:
    """Loss and gradients in float64, of any loss."""

    def result(workload: Workload) -> tuple[Tensor, ...]:
        leaves = [leaf.detach().double().requires_grad_() for leaf in workload.leaves]
        loss = loss_of(*leaves, *labels(workload), **options)
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    return result


def exact_mix(workload: Workload, lam: Tensor) -> Tensor:
    """Of images or of bytes, in float64."""
    inputs = workload.inputs
    if "mean" in inputs:
        pixels = {"mean": inputs["mean"], "std": inputs["std"], "dtype": torch.float64}
        return reference.mixup(inputs["x"], inputs["index"], lam, **pixels)
    return reference.mixup(inputs["x"].double(), inputs["index"], lam)


def against(exact_of: Callable[[Workload], Any]) -> Judge:
    """Judged by the largest distance to what that function returns."""

    def prepare(workload: Workload) -> Callable[[Any], float]:
        expected = exact_of(workload)
        return lambda result: largest_error(result, expected)

    return prepare


truth: Judge = against(exact)


def drawn(workload: Workload) -> Callable[[Any], float]:
    """Of images and target that were mixed with one lam of the contender's own, which its target tells."""
    labels, index = workload.inputs["labels"], workload.inputs["index"]

    def error(result: Any) -> float:
        images, target = result
        lam = drawn_lam(target, labels, labels[index])
        found, expected = [images], [exact_mix(workload, lam)]
        if isinstance(target, Tensor):
            found.append(target)
            expected.append(icm.MixedTarget(labels, labels[index], lam).dense(target.shape[1]).double())
        return largest_error(tuple(found), tuple(expected))

    return error


def drawn_lam(target: Any, y_a: Tensor, y_b: Tensor) -> Tensor:
    """The weight of the samples themselves, from a mixed target or a row of a dense one with two classes."""
    if not isinstance(target, Tensor):
        return torch.as_tensor(target[-1] if isinstance(target, tuple) else target.lam, dtype=torch.float64)
    row = int((y_a != y_b).nonzero()[0])
    return target[row, y_a[row]].double()


def sampled(workload: Workload) -> Callable[[Any], float]:
    """Of a loss whose scores are too many for the reference: some rows of them, exactly."""
    expected, terms = gate.truth(workload), gate.terms_of(workload)
    return lambda result: gate.error(result, terms, expected, workload)


def is_budgeted(workload: Workload) -> bool:
    """Whether the elementwise budget is affordable."""
    if workload.operation == "mixup":
        return True
    rows, *rest = workload.size
    return rows * max(rows, *rest) <= BUDGETED


def check_budget(workload: Workload, result: Any) -> None:
    """Assert that a result of ours is within the error budget of icm_fast/testing, which is derived element by element.

    Of ours alone: it grants what our algorithm's roundings can add up to, and says nothing of another's.
    """
    inputs, operation = workload.inputs, workload.operation
    if operation == "mixup":
        _check_mix(workload, result)
        return
    loss, *gradients = (each.to_dense() for each in result)
    if operation in ("icm_loss", "icm_loss_dense"):
        checks.check_icm_loss(loss, gradients[0], inputs["logits"], inputs["target"])
    elif operation == "mixup_cross_entropy":
        checks.check_mixup_cross_entropy(loss, gradients[0], inputs["logits"], inputs["target"])
    elif operation == "linear_icm_loss":
        leaves = linear.Inputs(inputs["features"], inputs["weight"], inputs["bias"])
        checked = linear.Results(loss, *gradients)
        linear.check_linear_icm_loss(checked, leaves, inputs["target"])
    else:
        leaves = linear.Inputs(inputs["x"], inputs["y"], None, inputs["scale"])
        dx, dy, dscale = gradients
        pairs = linear.pairs(workload.size[0])
        linear.check_linear_icm_loss(linear.Results(loss, dx, dy, None, dscale), leaves, pairs)


def _check_mix(workload: Workload, result: Any) -> None:
    inputs = workload.inputs
    x, index = inputs["x"], inputs["index"]
    mixed = result[0] if isinstance(result, tuple) else result
    lam = inputs["lam"] if "lam" in inputs else drawn_lam(result[1], inputs["labels"], inputs["labels"][index]).float()
    if "mean" in inputs:
        checks.check_byte_mixup(mixed, x, index, lam, inputs["mean"], inputs["std"])
    else:
        checks.check_mixup(mixed, None, x, index, lam)
