"""The races of `make gpu-bench`, without a GPU: floors, truths, contenders, clocks, gates."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu import chunked, floors, launches, race, tables, timing, truths
from benchmarks.gpu.contenders import Contender, contenders
from benchmarks.gpu.parts import Budget
from benchmarks.gpu.timing import GpuClock, Sample, Series, StandInClock, Turn
from benchmarks.gpu.workloads import TARGETS, Spec, make
from icm_fast import reference
from icm_fast.testing.regimes import REGIMES
from icm_fast.testing.scales import icm_loss_scales

RATES = floors.Rates.of({"multiprocessors": 132, "max_sm_clock_mhz": 1980.0}, 4.8e12, 7e14)


def test_floors_are_those_of_the_design() -> None:
    assert RATES.exponentials_per_s == pytest.approx(4.18e12, rel=1e-3)
    for name, expected_us in (
        ("icm_loss-4096x1000", 8.0),  # exponentials
        ("icm_loss-16384x1000", 128),
        ("icm_loss-16384x1000-one_lam", 27.4),  # bytes, with few exponentials
        ("icm_loss-65536x21841-bfloat16", 2054),
        ("mixup-256x3x224x224", 64),
        ("mixup-256x3x224x224-uint8-bfloat16", 24),
        ("mixup_cross_entropy-4096x1000", 6.9),
        ("linear_icm_loss-65536x1000x512-bfloat16", 288 + 2054),  # products at 700 Tflop/s, and exponentials
        ("linear_icm_loss-65536x1000x512-bfloat16-one_lam", 288 + 62.7),
        ("linear_icm_loss-65536x100000x512-bfloat16", 25132 + 2054),
        ("contrastive_loss-65536x512-bfloat16", 25132 + 2054),
    ):
        spec = Spec.parse(name)
        floor_us = floors.work(spec)["both" if spec.has_gradient else "forward"].floor_us(RATES)
        assert floor_us == pytest.approx(expected_us, rel=0.02), name
    for name in ("icm_loss-8x10", "linear_icm_loss-8x10x4"):
        assert floors.work(Spec.parse(name))["both"].floor_us(floors.Rates(None, None)) is None
    assert floors.work(Spec.parse("contrastive_loss-8x10"))["both"].floor_us(floors.Rates(1.0, 1.0)) is None
    assert floors.Rates.of({"stand_in": True}, None) == floors.Rates(None, None)


@pytest.mark.parametrize("regime", ["normal", "confident", "batch_lam", "same_class", "range_200", "offset"])
@pytest.mark.parametrize("shape", [(1, 4), (7, 10), (61, 30)], ids=str)
def test_the_chunked_truth_is_the_reference(
    shape: tuple[int, int], regime: str, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "CHUNK_BYTES", 8 * 61 * 4)  # four rows at a time
    case = REGIMES[regime](*shape, torch.float32, generator)
    leaf = case.logits.double().requires_grad_()
    truth = reference.icm_loss(leaf, case)
    (expected,) = torch.autograd.grad(truth, leaf)
    columns = chunked.first_pass(case.logits, case)
    torch.testing.assert_close(columns.loss(), truth.detach(), rtol=1e-12, atol=1e-12)
    parts = [chunked.gradient(case.logits, case, columns, rows) for rows in chunked.blocks(*shape[:1], max(shape))]
    torch.testing.assert_close(torch.cat([part.dlogits for part in parts]), expected, rtol=1e-9, atol=1e-12)
    # What it allows is what the budget of the small sizes allows, from a bound instead of from each score.
    terms = reference.icm_loss(leaf.detach(), case, reduction="none")
    exact = icm_loss_scales(case.logits, case, terms, axis="both", reduction="mean", acc_dtype=torch.float32)
    scale = torch.cat([part.scale for part in parts])
    assert (scale >= exact.dlogits * (1 - 1e-12)).all()
    assert chunked.loss_scale(columns) >= exact.loss
    if regime == "normal" and shape[0] > 7:
        assert scale.sum() < 3 * exact.dlogits.sum() and chunked.loss_scale(columns) < 3 * exact.loss


@pytest.mark.parametrize(
    "name",
    [
        *(f"{op}-9x5" for op in ("icm_loss", "mixup_cross_entropy", "am_mixup_loss", "contrastive_loss")),
        *("linear_icm_loss-9x5x4", "linear_icm_loss-9x40x4"),
    ],
)
def test_truths_reject_planted_faults(name: str) -> None:
    workload, most = make(Spec.parse(name), "cpu"), truths.tolerance(Spec.parse(name))
    exact = truths.truth(workload, workload.operation)
    ours = contenders(workload, [], "cpu")["icm_fast cpu"]
    assert isinstance(ours, Contender)
    loss = ours.forward()
    gradients = torch.autograd.grad(loss, ours.leaves)
    assert exact.error(loss, gradients) < 1e-5
    assert exact.error(loss * 1.01, gradients) > most
    assert exact.error(loss, [gradients[0].roll(1, 0), *gradients[1:]]) > most
    assert exact.error(loss * float("nan"), gradients) == float("inf")
    assert exact.error(loss, [gradients[0][:, :-1], *gradients[1:]]) == float("inf")


@pytest.mark.parametrize("spec", TARGETS, ids=lambda spec: spec.name)
def test_all_plain_contenders_of_a_target_are_right(spec: Spec) -> None:
    small = Spec(spec.operation, tuple(min(n, 12) for n in spec.size), spec.dtype, spec.out_dtype, spec.one_lam)
    workload = make(small, "cpu")
    found = contenders(workload, ("plain", "cross-entropy", "liger", "open_clip"), "cpu")
    assert len([each for each in found.values() if isinstance(each, Contender)]) >= 2
    for name, contender in found.items():
        if isinstance(contender, str):
            assert "is not installed" in contender or "is not usable" in contender, name
            continue
        result = contender.forward()
        gradients = torch.autograd.grad(result, contender.leaves) if small.has_gradient else ()
        error = truths.truth(workload, contender.truth).error(result.detach(), gradients)
        assert error < truths.tolerance(small), name


class FakeClock(StandInClock):
    """A device that takes 10 us for a call, and a host that keeps ahead only of a spin that is long enough."""

    def __init__(self, enough_us: float) -> None:
        self.enough_us, self.spins = enough_us, list[float]()

    def sample(self, turn: Turn, repeats: int, spin_us: float) -> Sample:
        for _ in range(repeats):
            turn.run(turn.prepare())
        self.spins.append(spin_us)
        queued = spin_us >= self.enough_us
        return Sample(10.0 if queued else 99.0, queued)


@pytest.mark.parametrize(("enough_us", "host_bound"), [(0.0, False), (3000.0, False), (1e9, True)])
def test_the_host_is_not_timed(enough_us: float, host_bound: bool) -> None:
    clock = FakeClock(enough_us)
    series = Series(Turn(lambda: None, lambda _: None), clock)
    series.warm_up()
    for _ in range(12):
        series.once()
    summary = series.summary()
    assert summary.get("host_bound", False) == host_bound
    assert summary["median_us"] == (99.0 if host_bound else 10.0)
    assert max(clock.spins) <= 50_000


class FakeDevice:
    """As much of torch.cuda as a clock uses; a call takes 50 us and a spin of 1000 cycles 1 us."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_us, self.replays = 0.0, 0
        device = SimpleNamespace(L2_cache_size=1024)
        nothing = contextlib.nullcontext()
        stream = SimpleNamespace(wait_stream=lambda other: None)
        fakes: dict[str, Any] = {
            "current_device": lambda: 0,
            "get_device_properties": lambda _: device,
            "synchronize": lambda: None,
            "_sleep": self.sleep,
            "Event": lambda enable_timing: FakeEvent(self),
            "current_stream": lambda: stream,
            "reset_peak_memory_stats": lambda: None,
            "memory_allocated": lambda: 100,
            "mem_get_info": lambda: (64, 0),
            "max_memory_allocated": lambda: 150,
            "Stream": lambda: stream,
            "stream": lambda _: nothing,
            "CUDAGraph": lambda: SimpleNamespace(replay=self.replay),
            "graph": lambda graph, stream: nothing,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.zeros(8, dtype=torch.uint8))

    def sleep(self, cycles: int) -> None:
        self.now_us += cycles / 1000

    def replay(self) -> None:
        self.replays += 1
        self.now_us += 50

    def call(self, _: Any = None) -> str:
        self.now_us += 50
        return "left"


class FakeEvent:
    def __init__(self, device: FakeDevice) -> None:
        self.device, self.at_us = device, 0.0
        self.synchronize = lambda: None
        self.query = lambda: False

    def record(self) -> None:
        self.at_us = self.device.now_us

    def elapsed_time(self, end: FakeEvent) -> float:
        return (end.at_us - self.at_us) / 1000


def test_the_clock_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice(monkeypatch)
    clock = GpuClock(cold=False)
    turn = Turn(device.call, device.call)
    assert clock.sample(turn, 4, 100.0) == Sample(50.0, True), "neither the spin nor the preparation is timed"
    before_us = device.now_us
    clock.sample(turn, 1, 100.0)
    assert device.now_us - before_us == 200, "it spun for as long as it was asked to"
    assert clock.peak_extra_bytes(device.call) == 50
    replay = clock.captured(turn)
    assert replay() == "left" and device.replays == 1
    series = Series(Turn(lambda: None, lambda _: replay()), clock)
    series.warm_up()
    series.once()
    assert series.summary()["median_us"] == 50 and series.repeats == 4
    device.now_us = 0.0
    monkeypatch.setattr(clock, "_region_us", lambda call: 2.0)
    assert clock.copy_bytes_per_s() == 2 * 8 / 2e-6
    square = torch.zeros(4, 4)
    monkeypatch.setattr(torch, "randn", lambda *_, **__: square)
    monkeypatch.setattr(timing, "PRODUCT_SIDE", 4)
    assert clock.product_operations_per_s(torch.float32) == 2 * 4**3 / 2e-6


def test_launches_copies_and_waits() -> None:
    events = [("cudaLaunchKernel", False), ("cuLaunchKernelEx", False), ("cudaMemcpyAsync", False)]
    events += [("cudaStreamSynchronize", False), ("cudaDeviceSynchronize", False), ("aten::add", False)]
    events += [("icm_loss_fwd", True), ("icm_loss_fwd", True), ("Memcpy DtoH (Device -> Pageable)", True)]
    events += [("Memset (Device)", True), ("## Call CompiledFxGraph ##", True)]
    counted = launches.counted(events)
    assert counted["launches"] == 2 and counted["kernels"] == {"icm_loss_fwd": 2}
    assert counted["copies_to_host"] == 1 and counted["waits"] == 1 and counted["other_transfers"] == 1
    with pytest.raises(RuntimeError, match="saw nothing"):
        launches.counted([("aten::add", False)])


def raced(extra: dict[str, Contender | str], budget: Budget | None = None) -> dict[str, Any]:
    """A race of ours and others on the CPU."""
    spec = Spec.parse("icm_loss-9x5")
    workload = make(spec, "cpu")
    runners = contenders(workload, [], "cpu") | extra
    track = race.Race(spec, StandInClock(), budget or Budget.of(60), lambda name: truths.truth(workload, name))
    return track.run(runners, 0.05)


def contender(forward: Callable[[Tensor], Tensor]) -> Contender:
    leaf = make(Spec.parse("icm_loss-9x5"), "cpu").inputs["logits"]
    return Contender(lambda: forward(leaf), (leaf,), "icm_loss")


def test_a_wrong_result_gets_no_time_and_a_failure_ends_no_race() -> None:
    def fail(_: Tensor) -> Tensor:
        raise ZeroDivisionError("out of luck\nand of memory")

    def missing(_: Tensor) -> Tensor:
        raise RuntimeError("backend='cuda' was requested but is not available: no library")

    others = {"wrong": contender(lambda leaf: leaf.sum()), "fails": contender(fail), "missing": contender(missing)}
    results = raced({**others, "absent": "not run: not installed"})
    assert results["wrong"].startswith("wrong result: relative error")
    assert results["fails"] == "failed: ZeroDivisionError: out of luck"
    assert results["missing"].startswith("not run:") and results["absent"] == "not run: not installed"
    ours = results["icm_fast cpu"]
    assert set(ours["eager"]) == {"forward", "backward", "both"} and ours["error"] < 1e-5 and ours["host_us"] > 0
    assert "graph" not in ours and "no graphs" in ours["no_graph"]
    entry = {"results": results, "finished": True, "work": floors.described(Spec.parse("icm_loss-9x5"), RATES)}
    text = tables.race(Spec.parse("icm_loss-9x5"), entry)
    assert "icm_fast cpu" in text and "wrong: wrong result" in text and not tables.ours_is_wrong(entry)
    entry["results"] = {"icm_fast cuda": "wrong result: relative error 1"}
    assert tables.ours_is_wrong(entry)


def test_a_race_without_time_says_so() -> None:
    now = [0.0]
    spec = Spec.parse("icm_loss-9x5")
    workload = make(spec, "cpu")
    track = race.Race(spec, StandInClock(), Budget(90.0, lambda: now[0]), lambda name: truths.truth(workload, name))
    now[0] = 70.0
    results = track.run(contenders(workload, ["plain"], "cpu"), 0.05)
    assert set(results.values()) == {race.NO_TIME} and track.out_of_time == list(results)
