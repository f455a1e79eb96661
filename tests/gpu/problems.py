"""One call of each operation, with the check of its results: what tests that are not about one operation use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast.operators._library import accumulation_type
from icm_fast.testing.am_mixup import check_am_mixup_loss
from icm_fast.testing.checks import check_icm_loss, check_mixup, check_mixup_cross_entropy
from icm_fast.testing.linear import Inputs, Results, check_linear_icm_loss, pairs
from icm_fast.testing.regimes import REGIMES, Case

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
Shape = tuple[int, int]


class Kernel(NamedTuple):
    """An operation of a backend."""

    operation: str
    backend: str


def of(*operations: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Marks a test that is of some operations only."""

    def mark(test: Callable[..., None]) -> Callable[..., None]:
        test.operations = operations  # type: ignore[attr-defined]
        return test

    return mark


@dataclass(frozen=True)
class Problem:
    """A call and its check. `check(values, result, *gradients)`: for values of the leaf, and a gradient of ones."""

    leaf: Tensor
    indices: tuple[Tensor, ...]  # what the call follows: labels, partners
    call: Callable[..., Tensor]  # with a backend, the leaf and the others
    check: Callable[..., None]
    others: tuple[Tensor, ...] = ()  # differentiated too

    def run(self, backend: str, values: Tensor | None = None) -> tuple[Tensor, ...]:
        """Result and gradients, of the leaf or of other values in any layout, then of the others."""
        given = self.leaf if values is None else values
        leaves = [each.detach().requires_grad_() for each in (given, *self.others)]
        result = self.call(backend, *leaves)
        return result.detach(), *torch.autograd.grad(result, leaves, torch.ones_like(result))

    def run_and_check(self, backend: str, values: Tensor | None = None) -> None:
        """Assert that both are within the budget."""
        self.check(self.leaf if values is None else values, *self.run(backend, values))


def draw(regime: str, shape: Shape, dtype: torch.dtype, device: torch.device, g: torch.Generator) -> Case:
    """The same case on every device."""
    return REGIMES[regime](*shape, dtype, g, str(device))


def target_of(case: Case) -> icm.MixedTarget:
    """The target of a case."""
    return icm.MixedTarget(case.y_a, case.y_b, case.lam)


def icm_loss(case: Case, g: torch.Generator) -> Problem:
    """The loss on both axes."""
    return Problem(
        case.logits,
        (case.y_a, case.y_b),
        lambda backend, leaf: F_icm.icm_loss(leaf, target_of(case), backend=backend),
        lambda values, loss, dlogits: check_icm_loss(loss, dlogits, values, case),
    )


def mixup_cross_entropy(case: Case, g: torch.Generator) -> Problem:
    """Mixed cross-entropy, smoothed."""
    return Problem(
        case.logits,
        (case.y_a, case.y_b),
        lambda backend, leaf: F_icm.mixup_cross_entropy(leaf, target_of(case), label_smoothing=0.1, backend=backend),
        lambda values, loss, dlogits: check_mixup_cross_entropy(loss, dlogits, values, case, label_smoothing=0.1),
    )


def am_mixup_loss(case: Case, g: torch.Generator) -> Problem:
    """AM-Mixup at a rate of 3/4, partners repeated."""
    index = torch.randint(max(1, len(case.y_a)), (len(case.y_a),), generator=g).to(case.y_a.device)

    def check(values: Tensor, loss: Tensor, dlogits: Tensor) -> None:
        home = (tensor.cpu() for tensor in (loss, dlogits, values, index))
        check_am_mixup_loss(*home, 0.75, case.y_a.cpu())

    return Problem(
        case.logits,
        (index, case.y_a),
        lambda backend, leaf: F_icm.am_mixup_loss(leaf, index, 0.75, case.y_a, backend=backend),
        check,
    )


def mixup(case: Case, g: torch.Generator) -> Problem:
    """Mixing of samples of C elements each, partners repeated."""
    index = torch.randint(max(1, len(case.y_a)), (len(case.y_a),), generator=g).to(case.y_a.device)
    return Problem(
        case.logits,
        (index,),
        lambda backend, leaf: F_icm.mixup(leaf, index, case.lam, backend=backend),
        lambda values, mixed, dx: check_mixup(mixed, dx, values, index, case.lam),
    )


def linear_icm_loss(case: Case, g: torch.Generator) -> Problem:
    """The loss of C features and as many classes: mixed classifiers where these are more than the batch can use."""
    classes = case.logits.shape[1]
    weight = (torch.randn(classes, classes, generator=g) * 2 / max(classes, 1) ** 0.5).to(case.logits)
    bias = torch.randn(classes, generator=g).to(case.logits)
    target = target_of(case)

    def call(backend: str, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F_icm.linear_icm_loss(features, weight, target, bias, backend=backend)

    def check(values: Tensor, *results: Tensor) -> None:
        check_linear_icm_loss(Results(*results), at_home(Inputs(values, weight, bias)), target)

    return Problem(case.logits, (case.y_a, case.y_b), call, check, (weight, bias))


def contrastive_loss(case: Case, g: torch.Generator) -> Problem:
    """The loss of two views of C features, and of a scale."""
    y = torch.randn(case.logits.shape, generator=g).to(case.logits)
    scale = torch.full((), 0.5, dtype=accumulation_type(y.dtype), device=y.device)

    def call(backend: str, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        return F_icm.contrastive_loss(x, y, scale, backend=backend)

    def check(values: Tensor, loss: Tensor, dx: Tensor, dy: Tensor, dscale: Tensor) -> None:
        given = at_home(Inputs(values, y, None, scale))
        check_linear_icm_loss(Results(loss, dx, dy, None, dscale), given, pairs(len(y)), what="contrastive_loss")

    return Problem(case.logits, (), call, check, (y, scale))


def at_home(given: Inputs) -> Inputs:
    """On the CPU, where checks are made."""
    return Inputs(*(None if each is None else each.detach().cpu() for each in given))


BUILDERS: dict[str, Callable[[Case, torch.Generator], Problem]] = {
    "icm_loss": icm_loss,
    "mixup": mixup,
    "mixup_cross_entropy": mixup_cross_entropy,
    "am_mixup_loss": am_mixup_loss,
    "linear_icm_loss": linear_icm_loss,
    "contrastive_loss": contrastive_loss,
}
OPERATIONS = tuple(BUILDERS)


def problem(
    operation: str,
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device,
    g: torch.Generator,
    regime: str = "normal",
) -> Problem:
    """A problem of an operation; `regime` is that of the logits."""
    return BUILDERS[operation](draw(regime, shape, dtype, device, g), g)


def lacks(kernel: Kernel, device: torch.device) -> str | None:
    """Why a backend cannot compute an operation here; None if it can."""
    nothing = problem(kernel.operation, (0, 4), torch.float32, device, torch.Generator(), "equal")
    try:
        nothing.call(kernel.backend, nothing.leaf, *nothing.others)
    except (RuntimeError, ValueError) as error:
        message = str(error)
        if any(words in message for words in ("not available", "has no kernel", "works on")):
            return message
    return None


def layouts(values: Tensor) -> dict[str, Tensor]:
    """The same (B, C) values laid out in every way that a caller may have them."""
    B, C = values.shape

    def view(shape: tuple[int, ...], at: Any) -> Tensor:
        room = torch.full(shape, float("nan"), dtype=values.dtype, device=values.device)[at]
        return room.copy_(values)

    return {
        "transposed": values.T.contiguous().T,
        "every other class": view((B, 2 * C + 1), (slice(None), slice(1, None, 2))),
        "misaligned by one element": view((B, C + 3), (slice(None), slice(1, C + 1))),
        "contiguous from a misaligned start": torch.cat([values.new_zeros(1), values.reshape(-1)])[1:].view(B, C),
        "every other row": view((2 * B, C), slice(None, None, 2)),
        "rows far apart": view((B, 4 * C), (slice(None), slice(0, C))),
    }
