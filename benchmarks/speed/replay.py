"""Samples that were taken elsewhere, as pytest-benchmark's own: a race is interleaved, pytest-benchmark is not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence


class Replay:
    """A timer for `pytest.mark.benchmark(timer=...)`: of every two readings the second is later by the next sample.

    pytest-benchmark reads it before and after a round, and nothing else does.
    """

    def __init__(self) -> None:
        self._readings: Iterator[float] = iter(())

    def load(self, samples_s: Sequence[float]) -> None:
        """What the next rounds are to have taken, in seconds. The first reading is 0, so that no digit is lost."""
        self._readings = itertools.chain.from_iterable((0.0, sample) for sample in samples_s)

    def __call__(self) -> float:
        return next(self._readings)
