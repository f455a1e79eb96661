"""The races on the CPU: contenders, gates, floors, where the ways of a loss cross, and what README.md makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import readme
from benchmarks.speed import __main__ as command
from benchmarks.speed import crossover, floor
from benchmarks.speed.contenders import OURS, contenders, step, truth
from benchmarks.speed.floor import FLOOR
from benchmarks.speed.measure import Measurement, largest_error, measure
from benchmarks.speed.report import table
from benchmarks.speed.workloads import OPERATIONS, workloads

SIZES: dict[str, tuple[int, ...]] = {
    "icm_loss": (9, 5),
    "mixup_cross_entropy": (9, 5),
    "mixup": (5, 3, 4, 4),
    "linear_icm_loss": (9, 6, 5),
    "contrastive_loss": (9, 6),
    "icm_loss_dense": (9, 5),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_all_contenders_are_right(operation: str) -> None:
    (workload,) = workloads(operation, [SIZES[operation]], one_lam=False)
    measured = measure(contenders(workload, compiled=False), truth(workload), seconds=0)
    assert next(iter(measured)) == OURS and len(measured) > 1
    for name, result in measured.items():
        assert isinstance(result, Measurement), (name, result)
        assert result.rounds >= 5 and result.median_us > 0
        if name == FLOOR:
            assert result.error is None
        else:
            assert result.error is not None and result.error < 1e-5, name
    assert (FLOOR in measured) == (operation in ("linear_icm_loss", "contrastive_loss", "icm_loss_dense"))
    assert all(leaf.grad is None for leaf in workload.leaves)  # or memory that is kept would not count
    assert all(name in table(measured) for name in measured)


def test_wrong_and_failing_contenders_get_no_time() -> None:
    (workload,) = workloads("contrastive_loss", [(9, 6)], one_lam=False)
    steps = contenders(workload, compiled=False)

    def failing() -> None:
        raise ValueError("no memory\nat all")

    steps["wrong"] = step(lambda x, y, scale: (x * y).sum() * scale, workload.leaves)
    steps["failing"] = failing
    measured = measure(steps, truth(workload), seconds=0)
    assert str(measured["wrong"]).startswith("wrong result: relative error ")
    assert measured["failing"] == "failed: ValueError: no memory"
    assert isinstance(measured[OURS], Measurement)


def test_errors_of_sparse_gradients() -> None:
    exact = torch.tensor([[0.0, 0.0], [4.0, 2.0]], dtype=torch.float64)
    assert largest_error(exact.float().to_sparse(), exact) == 0
    assert largest_error((exact.float() + torch.eye(2)).to_sparse(), exact) == 0.25


@pytest.mark.parametrize(("classes", "way"), [(8, "classifier"), (500, "views")])
def test_the_floor_takes_the_way_of_the_loss(classes: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    of_views = floor._of_views
    monkeypatch.setattr(floor, "_of_views", lambda *size: taken.append(size) or of_views(*size))
    run = floor.floor(crossover.workload((16, 4, classes)))
    assert run is not None
    run()
    assert taken == ([(16, 4)] if way == "views" else [])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.json"
    options = ["--sizes", "9x6x5", "--no-compile", "--threads", "1", "--seconds", "0", "--out", str(out)]
    assert command.main(["--operations", "linear_icm_loss", *options]) == 0
    assert "x the floor" in capsys.readouterr().out
    body = json.loads(out.read_text())
    results = body["results"]["linear_icm_loss-9x6x5"]
    assert results[FLOOR]["error"] is None and results[OURS]["error"] < 1e-5


@pytest.mark.parametrize("part", crossover.PARTS)
def test_classes_for_a_part_of_the_batch(part: float) -> None:
    size = (256, 4, crossover.classes_for(part, 256))
    target = crossover.workload(size).inputs["target"]
    used = len(torch.cat((target.y_a, target.y_b)).unique())
    assert used == pytest.approx(part * 256, rel=0.1)


def test_both_ways_are_right_wherever_the_library_changes() -> None:
    for classes in (8, 100):
        work = crossover.workload((16, 4, classes))
        measured = measure(crossover.ways(work), truth(work), seconds=0)
        assert list(measured) == [crossover.LOGITS, crossover.MIXED]
        assert all(isinstance(result, Measurement) for result in measured.values()), measured


def test_crossings_by_hand() -> None:
    assert crossover.crossings([(0.5, 2.0), (1.0, 1.5), (1.5, 0.5)]) == [1.25]
    assert crossover.crossings([(0.5, 2.0), (1.0, 1.5)]) == []
    assert crossover.crossings([(0.0, 0.5), (1.0, 1.5), (2.0, 0.5)]) == [0.5, 1.5]


def test_crossover_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "crossover.json"
    size = ["--batch-size", "16", "--depths", "4", "--parts", "0.5", "1.25"]
    assert crossover.main([*size, "--threads", "1", "--seconds", "0", "--out", str(out)]) == 0
    body = json.loads(out.read_text())
    assert len(body["results"]) == 2 and set(body["options"]["used"]) == set(body["results"])
    assert crossover.sentence(body) in capsys.readouterr().out
    assert (tmp_path / "crossover.png").stat().st_size > 0


def timed(median_us: float, mebibytes: float = 1) -> dict[str, Any]:
    return {"median_us": median_us, "peak_extra_bytes": mebibytes * 2**20}


def test_readme_counts_only_rivals_as_rivals() -> None:
    results = {
        OURS: timed(200, 3),
        f"{OURS} sparse_grad=True": timed(50, 2),
        "authors' formulation": timed(300, 20),
        "index-gather": timed(150, 30),
        "torch.compile index-gather": timed(400, 40),
        "torch.compile authors' formulation": "wrong result: relative error 1.0",
        FLOOR: timed(100),
    }
    machine = {"processor": "a CPU", "threads": 2, "torch": "2.13"}
    name = "linear_icm_loss-9x6x5"
    ways = {
        "options": {"used": {name: 9}, "changes_at": 0.85},
        "results": {name: {crossover.LOGITS: timed(1), crossover.MIXED: timed(2)}},
    }
    block = readme.linear_block({"machine": machine, "results": {name: results}}, ways)
    assert "| `linear_icm_loss` | (9, 6, 5) | 200 µs | 0.75× | 2.00× | 2.00× | 3 MiB | 30 MiB |" in block
    assert "- `sparse_grad=True`: 50 µs, 2 MiB at (9, 6, 5)." in block
    assert "cost the same nowhere measured for D = 6; it changes from one to the other at 0.85." in block
