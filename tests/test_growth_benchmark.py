"""benchmarks.growth: exact at sizes where nobody holds the scores, no time for a wrong result, slopes, what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import run_python

from benchmarks.growth import __main__ as command
from benchmarks.growth import measure, report
from benchmarks.speed import gate
from benchmarks.speed.measure import WRONG
from benchmarks.speed.workloads import Workload, loss_workload

BOTH_LAMS = pytest.mark.parametrize("one_lam", [False, True])


@BOTH_LAMS
@pytest.mark.parametrize("size", [(40, 7), (12, 90)])
def test_the_sample_of_everything_is_the_whole(size: tuple[int, int], one_lam: bool) -> None:
    workload = loss_workload("icm_loss", size, one_lam)
    exact, sample = gate.whole(workload), gate.sampled(workload, *map(torch.arange, size))
    torch.testing.assert_close(sample.terms, exact.terms, rtol=1e-12, atol=0)
    torch.testing.assert_close(sample.gradient, exact.gradient, rtol=1e-10, atol=1e-15)


@BOTH_LAMS
@pytest.mark.parametrize("size", [(300, 6), (64, 400)])
def test_a_sample_is_part_of_the_whole(size: tuple[int, int], one_lam: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = loss_workload("icm_loss", size, one_lam)
    exact = gate.truth(workload)
    monkeypatch.setattr(gate, "WHOLE", (0, 0))
    monkeypatch.setattr(gate, "SCORES", 50_000)
    monkeypatch.setattr(gate, "_BLOCK", 1000)  # several columns at a time, and a last block of fewer
    sample = gate.truth(workload)
    assert exact.is_whole and not sample.is_whole
    assert 1 <= len(sample.classes) < size[1] or size[0] < 300
    assert len(sample.images) >= gate.IMAGES // 2
    torch.testing.assert_close(sample.terms, exact.terms[sample.images], rtol=1e-12, atol=0)
    part = exact.gradient[sample.images][:, sample.classes]
    torch.testing.assert_close(sample.gradient, part, rtol=1e-10, atol=1e-15)


def result_of(workload: Workload) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, gradient and terms of the library."""
    logits = workload.inputs["logits"]
    loss = measure.F_icm.icm_loss(logits, workload.inputs["target"])
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient, gate.terms_of(workload)


@pytest.mark.parametrize("is_whole", [True, False])
def test_the_gate_sees_what_is_wrong(is_whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_whole:
        monkeypatch.setattr(gate, "WHOLE", (0, 0))
    workload = loss_workload("icm_loss", (200, 1000), one_lam=False)
    exact = gate.truth(workload)
    loss, gradient, terms = result_of(workload)
    assert gate.error((loss, gradient), terms, exact, workload) < 1e-4
    own = torch.zeros_like(gradient, dtype=torch.bool)
    for labels in (workload.inputs["target"].y_a, workload.inputs["target"].y_b):
        own[torch.arange(200), labels] = True
    wrong = {
        "loss": (loss * 1.01, gradient, terms),
        "terms": (loss, gradient, terms + torch.linspace(-1, 1, 200)),
        "gradient of own classes": (loss, gradient * (1 - 0.01 * own), terms),
        # A thousandth of the others: hidden if both were measured by one yardstick.
        "gradient of other classes": (loss, gradient * own, terms),
        "not a number": (loss, gradient * float("nan"), terms),
    }
    for what, (*result, of_images) in wrong.items():
        assert gate.error(result, of_images, exact, workload) >= WRONG, what


def test_a_wrong_result_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    right = measure.F_icm.icm_loss

    class Wrong:
        icm_loss = staticmethod(lambda logits, target: right(logits, target, axis="class"))

    found = measure.points((20, 5), [1], seconds=0)
    assert all(isinstance(point, measure.Point) and point.is_whole for point in found.values())
    assert list(found) == [measure.key(lam, 1) for lam in measure.LAMS]
    monkeypatch.setattr(measure, "F_icm", Wrong)
    found = measure.points((20, 5), [1], seconds=0)
    assert all(str(point).startswith("wrong result: relative error ") for point in found.values())


def test_extra_memory_is_what_the_process_takes() -> None:
    """The peak since a reset, in a second call, is that of a process which has done nothing else."""
    size = (8192, 1000)
    code = (
        "from benchmarks.growth.measure import F_icm, loss_workload, peak_extra_bytes, step\n"
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(line.split()[1]) for line in lines if line.startswith('VmHWM')) * 1024\n"
        f"works = [loss_workload('icm_loss', size, False) for size in ((4, 5), {size})]\n"
        "small, large = (step(F_icm.icm_loss, work.leaves, work.inputs['target']) for work in works)\n"
        "small()\n"
        "before = peak()\n"
        "large()\n"
        "print(peak() - before, peak_extra_bytes(large))\n"
    )
    by_process, by_reset = map(int, run_python(code).split())
    # A first call finds memory that the making of its inputs left.
    assert by_reset == pytest.approx(by_process, rel=0.1)
    assert report.gradient_bytes(*size) < by_reset < 1.2 * report.gradient_bytes(*size)


def test_slopes_by_hand() -> None:
    assert report.slope([(64, 1.0), (128, 4.0), (256, 16.0)], start=64) == pytest.approx(2)
    # Below the start nothing counts; one point has no slope.
    assert report.slope([(1, 77.0), (64, 3.0), (256, 12.0)], start=64) == pytest.approx(1)
    assert report.slope([(64, 3.0), (256, 12.0)], start=65) is None
    # log2 y = 0, 1, 5 over log2 x = 0, 1, 2: the mean of -1 * 0 and 1 * 5 over 1 + 0 + 1.
    assert report.slope([(1, 1.0), (2, 2.0), (4, 32.0)], start=1) == pytest.approx(2.5)


def made_up() -> dict[str, Any]:
    """Time as B * C us, half of that for one lam per batch; memory twice the gradient."""
    sizes = [(b, c) for b in (4096, 8192) for c in (10, 1000)] + [(4096, 100_000)]
    results: dict[str, dict[str, Any]] = {}
    for b, c in sizes:
        results[f"{b}x{c}"] = {}
        for lam, part in (("sample", 1.0), ("batch", 0.5)):
            us = part * b * c
            times = {"median_us": us, "p20_us": us, "p80_us": 2 * us, "rounds": 3, "error": 0.0, "is_whole": True}
            results[f"{b}x{c}"][measure.key(lam, 2)] = times | {"page_faults": b if c == 100_000 else 0}
            results[f"{b}x{c}"][measure.key(lam, 2)]["peak_extra_bytes"] = 8 * b * c
    results["8192x1000"][measure.key("batch", 2)] = "wrong result: relative error 1.0e+00"
    options = {"classes": [10, 1000], "class_batches": [4096], "threads": [2]}
    eager = {"2048x1000": {"index-gather": 1 << 28}, "4096x1000": {"index-gather": 1 << 30}}
    machine = {"processor": "a CPU", "torch": "2.13"}
    return {"machine": machine, "options": options, "results": results, "eager": eager}


def test_block_of_made_up_numbers() -> None:
    block = report.block(made_up())
    assert (
        "| B, C = 1000 | one lam per sample | one lam per batch | extra memory | of it the gradient | index-gather |"
        in block
    )
    assert "| 4096 | 4.1 s | 2.05 s | 31 MiB | 16 MiB | 1 GiB |" in block
    wrong = "wrong result: relative error 1.0e+00"
    assert f"| 8192 | 8.19 s | {wrong} | 62 MiB | 31 MiB | ~4 GiB (computed) |" in block
    assert "- Slope in B from B = 4096 on, one lam per sample, threads 2: 1.00 at C = 10, 1.00 at C = 1000." in block
    # One point is left at C = 1000.
    assert "- Slope in B from B = 4096 on, one lam per batch, threads 2: 1.00 at C = 10." in block
    assert "a CPU, 2 threads, torch 2.13, float32" in block
    assert block.endswith("the page faults of a step go from 0 at (4096, 1000) to 4096 at (4096, 100000).")


def test_no_jump_of_page_faults_is_told_where_they_grow_with_the_size() -> None:
    body = made_up()
    for name, results in body["results"].items():
        for result in results.values():
            if isinstance(result, dict):
                result["page_faults"] = int(name.split("x")[0]) * int(name.split("x")[1]) // 1000
    assert report.page_faults(body, measure.key("sample", 2)) == []


def test_eager_memory_that_was_not_measured_is_marked() -> None:
    body = made_up()
    found = {b: report.eager_memory(body, "index-gather", b) for b in (2048, 3000, 4096, 65_536)}
    assert found == {2048: "256 MiB", 3000: "not run", 4096: "1 GiB", 65_536: "~256 GiB (computed)"}


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(command, "alone", lambda function, *arguments: function(*arguments))  # seconds of starting less
    out = tmp_path / "growth.json"
    sizes = ["--batches", "16", "64", "--classes", "1000", "--class-batches", "16", "--many-classes", "10"]
    options = ["--eager-batches", "16", "--threads", "1", "--seconds", "0", "--out", str(out)]
    assert command.main([*sizes, *options]) == 0
    body = json.loads(out.read_text(encoding="utf-8"))
    assert set(body["results"]) == {"16x1000", "64x1000", "16x10"} and set(body["eager"]) == {"16x1000"}
    printed = capsys.readouterr().out
    assert report.table(body) in printed
    assert "| 64 | " in report.block(body)
    assert (tmp_path / "growth.png").stat().st_size > 0
