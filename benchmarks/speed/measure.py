"""Timing contenders side by side, those whose results are right."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from icm_fast.testing.memory import peak_extra_bytes

from .contenders import Step
from .errors import largest_error

# The relative error from which on a result is wrong. Of float32 sums of up to 10^4 terms: a correct formulation is far
# inside, a wrong one far outside.
WRONG = 1e-3
LEAST_ROUNDS = 5
MOST_SAMPLES = 5  # of a turn
NEWLINE, MESSAGE_CHARACTERS = "\n", 200
# Of a contender's name and its result: the error; None of what has no result. Raises AssertionError if it is wrong.
Gate = Callable[[str, Any], float | None]


@dataclass(frozen=True)
class Measurement:
    """Times of one contender, one for each round; `error` is the largest distance to the float64 truth, of which a
    floor has none.
    """

    samples_us: tuple[float, ...]
    peak_extra_bytes: int
    error: float | None

    @cached_property
    def _quantiles(self) -> list[float]:
        wanted = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
        found: list[float] = torch.tensor(self.samples_us, dtype=torch.float64).quantile(wanted).tolist()
        return found

    @property
    def p20_us(self) -> float:
        return self._quantiles[0]

    @property
    def median_us(self) -> float:
        return self._quantiles[1]

    @property
    def p80_us(self) -> float:
        return self._quantiles[2]

    @property
    def rounds(self) -> int:
        return len(self.samples_us)

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        names = ("median_us", "p20_us", "p80_us", "rounds", "peak_extra_bytes", "error")
        return {name: getattr(self, name) for name in names}


def relative(expected: Any, wrong: float = WRONG) -> Gate:
    """All are compared with the same truth."""
    return lambda _, result: within(largest_error(result, expected), wrong)


def within(error: float, wrong: float) -> float:
    """The error, if it is below the bound.

    Raises:
        AssertionError: it is not, or is NaN.
    """
    if not error < wrong:
        raise AssertionError(f"relative error {error:.1e}, from {wrong:.1e} on it is none of rounding")
    return error


def bound(dtype: torch.dtype) -> float:
    """The relative error from which on a result is wrong: some roundings of the gradient to its type."""
    return WRONG if dtype == torch.uint8 else max(WRONG, 4 * torch.finfo(dtype).eps)


def measure(steps: Mapping[str, Step], gate: Gate, seconds: float) -> dict[str, Measurement | str]:
    """Time the contenders that pass the gate; of the others the reason why there is no time."""
    errors, failed = judge(steps, gate)
    return time_in_turn({name: steps[name] for name in errors}, errors, seconds) | failed


def judge(steps: Mapping[str, Step], gate: Gate) -> tuple[dict[str, float | None], dict[str, Measurement | str]]:
    """The errors of those whose first result is right, and of the others the reason."""
    errors: dict[str, float | None] = {}
    failed: dict[str, Measurement | str] = {}
    for name, step in steps.items():
        try:
            result = step()
        except Exception as reason:
            failed[name] = f"failed: {type(reason).__name__}: {str(reason).partition(NEWLINE)[0][:MESSAGE_CHARACTERS]}"
            continue
        try:
            errors[name] = gate(name, result)
        except AssertionError as reason:
            failed[name] = f"wrong result: {reason}"
        del result
    return errors, failed


def time_in_turn(
    steps: Mapping[str, Step], errors: Mapping[str, float | None], seconds: float
) -> dict[str, Measurement | str]:
    """Every contender in turn, round after round, for about `seconds`.

    In turn, so that all share the machine's good and bad moments. A turn begins with one call that is not timed, for
    what the contender before left in the caches and took from the allocator (a step of a second does not feel that),
    and repeats a step until that takes some 20 ms; it counts the mean. Beside a rival whose step takes longer a turn
    has more such samples, or the quick would have as few as the slow.
    """
    once = {name: _seconds(step, 2) for name, step in steps.items()}
    repeats = {name: max(1, int(20e-3 / each)) for name, each in once.items()}
    turns = {name: repeats[name] * each for name, each in once.items()}
    samples_of = {name: min(MOST_SAMPLES, max(1, int(max(turns.values()) / turn))) for name, turn in turns.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values()), default=LEAST_ROUNDS) < LEAST_ROUNDS:
        for name, step in steps.items():
            if once[name] < 1:
                step()
            times[name] += [_seconds(step, repeats[name]) * 1e6 for _ in range(samples_of[name])]
    return {
        name: Measurement(tuple(samples), peak_extra_bytes(steps[name]), errors[name])
        for name, samples in times.items()
    }


def _seconds(step: Step, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats
