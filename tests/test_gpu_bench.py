"""`make gpu-bench` around its races, without a GPU: names, budgets, what is kept, and the page of results."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import bench, coverage, facts, floors, report, tables
from benchmarks.gpu.contenders import BACKENDS, FAMILIES
from benchmarks.gpu.parts import Budget
from benchmarks.gpu.workloads import TARGETS, Spec, chosen

DEVICE = {"stand_in": False, "name": "a GPU", "multiprocessors": 132, "max_sm_clock_mhz": 1980.0, "commit": "abc"}
VERSIONS = {"versions": {"torch": "2.11.0", "triton": "3.6.0"}, "driver": 580.1}


def test_names_of_workloads() -> None:
    for spec in TARGETS:
        assert Spec.parse(spec.name) == spec
    assert [spec.name for spec in chosen(["128x100"])] == [
        "icm_loss-128x100",
        "icm_loss-128x100-one_lam",
        "mixup_cross_entropy-128x100",
        "am_mixup_loss-128x100",
    ]
    assert chosen(["2048x10", "icm_loss-2048x10"]) == [Spec("icm_loss", (2048, 10))]
    assert chosen(None) == list(TARGETS)
    assert chosen(["linear_icm_loss-8x10x4-bfloat16"]) == [Spec("linear_icm_loss", (8, 10, 4), "bfloat16")]
    for name in (
        "icm_loss",
        "icm_loss-12",
        "linear_icm_loss-8x10",
        "contrastive_loss-8x10x4",
        "icm-1x1",
        "icm_loss-0x1",
        "icm_loss-1x1-int8",
        "mixup-1x1-a-b",
        "x",
    ):
        with pytest.raises(ValueError, match="unknown workload"):
            chosen([name])


def options(out: Path, **changed: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    found = parser.parse_args(["--out", str(out), "--device", "cpu"])
    return argparse.Namespace(**{**vars(found), **changed})


class FakeRaces:
    """Stands in for races; each takes so many seconds of a clock that does not run by itself."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, takes_s: float = 30.0) -> None:
        self.names: list[str] = []
        self.now, self.takes_s = 0.0, takes_s
        monkeypatch.setattr(bench, "run_race", self.run)
        monkeypatch.setattr(Budget, "of", classmethod(lambda cls, seconds: cls(self.now + seconds, lambda: self.now)))

    def run(self, spec: Spec, families: tuple[str, ...], limit_s: float, _: argparse.Namespace) -> dict[str, Any]:
        self.names.append(f"{spec.name} {families[0]}")
        self.now += min(self.takes_s, limit_s)
        finished = True if self.takes_s <= limit_s else "ended at its limit"
        return {"finished": finished, "results": {}, "work": {}, "out_of_time": []}


def test_a_call_goes_on_where_the_last_one_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, out = FakeRaces(monkeypatch), tmp_path / "bench.json"
    chosen_sizes = {"sizes": ["icm_loss-8x10", "mixup-2x3x4x4"], "rivals": ["plain", "compile"]}
    assert bench.main(options(out, budget=75.0, **chosen_sizes)) == 0
    assert fake.names == ["icm_loss-8x10 plain", "mixup-2x3x4x4 plain"], "the quick ones first, within the budget"
    assert bench.main(options(out, budget=500.0, **chosen_sizes)) == 0
    assert fake.names[2:] == ["icm_loss-8x10 compile", "mixup-2x3x4x4 compile"]
    assert bench.main(options(out, budget=500.0, **chosen_sizes)) == 0 and len(fake.names) == 4
    assert bench.main(options(out, budget=500.0, again=True, **chosen_sizes)) == 0 and len(fake.names) == 8
    body = report.read(out)
    assert body["kind"] == "gpu-bench" and body["device"]["stand_in"] is True
    assert [each["rivals"] for each in body["results"]["icm_loss-8x10"]] == [["plain"], ["compile"]]
    assert {"commit", "when", "finished", "results", "work"} <= set(body["results"]["icm_loss-8x10"][0])


def test_a_race_that_the_budget_broke_off_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake, out = FakeRaces(monkeypatch, takes_s=140.0), tmp_path / "bench.json"
    one = {"sizes": ["icm_loss-8x10"], "rivals": ["plain"]}
    assert bench.main(options(out, budget=100.0, **one)) == 0
    assert "broken off" in capsys.readouterr().out and not out.exists()
    assert bench.main(options(out, budget=500.0, **one)) == 0
    assert len(fake.names) == 2 and report.read(out)["results"]["icm_loss-8x10"][0]["finished"] is True
    fake.takes_s = 1000.0  # its own limit is a verdict
    bench.main(options(out, budget=500.0, sizes=["icm_loss-8x10"], rivals=["compile"]))
    assert report.read(out)["results"]["icm_loss-8x10"][1]["finished"] == "ended at its limit"


def test_results_of_devices_are_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    FakeRaces(monkeypatch)
    out = tmp_path / "bench.json"
    report.write(out, {"schema": report.SCHEMA, "kind": "gpu-bench", "device": DEVICE, "results": {}})
    assert bench.main(options(out)) == 2 and "is of a GPU, this is CPU stand-in" in capsys.readouterr().out
    out.write_text("{}")
    assert bench.main(options(out)) == 2 and "expected a file of schema" in capsys.readouterr().out
    assert command.main(["bench", "--device", "cpu"]) == 2 and "for tests" in capsys.readouterr().out
    assert command.main(["bench", "--sizes", "7", "--out", str(tmp_path / "x")]) == 2
    if not torch.cuda.is_available():
        assert "nothing was run: no GPU here" in capsys.readouterr().out


def test_races_in_processes_and_their_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "LOGS", tmp_path)
    spec = Spec.parse("icm_loss-8x10-bfloat16")
    chosen_options = options(tmp_path / "x", seconds=0.1)
    found = bench.run_race(spec, ("plain", "open_clip", "liger"), 60.0, chosen_options)
    assert found["finished"] is True and found["out_of_time"] == []
    assert found["results"]["index-gather"]["eager"]["both"]["samples"] >= 3
    assert found["work"]["both"]["exponentials"] == 128 and found["work"]["both"]["floor_us"] is None
    tables.race(spec, found)
    linear = bench.run_race(Spec.parse("linear_icm_loss-8x10x4"), ("plain", "liger"), 60.0, chosen_options)
    assert linear["finished"] is True and linear["results"]["mixed classifiers"]["error"] < 1e-5
    assert linear["work"]["both"]["operations"] == 6 * 8 * 10 * 4 and linear["rates"]["operations_per_s"] is None
    late = bench.run_race(spec, ("plain",), 0.2, chosen_options)
    assert late["finished"] == "ended at its limit of 0 s" and late["results"] == {}


def test_families_and_batches_agree() -> None:
    assert {family for batch, _ in bench.BATCHES for family in batch} == {*FAMILIES, bench.OURS}
    assert bench.wanted(None) == FAMILIES and bench.wanted(["none"]) == (bench.OURS,)
    ((_, todo, _),) = bench.missing([TARGETS[0]], [bench.OURS], {})
    assert todo == (bench.OURS,)
    assert bench.missing([TARGETS[0]], [bench.OURS], {TARGETS[0].name: [{"rivals": ["plain"]}]}) == []
    assert set(BACKENDS["cuda"]) == set(coverage.BACKENDS)


def test_the_page_of_results(tmp_path: Path) -> None:
    nothing = coverage.text(tmp_path)
    assert "No kernel of this project has run on any GPU yet" in nothing and "passed" not in nothing
    parts = [{"name": "cuda: icm_loss", "state": "passed"}, {"name": "triton: all", "state": "not run"}]
    checked = {
        "schema": report.SCHEMA,
        "kind": "gpu-check",
        "when": "2026-01-01",
        "device": {**DEVICE, **VERSIONS},
        "parts": parts,
        "covered": {"cuda/icm_loss/float32": [[7, 10], [65536, 1000]]},
        "failed": {"cuda/mixup/uint8": 2, "triton/icm_loss/?": 1},
    }
    standing_in = {**checked, "device": {**checked["device"], "stand_in": True, "name": "CPU stand-in"}}
    report.write(tmp_path / "gpu-check-cpu.json", standing_in)
    assert coverage.text(tmp_path) == nothing, "a stand-in counts for nothing"
    report.write(tmp_path / "gpu-check.json", checked)
    times = {"eager": {"both": {"median_us": 20.0}}, "graph": {"both": {"median_us": 16.0}}}
    rival = {"eager": {"both": {"median_us": 400.0}}}
    fastest = {"eager": {"both": {"median_us": 1.0}}}
    results = {
        "icm_fast cuda": times,
        "icm_fast triton": "not run: x",
        "index-gather": rival,
        "icm_fast a way": fastest,
    }
    entry = {
        "results": results,
        "work": floors.described(Spec.parse("icm_loss-4096x1000"), floors.Rates.of(DEVICE, 4.3e12)),
    }
    raced = {"schema": report.SCHEMA, "kind": "gpu-bench", "device": checked["device"]}
    report.write(tmp_path / "gpu-bench.json", {**raced, "results": {"icm_loss-4096x1000": [entry]}})
    page = coverage.text(tmp_path)
    assert "| `icm_loss`, cuda | 2 shapes, up to 65536×1000 | not run |" in page
    assert "**2 tests failed**" in page and "| `icm_loss`, triton | **1 tests failed** |" in page
    assert "1 parts passed; not run: triton: all." in page and "a GPU, driver 580.1, torch 2.11.0" in page
    assert "| icm_loss-4096x1000 | 16 us | 50 % | index-gather | 400 us |" in page
    for kernel in ("`linear_icm_loss`, auto", "`linear_icm_loss`, triton", "`contrastive_loss`, triton"):
        assert f"| {kernel} | not run |" in page
    assert "`linear_icm_loss`, cuda" not in page and "`contrastive_loss`, cuda" not in page
    assert "No kernel" not in page and "Not raced: icm_loss-128x100," in page


def test_facts_of_a_stand_in_are_marked() -> None:
    found = facts.facts("cpu")
    assert found["stand_in"] is True and found["name"].startswith(facts.STAND_IN)
    assert json.loads(json.dumps(found)) == found
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="no GPU here"):
            facts.facts("cuda")
