"""One size: is the result right, how long does a step take, how much memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from icm_fast import functional as F_icm
from icm_fast.testing.memory import peak_extra_bytes

from ..speed.contenders import Step, plain_steps, step
from ..speed.gate import error, terms_of, truth
from ..speed.measure import WRONG
from ..speed.workloads import loss_workload

OPERATION = "icm_loss"
LAMS = {"sample": False, "batch": True}  # one lam for each of these
LEAST_ROUNDS = 3
TURN_S = 5e-3  # a step is repeated until that takes so long


class Point(NamedTuple):
    """Times of a step, its error, whether that is the error of the whole result or of a sample, and its memory.

    Every page fault is a page of new memory: where there are many, the system takes more time than the kernels.
    """

    median_us: float
    p20_us: float
    p80_us: float
    rounds: int
    error: float
    is_whole: bool
    page_faults: int
    peak_extra_bytes: int


def key(lam: str, threads: int) -> str:
    """Names a point of a size."""
    return f"one lam per {lam}, threads {threads}"


def points(size: tuple[int, int], threads: Sequence[int], seconds: float) -> dict[str, Point | str]:
    """Loss and gradient for every number of threads and kind of lam; a wrong result gets no time, but a reason."""
    found: dict[str, Point | str] = {}
    for lam, one_lam in LAMS.items():
        torch.set_num_threads(max(threads))
        workload = loss_workload(OPERATION, size, one_lam)
        exact, terms = truth(workload), terms_of(workload)
        run = step(F_icm.icm_loss, workload.leaves, workload.inputs["target"])
        for count in threads:
            torch.set_num_threads(count)
            wrong = error(run(), terms, exact, workload)
            if wrong >= WRONG:
                found[key(lam, count)] = f"wrong result: relative error {wrong:.1e}"
                continue
            times = torch.tensor(_times(run, seconds / len(LAMS) / len(threads)), dtype=torch.float64)
            p20, median, p80 = times.mul(1e6).quantile(times.new_tensor([0.2, 0.5, 0.8])).tolist()
            memory = _page_faults(run), peak_extra_bytes(run)
            found[key(lam, count)] = Point(median, p20, p80, len(times), wrong, exact.is_whole, *memory)
    return found


def eager_bytes(size: tuple[int, int]) -> dict[str, int]:
    """Extra memory of a step of each rival in plain torch."""
    steps = plain_steps(loss_workload(OPERATION, size, one_lam=False))
    return {name: peak_extra_bytes(run) for name, run in steps.items()}


def _page_faults(run: Step) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def _times(run: Step, seconds: float) -> list[float]:
    """Seconds of a step, over rounds: the more, the shorter it is. The first call was the gate's."""
    repeats = max(1, int(TURN_S / _mean(run, 1)))
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < LEAST_ROUNDS or time.perf_counter() < end:
        times.append(_mean(run, repeats))
    return times


def _mean(run: Step, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats
