"""One workload, in a process of its own.

What the workloads before left to the allocator would decide whether a new array is memory already or must be got page
by page, which can be half of the time of a call.
"""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from .contenders import OURSELVES, Contender, Contenders, Step, contenders
from .measure import Gate, Measurement, bound, judge, time_in_turn, within
from .truths import Judge, check_budget, is_budgeted
from .workloads import Spec, Workload, make

Measured = TypeVar("Measured")


@dataclass(frozen=True)
class Options:
    """What every workload is raced with; `threads` are those of all contenders."""

    seconds: float
    threads: int
    compiled: bool = True


def race(spec: Spec, options: Options, names: Collection[str] | None = None) -> dict[str, Measurement | str]:
    """All contenders, or those of the given names."""
    try:
        return alone(_race, spec, options, names)
    except BrokenProcessPool:
        return dict.fromkeys(names or contenders(spec, options.compiled), "failed: the process of this workload died")


def alone(function: Callable[..., Measured], *arguments: object) -> Measured:
    """Start the process and wait for what it measured."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _race(spec: Spec, options: Options, names: Collection[str] | None) -> dict[str, Measurement | str]:
    torch.set_num_threads(options.threads)
    found = contenders(spec, options.compiled)
    return raced(spec, found if names is None else {name: found[name] for name in names}, options.seconds)


def raced(spec: Spec, found: Contenders, seconds: float) -> dict[str, Measurement | str]:
    """In this process."""
    runners = {name: each for name, each in found.items() if isinstance(each, Contender)}
    workload = make(spec)
    steps = dict[str, Step]()
    errors, results = dict[str, float | None](), dict[str, Measurement | str]()
    gate = _gate(spec, runners, workload)
    for name, contender in runners.items():
        # Made within the first call, so that a library that cannot be imported is a contender that fails.
        made = functools.cache(functools.partial(contender.make, workload))
        right, failed = judge({name: functools.partial(_first_call, made)}, gate)
        errors |= right
        results |= failed
        if name in right:
            steps[name] = made()
    del gate  # and the truth with it
    results |= time_in_turn(steps, errors, seconds)
    return {name: results.get(name, str(each)) for name, each in found.items()}


def _first_call(made: Callable[[], Step]) -> Any:
    return made()()


def _gate(spec: Spec, runners: Mapping[str, Contender], workload: Workload) -> Gate:
    """Every result against its truth, and ours against the elementwise budget where that is affordable."""
    wrong = bound(getattr(torch, spec.dtype))
    prepared: dict[Judge, Callable[[Any], float]] = {}

    def gate(name: str, result: Any) -> float | None:
        contender = runners[name]
        if contender.judge is None:
            return None
        if contender.judge not in prepared:
            prepared[contender.judge] = contender.judge(workload)
        error = within(prepared[contender.judge](result), wrong)
        if contender.role == OURSELVES and is_budgeted(workload):
            check_budget(workload, result)
        return error

    return gate
