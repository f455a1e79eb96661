"""How far results lie from the truth."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def largest_error(result: Any, expected: Any) -> float:
    """Largest distance to the truth, relative to the largest value of the truth; NaN counts as infinite."""
    worst = 0.0
    for ours, true in zip(_tensors(result), _tensors(expected), strict=True):
        if ours.shape != true.shape:
            return float("inf")
        error = float((ours.to_dense().double() - true).abs().max() / true.abs().max().clamp(min=1e-300))
        worst = max(worst, error if error == error else float("inf"))
    return worst


def _tensors(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, tuple) else [result]
