"""pytest benchmarks/speed: a race's samples become pytest-benchmark's, and its JSON names who has none."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import ROOT

from benchmarks.readme import cpu
from benchmarks.speed import test_time as report
from benchmarks.speed.contenders import OURS
from benchmarks.speed.measure import Measurement
from benchmarks.speed.replay import Replay
from benchmarks.speed.workloads import Spec

SAMPLES = [3e-05, 0.1, 2.5, 1 / 3, 7e-9, 0.1]
REPLAYING = f"""
import pytest
from benchmarks.speed.replay import Replay
replay = Replay()

@pytest.mark.benchmark(group="a group", timer=replay)
def test_replayed(benchmark):
    replay.load({SAMPLES})
    benchmark.pedantic(lambda: None, rounds={len(SAMPLES)}, iterations=1)
"""
SPEC = Spec("icm_loss", (9, 5))


def benchmarked(*arguments: object, out: Path) -> dict[str, Any]:
    """The JSON file of a run of pytest."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, arguments)]
    command += [f"--benchmark-json={out}", "--benchmark-save-data"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    body: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return body


def test_statistics_are_those_of_the_samples(tmp_path: Path) -> None:
    (tmp_path / "test_replayed.py").write_text(REPLAYING, encoding="utf-8")
    (entry,) = benchmarked(tmp_path, f"--rootdir={tmp_path}", out=tmp_path / "out.json")["benchmarks"]
    stats = entry["stats"]
    assert entry["group"] == "a group" and stats["data"] == SAMPLES and stats["rounds"] == len(SAMPLES)
    assert stats["median"] == statistics.median(SAMPLES) and stats["mean"] == pytest.approx(statistics.mean(SAMPLES))
    assert (stats["min"], stats["max"]) == (min(SAMPLES), max(SAMPLES))


def test_a_race_is_kept_in_one_group(tmp_path: Path) -> None:
    options = ("--workloads", SPEC.name, "--seconds", 0, "--threads", 1, "--no-compile")
    body = benchmarked("benchmarks/speed", *options, "-k", "icm_fast or gather or Liger", out=tmp_path / "out.json")
    (race,) = cpu.read(body).of.values()
    assert race.spec == SPEC and {OURS, "index-gather"} < race.timed.keys()
    assert "authors' formulation" not in race.timed  # not chosen, and so not timed
    assert list(race.without_time) == ["Liger cross-entropy, twice"]
    for entry in body["benchmarks"]:
        extra, stats = entry["extra_info"], entry["stats"]
        assert entry["group"] == SPEC.name and extra["error"] < 1e-5 and extra["peak_extra_bytes"] >= 0
        low, high = statistics.quantiles(stats["data"], n=5, method="inclusive")[::3]
        assert (extra["p20"], extra["p80"]) == pytest.approx((low, high))
    assert body["machine_info"]["threads"] == 1 and "flags" not in body["machine_info"]["cpu"]


def reported(contender: str, result: Measurement | str) -> SimpleNamespace:
    """What the test of a contender hands on."""
    benchmark = SimpleNamespace(extra_info={}, pedantic=lambda *_, **options: benchmark.extra_info.update(options))
    report.test_time(benchmark, SPEC, contender, Replay(), {contender: result})
    return benchmark


def test_ours_fails_where_a_rival_is_skipped() -> None:
    with pytest.raises(pytest.fail.Exception, match="icm_fast: wrong result"):
        reported(OURS, "wrong result: relative error 1.0")
    with pytest.raises(pytest.skip.Exception, match="index-gather: wrong result"):
        reported("index-gather", "wrong result: relative error 1.0")
    extra = reported(OURS, Measurement((3.0, 1.0, 2.0), 4096, 1e-7)).extra_info
    assert extra["role"] == "ours" and extra["rounds"] == 3 and extra["peak_extra_bytes"] == 4096
