"""Means, deviations and paired differences of a grid of runs, and what may be said of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.accuracy import methods
from benchmarks.accuracy.train import RunResult

Part = Literal["accuracy", "head_accuracy", "tail_accuracy"]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Score:
    """Mean over seeds and sample standard deviation (NaN for one seed)."""

    mean: float
    std: float

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if math.isnan(self.std) else f"{self.mean:.2f} ± {self.std:.2f}"


@dataclass(frozen=True)
class Difference:
    """Mean over seeds of one method minus another on the same seeds, with its standard error (NaN for one seed)."""

    mean: float
    standard_error: float
    seeds: int

    @property
    def exceeds_noise(self) -> bool:
        """Whether zero lies outside the two-sided 95 % range of Student's t."""
        if self.seeds < 2:
            return False
        from scipy.stats import t  # type: ignore[import-untyped]

        return abs(self.mean) > float(t.ppf((1 + CONFIDENCE) / 2, self.seeds - 1)) * self.standard_error

    def __str__(self) -> str:
        if self.seeds < 2:
            return f"{self.mean:+6.2f}  one seed: the noise is unknown"
        verdict = "beyond the noise" if self.exceeds_noise else "within the noise"
        return f"{self.mean:+6.2f} ± {self.standard_error:.2f}  {verdict}"


def values(results: Iterable[RunResult], data: str, method: str, part: Part = "accuracy") -> dict[int, float]:
    """One value per seed."""
    return {result.seed: getattr(result, part) for result in results if (result.data, result.method) == (data, method)}


def score(results: Iterable[RunResult], data: str, method: str, part: Part = "accuracy") -> Score:
    by_seed = list(values(results, data, method, part).values())
    return Score(statistics.fmean(by_seed), statistics.stdev(by_seed) if len(by_seed) > 1 else math.nan)


def difference(results: Sequence[RunResult], data: str, method: str, other: str, part: Part = "accuracy") -> Difference:
    """method - other, seed by seed: equal seeds share training images, first weights and the order of batches."""
    ours, theirs = values(results, data, method, part), values(results, data, other, part)
    if ours.keys() != theirs.keys():
        raise ValueError(f"difference: {method} and {other} on {data} were not run with the same seeds")
    differences = [ours[seed] - theirs[seed] for seed in ours]
    if len(differences) < 2:
        return Difference(differences[0], math.nan, len(differences))
    return Difference(
        statistics.fmean(differences),
        statistics.stdev(differences) / math.sqrt(len(differences)),
        len(differences),
    )


def ranking(results: Sequence[RunResult], data: str) -> list[str]:
    """Methods of a data set, highest mean accuracy first; ties keep the order of the runs."""
    names = dict.fromkeys(result.method for result in results if result.data == data)
    return sorted(names, key=lambda name: -score(results, data, name).mean)


def findings(results: Sequence[RunResult], data: str) -> list[str]:
    """What this data set shows, one statement a line, whatever it is."""
    ranked = ranking(results, data)
    best = ranked[0]
    lines = [f"{data}: the highest mean is that of {methods.get(best).title}, {score(results, data, best)} %."]
    compared = [(best, other) for other in dict.fromkeys([*ranked[1:2], "erm"]) if other in ranked[1:]]
    for name, method in methods.METHODS.items():
        if name in ranked and method.counterpart in ranked and (name, method.counterpart) not in compared:
            compared.append((name, str(method.counterpart)))
    pairs = [(f"{methods.get(name).title} - {methods.get(other).title}", name, other) for name, other in compared]
    width = max((len(text) for text, _, _ in pairs), default=0)
    return lines + [f"  {text:{width}}  {difference(results, data, name, other)}" for text, name, other in pairs]
