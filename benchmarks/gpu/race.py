"""One workload and some families of rivals, side by side in one process, which may be ended at its limit."""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import facts, floors, report
from .contenders import Contender, Contenders, contenders
from .launches import host_us, launches
from .parts import Budget
from .timing import Clock, GpuClock, Series, StandInClock, Turn
from .truths import Truth, tolerance, truth
from .workloads import PRODUCTS, Spec, make

MOST_FOR_GRAPH_US = 5000.0  # beyond, a graph saves nothing and keeps as much memory again
MOST_FOR_HOST_US = 2000.0
NO_TIME = "not run: no time left in this race"
LEAST_ROUNDS = 3


def main(options: argparse.Namespace) -> int:
    """Race and write what came out; the file says what is left to do."""
    torch.manual_seed(0)
    if options.device == "cpu":
        torch.set_num_threads(1)  # threads that wait for each other would take most of a test's time
    spec, budget = Spec.parse(options.workload), Budget.of(options.limit)
    clock: GpuClock | StandInClock = StandInClock() if options.device == "cpu" else GpuClock(options.cold)
    products = clock.product_operations_per_s(getattr(torch, spec.dtype)) if spec.operation in PRODUCTS else None
    rates = floors.Rates.of(facts.facts(options.device), clock.copy_bytes_per_s(), products)
    workload = make(spec, options.device)
    runners = contenders(workload, options.rivals, options.device)
    race = Race(spec, clock, budget, lambda name: truth(workload, name))
    results = race.run(runners, options.seconds)
    body = {
        "schema": report.SCHEMA,
        "kind": "race",
        "results": results,
        "work": floors.described(spec, rates),
        "rates": asdict(rates),
        "clocks": facts.clocks() if options.device == "cuda" else {},
        "out_of_time": race.out_of_time,
    }
    report.write(options.out, body)
    if options.device == "cuda":
        # Last: a profiler slows down whatever comes after it, and may not get along with graphs.
        race.profile(results)
        report.write(options.out, body)
    return 0


class Race:
    """Gate, timing, memory and host costs of the contenders of one workload."""

    def __init__(self, spec: Spec, clock: Clock, budget: Budget, truth_of: Callable[[str], Truth]) -> None:
        self.spec, self.clock, self.budget = spec, clock, budget
        self._truth_of, self._truths = truth_of, dict[str, Truth]()
        self._short_calls: dict[str, Callable[[], Any]] = {}
        self.tolerance = tolerance(spec)
        self._whole_s = budget.left()
        self.out_of_time: list[str] = []

    def run(self, runners: Contenders, seconds: float) -> dict[str, Any]:
        """Name -> what was measured, or the reason why nothing was."""
        results: dict[str, Any] = {}
        series: dict[tuple[str, str, str], Series] = {}
        for name, contender in runners.items():
            failed = False
            try:
                results[name] = self._enter(name, contender, series)
            except Exception as error:  # of any kind: others must still be timed
                failed, results[name] = True, _reason(error)
            if failed:  # only here, where the exception no longer holds its tensors
                series = {key: each for key, each in series.items() if key[0] != name}
                _forget()
        for name, reason in self._time(series, seconds).items():
            results[name]["failed"] = reason
        for (name, how, mode), each in series.items():
            if each.samples:
                results[name].setdefault(how, {})[mode] = each.summary()
        return results

    def _enter(self, name: str, contender: Contender | str, series: dict[tuple[str, str, str], Series]) -> Any:
        """The gate, and the series that a contender takes part in."""
        if isinstance(contender, str):
            return contender
        # A third is for the timing of those that are in already.
        if self.budget.left() < self._whole_s / 3:
            self.out_of_time.append(name)
            return NO_TIME
        calls = turns(contender, self.spec.has_gradient)
        error = self._error(contender)
        if not error <= self.tolerance:
            return f"wrong result: relative error {error:.1e}, at most {self.tolerance:.1e} is rounding"
        whole = calls["both" if "both" in calls else "forward"]
        eager = {mode: Series(turn, self.clock) for mode, turn in calls.items()}
        for each in eager.values():
            each.warm_up()
        how = "graph" if contender.is_graph else "eager"
        series |= {(name, how, mode): each for mode, each in eager.items()}
        estimate_us = max(each.estimate_us for each in eager.values())

        def call() -> Any:
            return whole.run(whole.prepare())

        result: dict[str, Any] = {"error": error, "peak_extra_bytes": self.clock.peak_extra_bytes(call)}
        if estimate_us < MOST_FOR_HOST_US:
            self._short_calls[name] = call
            synchronize = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
            result["host_us"] = host_us(call, synchronize)
        if estimate_us < MOST_FOR_GRAPH_US and not contender.is_graph:
            result |= self._enter_graphs(name, contender, series)
        return result

    def _enter_graphs(
        self, name: str, contender: Contender, series: dict[tuple[str, str, str], Series]
    ) -> dict[str, str]:
        """The same calls replayed from graphs; the reason where that cannot be."""
        for mode, turn in turns(contender, self.spec.has_gradient, keep_graph=True).items():
            try:
                replay = self.clock.captured(turn)
                each = Series(Turn(lambda: None, lambda _, replay=replay: replay()), self.clock)  # type: ignore[misc]
                each.warm_up()
            except Exception as error:
                return {"no_graph": f"{mode}: {_reason(error)}"}
            wrong = self._replayed_error(contender, mode, replay())
            if wrong is not None:
                return {"no_graph": f"{mode}: {wrong}"}
            series[name, "graph", mode] = each
        return {}

    def profile(self, results: dict[str, Any]) -> None:
        """Add launches, copies and waits to the results of short calls."""
        for name, call in self._short_calls.items():
            result = results[name]
            if isinstance(result, dict):
                try:
                    result["profile"] = launches(call)
                except RuntimeError as error:
                    result["profile"] = f"not run: {error}"

    def _truth(self, name: str) -> Truth:
        if name not in self._truths:
            self._truths[name] = self._truth_of(name)
        return self._truths[name]

    def _error(self, contender: Contender) -> float:
        result = contender.forward()
        gradients = torch.autograd.grad(result, contender.leaves) if self.spec.has_gradient else ()
        return self._truth(contender.truth).error(result.detach(), gradients)

    def _replayed_error(self, contender: Contender, mode: str, left: Any) -> str | None:
        """Why what a replay left is wrong; None if it is right, or only half of a result."""
        if mode == "backward":
            return None
        exact = self._truth(contender.truth)
        result, gradients = (left, ()) if isinstance(left, Tensor) else left
        if not gradients:
            exact = Truth(exact.result, ())
        error = exact.error(result.detach(), gradients)
        return None if error <= self.tolerance else f"a replay gives a wrong result: relative error {error:.1e}"

    def _time(self, series: dict[tuple[str, str, str], Series], seconds: float) -> dict[str, str]:
        """All in turn, round after round: they share the device's good and bad moments. Who failed, and why."""
        failed: dict[str, str] = {}
        end = time.monotonic() + min(seconds, self.budget.left() * 0.8)
        rounds = 0
        while series and (rounds < LEAST_ROUNDS or time.monotonic() < end):
            for (name, _, _), each in series.items():
                # One that takes a tenth of the race for a single sample gets no more.
                slow = each.samples and each.estimate_us * each.repeats > seconds * 1e5
                if name in failed or slow:
                    continue
                if self.budget.left() < self._whole_s * 0.05:
                    return failed
                try:
                    each.once()
                except Exception as error:
                    failed[name] = _reason(error)
            rounds += 1
        return failed


def turns(contender: Contender, has_gradient: bool, keep_graph: bool = False) -> dict[str, Turn]:
    """What is timed of a contender. `keep_graph`: a backward pass that can run again and again."""

    def forward(_: Any = None) -> Tensor:
        if contender.is_graph:
            torch.compiler.cudagraph_mark_step_begin()
        return contender.forward()

    def backward(loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, contender.leaves, retain_graph=keep_graph)

    def both(_: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        loss = forward()
        return loss.detach(), torch.autograd.grad(loss, contender.leaves)

    nothing: Callable[[], Any] = lambda: None  # noqa: E731
    if not has_gradient:
        return {"forward": Turn(nothing, forward)}
    if contender.is_graph:  # its next forward pass may write over what a pending backward pass needs
        return {"both": Turn(nothing, both)}
    return {"forward": Turn(nothing, forward), "backward": Turn(forward, backward), "both": Turn(nothing, both)}


def _reason(error: Exception) -> str:
    """One line; a backend that is not there has not failed."""
    line = (str(error).strip().splitlines() or [""])[0]
    return f"not run: {line}" if "not available" in line else f"failed: {type(error).__name__}: {line}"


def _forget() -> None:
    """Give back what a contender that failed, for want of memory perhaps, still holds."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `race`, which `bench` starts."""
    parser.add_argument("--workload", required=True)
    parser.add_argument("--rivals", nargs="*", default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--cold", action="store_true")
