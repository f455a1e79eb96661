"""One call of each operation, with the check of its results: what tests that are not about one operation use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast.testing.am_mixup import check_am_mixup_loss
from icm_fast.testing.checks import check_icm_loss, check_mixup, check_mixup_cross_entropy
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
    """A call and its check. `check(values, result, gradient)`: for values of the leaf, and a gradient of ones."""

    leaf: Tensor
    indices: tuple[Tensor, ...]  # what the call follows: labels, partners
    call: Callable[[Tensor, str], Tensor]
    check: Callable[[Tensor, Tensor, Tensor], None]

    def run(self, backend: str, values: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Result and gradient, of the leaf or of other values in any layout."""
        leaf = (self.leaf if values is None else values).detach().requires_grad_()
        result = self.call(leaf, backend)
        (gradient,) = torch.autograd.grad(result, leaf, torch.ones_like(result))
        return result.detach(), gradient

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
        lambda leaf, backend: F_icm.icm_loss(leaf, target_of(case), backend=backend),
        lambda values, loss, dlogits: check_icm_loss(loss, dlogits, values, case),
    )


def mixup_cross_entropy(case: Case, g: torch.Generator) -> Problem:
    """Mixed cross-entropy, smoothed."""
    return Problem(
        case.logits,
        (case.y_a, case.y_b),
        lambda leaf, backend: F_icm.mixup_cross_entropy(leaf, target_of(case), label_smoothing=0.1, backend=backend),
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
        lambda leaf, backend: F_icm.am_mixup_loss(leaf, index, 0.75, case.y_a, backend=backend),
        check,
    )


def mixup(case: Case, g: torch.Generator) -> Problem:
    """Mixing of samples of C elements each, partners repeated."""
    index = torch.randint(max(1, len(case.y_a)), (len(case.y_a),), generator=g).to(case.y_a.device)
    return Problem(
        case.logits,
        (index,),
        lambda leaf, backend: F_icm.mixup(leaf, index, case.lam, backend=backend),
        lambda values, mixed, dx: check_mixup(mixed, dx, values, index, case.lam),
    )


BUILDERS: dict[str, Callable[[Case, torch.Generator], Problem]] = {
    "icm_loss": icm_loss,
    "mixup": mixup,
    "mixup_cross_entropy": mixup_cross_entropy,
    "am_mixup_loss": am_mixup_loss,
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
        nothing.call(nothing.leaf, kernel.backend)
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
