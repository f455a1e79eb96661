"""Timing contenders side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from icm_fast.testing.memory import peak_extra_bytes

from .contenders import Step
from .floor import FLOOR

# The relative error from which on a result is wrong. Of float32 sums of up to 10^4 terms: a correct formulation is far
# inside, a wrong one far outside.
WRONG = 1e-3


@dataclass(frozen=True)
class Measurement:
    """Times of one contender, over its rounds; `error` is the largest distance to the float64 truth, of which a floor
    has none.
    """

    median_us: float
    p20_us: float
    p80_us: float
    rounds: int
    peak_extra_bytes: int
    error: float | None


def tensors(result: Any) -> list[Tensor]:
    """A contender's result as a list."""
    return list(result) if isinstance(result, tuple) else [result]


def largest_error(result: Any, truth: Any) -> float:
    """Largest distance to the truth, relative to the largest value of the truth; NaN counts as infinite."""
    worst = 0.0
    for ours, exact in zip(tensors(result), tensors(truth), strict=True):
        error = float((ours.to_dense().double() - exact).abs().max() / exact.abs().max().clamp(min=1e-300))
        worst = max(worst, error if error == error else float("inf"))
    return worst


def measure(
    steps: Mapping[str, Step], truth: Any, seconds: float, wrong: float = WRONG
) -> dict[str, Measurement | str]:
    """Time every contender in turn, round after round, for about `seconds`; a wrong result gets no time, but a reason.

    In turn, so that all share the machine's good and bad moments. A turn begins with one call that is not timed, for
    what the contender before left in the caches and took from the allocator (a step of a second does not feel that),
    and repeats a step until that takes some 20 ms; it counts the mean.
    """
    failed: dict[str, Measurement | str] = {}
    errors: dict[str, float | None] = {}
    running: dict[str, Step] = {}
    for name, step in steps.items():
        try:
            result = step()
            error = errors[name] = None if name == FLOOR else largest_error(result, truth)
        except Exception as reason:
            failed[name] = f"failed: {type(reason).__name__}: {str(reason).splitlines()[0]}"
            continue
        if error is None or error < wrong:
            running[name] = step
        else:
            failed[name] = f"wrong result: relative error {error:.1e}"
    once = {name: _seconds(step, 2) for name, step in running.items()}
    repeats = {name: max(1, int(20e-3 / seconds)) for name, seconds in once.items()}
    times: dict[str, list[float]] = {name: [] for name in running}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values()), default=5) < 5:
        for name, step in running.items():
            if once[name] < 1:
                step()
            times[name].append(_seconds(step, repeats[name]) * 1e6)
    measured: dict[str, Measurement | str] = {}
    for name, samples in times.items():
        p20, median, p80 = torch.tensor(samples).quantile(torch.tensor([0.2, 0.5, 0.8])).tolist()
        extra = peak_extra_bytes(running[name])
        measured[name] = Measurement(median, p20, p80, len(samples), extra, errors[name])
    return measured | failed


def _seconds(step: Step, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats
