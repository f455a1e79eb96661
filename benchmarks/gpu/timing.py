"""Clocks. The GPU's own: events around work that stands in its queue already, so that the host is not timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

REGION_US = 200.0  # short calls are repeated until a timed region is about that long
MOST_REPEATS = 20  # more would fill the queue of launches, and the host would wait in the middle
MOST_SPIN_US = 50_000.0
SLOW_US = 200_000.0
COPY_BYTES = 2**30
PRODUCT_SIDE = 8192  # of square matrices


@dataclass(frozen=True)
class Turn:
    """What is timed: `run` on what `prepare` returns, which is not timed."""

    prepare: Callable[[], Any]
    run: Callable[[Any], Any]


@dataclass(frozen=True)
class Sample:
    """Microseconds of one run. `queued`: the device began only when all of it stood in the queue."""

    us: float
    queued: bool


class Clock(Protocol):
    """Times turns on one kind of device."""

    def sample(self, turn: Turn, repeats: int, spin_us: float) -> Sample:
        """One timed region; the device is kept busy for `spin_us` before it."""

    def peak_extra_bytes(self, call: Callable[[], object]) -> int | None:
        """How far the memory of the device rises in a call; None if nobody knows."""

    def captured(self, turn: Turn) -> Callable[[], Any]:
        """A function that replays the run of a turn, prepared once, from a CUDA graph; it returns what that left."""


class GpuClock:
    """Events. `cold` empties the L2 cache before every region."""

    def __init__(self, cold: bool) -> None:
        device = torch.cuda.get_device_properties(torch.cuda.current_device())
        size_bytes = 2 * int(getattr(device, "L2_cache_size", 0) or 128 * 2**20)
        self._flush = torch.empty(size_bytes, dtype=torch.uint8, device="cuda") if cold else None
        self.cold = cold
        torch.cuda._sleep(1000)
        cycles = 5_000_000
        self._cycles_per_us = cycles / self._region_us(lambda: torch.cuda._sleep(cycles))

    def _region_us(self, call: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1000

    def sample(self, turn: Turn, repeats: int, spin_us: float) -> Sample:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        prepared = [turn.prepare() for _ in range(repeats)]
        torch.cuda.synchronize()
        if self._flush is not None:
            self._flush.zero_()
        if spin_us:
            torch.cuda._sleep(int(spin_us * self._cycles_per_us))
        start.record()
        for each in prepared:
            turn.run(each)
        end.record()
        queued = not start.query()
        end.synchronize()
        return Sample(float(start.elapsed_time(end)) * 1000 / repeats, queued)

    def peak_extra_bytes(self, call: Callable[[], object]) -> int | None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def captured(self, turn: Turn) -> Callable[[], Any]:
        # All on one stream of its own: a backward pass runs on the stream of its forward pass.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            prepared = turn.prepare()
            for _ in range(3):
                turn.run(prepared)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            left = turn.run(prepared)

        def replay() -> Any:
            graph.replay()
            return left

        return replay

    def copy_bytes_per_s(self) -> float:
        """Of a copy on the device, bytes read and written, the best of a few."""
        size_bytes = min(COPY_BYTES, torch.cuda.mem_get_info()[0] // 8)
        source = torch.randint(256, (size_bytes,), dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        target.copy_(source)
        return 2 * size_bytes / min(self._region_us(lambda: target.copy_(source)) for _ in range(10)) * 1e6

    def product_operations_per_s(self, dtype: torch.dtype) -> float:
        """Of a large matrix product, the best of a few, as the framework's settings have it: float32 is float32."""
        x = torch.randn(PRODUCT_SIDE, PRODUCT_SIDE, device="cuda", dtype=dtype)
        out = torch.mm(x, x)
        return 2 * PRODUCT_SIDE**3 / min(self._region_us(lambda: torch.mm(x, x, out=out)) for _ in range(10)) * 1e6


class StandInClock:
    """The host's clock for the CPU: to test what is around it."""

    cold = False

    def sample(self, turn: Turn, repeats: int, spin_us: float) -> Sample:
        prepared = [turn.prepare() for _ in range(repeats)]
        start = time.perf_counter()
        for each in prepared:
            turn.run(each)
        return Sample((time.perf_counter() - start) * 1e6 / repeats, True)

    def peak_extra_bytes(self, call: Callable[[], object]) -> int | None:
        return None

    def captured(self, turn: Turn) -> Callable[[], Any]:
        raise RuntimeError("a CPU has no graphs")

    def copy_bytes_per_s(self) -> float | None:
        return None

    def product_operations_per_s(self, dtype: torch.dtype) -> float | None:
        return None


@dataclass
class Series:
    """Samples of one turn, with the repeats and the spin that it needs."""

    turn: Turn
    clock: Clock
    most_repeats: int = MOST_REPEATS
    repeats: int = 1
    spin_us: float = 1000.0
    samples: list[Sample] = field(default_factory=list)
    estimate_us: float = 0.0

    def warm_up(self) -> None:
        """Run it, and find out how long it takes the device, and the host to ask for it."""
        first = self.clock.sample(self.turn, 1, self.spin_us)
        if first.us > SLOW_US:  # no host and no cold start counts here, but every further run does
            self.estimate_us, self.spin_us, self.samples = first.us, 0.0, [first]
            return
        self.turn.run(self.turn.prepare())
        prepared = self.turn.prepare()
        started = time.perf_counter()
        self.turn.run(prepared)
        host_us = (time.perf_counter() - started) * 1e6
        self.estimate_us = self.clock.sample(self.turn, 1, self.spin_us).us
        wanted = int(REGION_US / max(self.estimate_us, 1e-3))
        self.repeats = max(1, min(wanted, self.most_repeats))
        # A long region is longer than what it takes to ask for it.
        short = self.estimate_us < 1000 or host_us > self.estimate_us / 2
        self.spin_us = min(MOST_SPIN_US, 50 + 1.5 * host_us * self.repeats) if short else 0.0

    def once(self) -> None:
        """One more sample; a spin that was too short is doubled for the next."""
        sample = self.clock.sample(self.turn, self.repeats, self.spin_us)
        self.samples.append(sample)
        if self.spin_us and not sample.queued:
            self.spin_us = min(MOST_SPIN_US, 2 * self.spin_us)

    def summary(self) -> dict[str, Any]:
        """Of the samples that were queued; of all, and marked as such, if the host could not keep ahead."""
        queued = [sample.us for sample in self.samples if sample.queued or not self.spin_us]
        used = queued or [sample.us for sample in self.samples]
        p20, median, p80 = quantiles(used)
        found = {"median_us": median, "p20_us": p20, "p80_us": p80, "samples": len(used), "repeats": self.repeats}
        return found if queued else {**found, "host_bound": True}


def quantiles(values: list[float]) -> list[float]:
    """At 20, 50 and 80 per cent."""
    found: Tensor = torch.tensor(values, dtype=torch.float64).quantile(
        torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    )
    return [float(value) for value in found]
