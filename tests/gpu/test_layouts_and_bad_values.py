"""Inputs as callers have them: misaligned, strided, expanded; and with labels and weights out of range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import icm_fast as icm
from icm_fast import functional as F_icm

from .problems import DTYPES, Kernel, layouts, of, problem

NAN, INF = float("nan"), float("inf")
BAD_LABELS = (5, -1, 2**62, -(2**63))
BAD_WEIGHTS = (-1e-7, 1.0000002, NAN, INF)
mark_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


@mark_dtypes
@pytest.mark.parametrize("shape", [(37, 50), (130, 7), (33, 128)], ids=str)
def test_layouts(
    shape: tuple[int, int], dtype: torch.dtype, kernel: Kernel, device: torch.device, generator: torch.Generator
) -> None:
    given = problem(kernel.operation, shape, dtype, device, generator)
    for name, view in layouts(given.leaf).items():
        assert torch.equal(view, given.leaf), name
        given.run_and_check(kernel.backend, view)
    given.run_and_check(kernel.backend, given.leaf[:1].expand(shape))
    given.run_and_check(kernel.backend, given.leaf[:, :1].expand(shape))


@of("icm_loss", "mixup_cross_entropy")
@mark_dtypes
@pytest.mark.parametrize("bad", ["y_a", "y_b", "lam"])
def test_bad_targets_make_loss_and_gradient_nan(
    bad: str, dtype: torch.dtype, kernel: Kernel, device: torch.device
) -> None:
    function = getattr(F_icm, kernel.operation)
    for size in (2, 300):
        for value in BAD_WEIGHTS if bad == "lam" else BAD_LABELS:
            fields: dict[str, Any] = {
                "y_a": torch.arange(size, device=device) % 5,
                "y_b": torch.arange(size, device=device).flip(0) % 5,
                "lam": torch.full((size,), 0.5, device=device),
            }
            fields[bad][size - 1] = value
            for reduction in ("mean", "none"):
                logits = torch.zeros(size, 5, dtype=dtype, device=device, requires_grad=True)
                loss = _on_device(
                    function,
                    logits,
                    icm.MixedTarget(**fields),
                    reduction=reduction,
                    backend=kernel.backend,
                )
                if loss is not None:
                    _assert_nan(loss, logits, f"{bad} {value} {reduction}")


@of("am_mixup_loss")
@mark_dtypes
@pytest.mark.parametrize("bad", ["index", "labels", "rate"])
def test_bad_am_mixup_makes_loss_and_gradient_nan(
    bad: str, dtype: torch.dtype, kernel: Kernel, device: torch.device
) -> None:
    for value in BAD_WEIGHTS if bad == "rate" else BAD_LABELS:
        fields = {
            "index": torch.arange(5, device=device),
            "rate": torch.tensor(0.75, device=device),
            "labels": torch.arange(5, device=device),
        }
        fields[bad][... if bad == "rate" else 4] = value
        logits = torch.zeros(5, 5, dtype=dtype, device=device, requires_grad=True)
        loss = _on_device(F_icm.am_mixup_loss, logits, *fields.values(), backend=kernel.backend)
        if loss is not None:
            _assert_nan(loss, logits, f"{bad} {value}")


@of("mixup")
@mark_dtypes
def test_bad_mixing_makes_its_samples_nan(dtype: torch.dtype, kernel: Kernel, device: torch.device) -> None:
    index = torch.tensor([1, -1, 5, 2**62, 2], device=device)
    lam = torch.tensor([0.3, 0.3, 1.0, 0.3, 1.5], device=device)
    x = torch.ones(5, 3, 4, 6, dtype=dtype, device=device, requires_grad=True)
    mixed = _on_device(F_icm.mixup, x, index, lam, backend=kernel.backend)
    if mixed is None:
        return
    assert mixed.flatten(1).isnan().all(1).tolist() == [False, True, True, True, True]
    assert not mixed[0].isnan().any()
    # Sample 2 is bad itself and the partner of a bad lam; 0 is nobody's partner.
    (dx,) = torch.autograd.grad(mixed, x, torch.ones_like(mixed))
    assert dx.flatten(1).isnan().all(1).tolist() == [False, True, True, True, True]


def _on_device(function: Callable[..., Tensor], *arguments: Any, **options: Any) -> Tensor | None:
    """The call; None on a stand-in, where plain Python looks at values first and raises instead."""
    if arguments[0].device.type != "cpu":
        return function(*arguments, **options)
    with pytest.raises(ValueError, match="expected"):
        function(*arguments, **options)
    return None


def _assert_nan(loss: Tensor, logits: Tensor, what: str) -> None:
    assert loss.isnan().all(), f"{what}: the loss is not NaN"
    (dlogits,) = torch.autograd.grad(loss, logits, torch.ones_like(loss))
    assert dlogits.isnan().all(), f"{what}: {int((~dlogits.isnan()).sum())} elements of the gradient are not NaN"
