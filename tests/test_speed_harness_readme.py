"""README.md's tables and figures of the races on the CPU, from made-up results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.readme import cpu, figures, tables, targets
from benchmarks.speed import crossover
from benchmarks.speed.contenders import BOUND, KERNELS, OTHER, OURS, OURSELVES, RIVAL, UNMIXED
from benchmarks.speed.floor import COPY, FLOOR
from benchmarks.speed.mixers import WHOLE_OF_TORCHVISION
from benchmarks.speed.workloads import ROLLED, Spec

AUTHORS, GATHER = "authors' formulation", "index-gather"
LOSS = Spec("icm_loss", (1024, 1000))
WAYS = {
    "options": {"used": {"linear_icm_loss-9x6x5": 9}, "changes_at": 0.85},
    "results": {"linear_icm_loss-9x6x5": {crossover.LOGITS: {"median_us": 1}, crossover.MIXED: {"median_us": 2}}},
}
Times = dict[str, tuple[float, str]]  # microseconds and role


def body(races: dict[Spec, Times], without_time: dict[Spec, dict[str, str]] | None = None) -> dict[str, Any]:
    """A file as pytest-benchmark writes it; memory in MiB is a hundredth of the time in microseconds."""
    entries = [
        {
            "group": spec.name,
            "stats": {"median": us / 1e6},
            "extra_info": {
                "contender": name,
                "role": role,
                "error": 0.0,
                "p20": 0.9 * us / 1e6,
                "p80": 1.1 * us / 1e6,
                "peak_extra_bytes": us / 100 * 2**20,
            },
        }
        for spec, times in races.items()
        for name, (us, role) in times.items()
    ]
    machine = {"processor": "a CPU", "threads": 2, "torch": "2.13"}
    reasons = {spec.name: of_spec for spec, of_spec in (without_time or {}).items()}
    return {"machine_info": machine, "benchmarks": entries, "without_time": reasons}


def loss_times(compiled_us: float) -> Times:
    return {
        OURS: (200, OURSELVES),
        KERNELS: (150, OTHER),
        f"{OURS} axis=class": (160, OTHER),
        f"{OURS} axis=pair": (100, OTHER),
        f"{OURS} one lam for the batch": (100, OTHER),
        AUTHORS: (12000, RIVAL),
        GATHER: (9000, RIVAL),
        f"torch.compile {GATHER}": (compiled_us, RIVAL),
        UNMIXED: (50, OTHER),
    }


def block(races: dict[Spec, Times], without_time: dict[Spec, dict[str, str]] | None = None) -> str:
    return tables.loss_block(cpu.read(body(races, without_time)))


def test_targets_stand_beside_what_was_measured() -> None:
    text = block({LOSS: loss_times(compiled_us=2000)})
    row = "| (1024, 1000) | 200 µs (180–220) | 60× | ≥ 40×: met | 10× | ≥ 15×: **not met** | 2 MiB | 120 MiB | 50 µs |"
    assert row in text
    assert "one lam for the batch, over that with one per sample: 2.00× at (1024, 1000) (≥ 1.7×: met)." in text
    assert "cheaper one alone: 2.00× at (1024, 1000) (≤ 1.3×: **not met**)." in text
    assert "a CPU, 2 threads, torch 2.13" in text


def test_losing_is_printed() -> None:
    text = block({LOSS: loss_times(compiled_us=100)})
    assert "| 0.50× | ≥ 15×: **not met** |" in text


def test_who_has_no_time_is_named_with_the_reason() -> None:
    times = loss_times(compiled_us=2000)
    del times[f"torch.compile {GATHER}"], times[AUTHORS]
    text = block({LOSS: times}, {LOSS: {AUTHORS: "wrong result: relative error 1.0", "Liger": "not run: needs a GPU"}})
    assert "| not timed | ≥ 40×: not measured | not timed | ≥ 15×: not measured | 2 MiB | not measured |" in text
    assert "- No time for authors' formulation, wrong result: relative error 1.0: `icm_loss` (1024, 1000)." in text
    assert "- No time for Liger, not run: needs a GPU: `icm_loss` (1024, 1000)." in text


def test_ours_without_a_time_wins_nothing() -> None:
    times = loss_times(compiled_us=2000)
    del times[OURS]
    text = block({LOSS: times}, {LOSS: {OURS: "wrong result: 3 elements beyond the budget"}})
    assert "| (1024, 1000) | not timed | not timed | ≥ 40×: not measured | not timed |" in text
    assert "- No time for icm_fast, wrong result: 3 elements beyond the budget: `icm_loss` (1024, 1000)." in text


def test_only_rivals_count_as_rivals() -> None:
    spec = Spec("linear_icm_loss", (9, 6, 5))
    times: Times = {
        OURS: (200, OURSELVES),
        f"{OURS} sparse_grad=True": (50, OURSELVES),
        AUTHORS: (300, RIVAL),
        f"torch.compile {GATHER}": (150, RIVAL),
        FLOOR: (100, BOUND),
    }
    text = tables.operations_block(cpu.read(body({spec: times, LOSS: loss_times(2000)})), WAYS)
    rivals = f"0.75× torch.compile {GATHER}<br>1.50× {AUTHORS}"
    assert f"| `linear_icm_loss` | (9, 6, 5) | 200 µs (180–220) | {rivals} | 2.00× | 2 MiB | 1.5 MiB |" in text
    assert "- `sparse_grad=True`: 50 µs, 0.5 MiB at (9, 6, 5)." in text
    assert "cost the same nowhere measured for D = 6; it changes from one to the other at 0.85." in text
    assert "icm_loss` | (1024" not in text  # it stands in the other table


def test_targets_of_mixing() -> None:
    images = (64, 3, 224, 224)
    races: dict[Spec, Times] = {
        Spec("mixup", images): {OURS: (125, OURSELVES), f"{OURS} out=": (110, OURSELVES), COPY: (100, BOUND)},
        Spec("mixup", images, ROLLED, "uint8"): {OURS: (100, OURSELVES), WHOLE_OF_TORCHVISION: (250, RIVAL)},
        Spec("mixup_cross_entropy", (9, 5)): {OURS: (100, OURSELVES), "two cross-entropies": (190, RIVAL)},
    }
    text = "\n".join(targets.sentences(cpu.read(body(races))))
    assert "91 % into given memory (≥ 85 %: met), 80 % into new at (64, 3, 224, 224)" in text
    assert "2.50× at (64, 3, 224, 224), uint8, rolled (≥ 3×: **not met**)" in text
    assert "1.90× at (9, 5) (≥ 2×: **not met**)" in text


def test_points_of_the_figures() -> None:
    races = cpu.read(body({Spec("icm_loss", (64, 1000)): {OURS: (100, OURSELVES)}, LOSS: loss_times(2000)}))
    assert figures.points(races, 1000, OURS, figures.FIGURES["speed.png"].value) == [
        (64, 0.1, pytest.approx(0.09), pytest.approx(0.11)),
        (1024, 0.2, pytest.approx(0.18), pytest.approx(0.22)),
    ]
    speed_up = figures.FIGURES["speedup.png"].value
    assert [point[:2] for point in figures.points(races, 1000, AUTHORS, speed_up)] == [(1024, pytest.approx(60))]
    assert figures.points(races, 10, OURS, speed_up) == []


def test_figures_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figures.draw(cpu.read(body({LOSS: loss_times(2000)})), tmp_path)
    assert all((tmp_path / name).stat().st_size > 0 for name in figures.FIGURES)
