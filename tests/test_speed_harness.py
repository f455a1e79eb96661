"""The races on the CPU: contenders, gates, floors, and where the ways of a loss cross."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import peer, peer_file

from benchmarks.speed import __main__ as command
from benchmarks.speed import crossover, floor, peers, truths
from benchmarks.speed.contenders import BOUND, OURS, OURSELVES, Contender, Contenders, contenders, step
from benchmarks.speed.errors import largest_error
from benchmarks.speed.floor import COPY, FLOOR
from benchmarks.speed.measure import Measurement, bound, measure, relative
from benchmarks.speed.race import raced
from benchmarks.speed.report import table
from benchmarks.speed.suite import SUITE, is_of_ours_alone, sizes_of
from benchmarks.speed.truths import exact
from benchmarks.speed.workloads import FLIPPED, OPERATIONS, Spec, make
from icm_fast import functional as F_icm

NAMES = (
    "icm_loss-9x5-float32-cpu",
    "icm_loss-9x5-one_lam-float32-cpu",
    "icm_loss-9x5-bfloat16-cpu",
    "icm_loss-9x5-float64-cpu",
    "mixup_cross_entropy-9x5-float32-cpu",
    "mixup_cross_entropy-9x5-one_lam-float32-cpu",
    "linear_icm_loss-9x6x5-float32-cpu",
    "contrastive_loss-9x6-float32-cpu",
    "icm_loss_dense-9x5-float32-cpu",
    "mixup-6x3x4x4-float32-cpu",
    "mixup-6x3x4x4-bfloat16-cpu",
    "mixup-6x3x4x4-uint8-cpu",
    "mixup-6x3x4x4-flipped-float32-cpu",
    "mixup-6x3x4x4-rolled-float32-cpu",
    "mixup-6x3x4x4-rolled-uint8-cpu",
)
OF_PEERS = {
    "contrastive_loss-9x6-float32-cpu": "open_clip",
    "mixup-6x3x4x4-uint8-cpu": "torchvision",
    "mixup-6x3x4x4-flipped-float32-cpu": "timm",
    "mixup-6x3x4x4-rolled-float32-cpu": "torchvision",
    "mixup-6x3x4x4-rolled-uint8-cpu": "torchvision",
}


@pytest.fixture
def _no_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether they are installed here or not."""
    monkeypatch.setattr(peers, "missing", lambda package: f"not run: {package} is not installed")


@pytest.mark.usefixtures("_no_peers")
@pytest.mark.parametrize("name", NAMES)
def test_all_contenders_are_right(name: str) -> None:
    spec = Spec.parse(name)
    found = contenders(spec, compiled=False)
    measured = raced(spec, found, seconds=0)
    assert list(measured) == list(found) and next(iter(measured)) == OURS and len(measured) > 2
    for contender, result in measured.items():
        if isinstance(found[contender], str):
            assert str(result).startswith("not run: "), (contender, result)
            continue
        assert isinstance(result, Measurement), (contender, result)
        assert result.rounds >= 5 and 0 < result.p20_us <= result.median_us <= result.p80_us
        assert (result.error is None) == (found[contender].role == BOUND) == (contender in (FLOOR, COPY))
        assert result.error is None or result.error < (1e-5 if spec.dtype not in ("bfloat16",) else 1e-2), contender
    assert all(each in table(measured) for each in measured)


@pytest.mark.usefixtures("_no_peers")
@pytest.mark.parametrize(("name", "package"), OF_PEERS.items())
def test_a_rival_that_is_not_installed_is_named(name: str, package: str) -> None:
    reasons = [each for each in contenders(Spec.parse(name), compiled=False).values() if isinstance(each, str)]
    assert f"not run: {package} is not installed" in reasons


@pytest.mark.long
@pytest.mark.parametrize(("name", "package"), OF_PEERS.items())
def test_other_libraries_do_the_same(name: str, package: str) -> None:
    if package == "open_clip":
        peer_file(package, "loss.py")  # all of it needs more than is installed
    else:
        peer(package)
    spec = Spec.parse(name)
    found = {each: one for each, one in contenders(spec, compiled=False).items() if package in each}
    (result,) = raced(spec, found, seconds=0).values()
    assert isinstance(result, Measurement) and result.error is not None and result.error < 1e-5, result


def with_rivals(spec: Spec, **more: Any) -> Contenders:
    found = contenders(spec, compiled=False)
    return {**found, **{name: Contender(lambda workload, made=made: made(workload)) for name, made in more.items()}}


def test_wrong_and_failing_contenders_get_no_time() -> None:
    spec = Spec("contrastive_loss", (9, 6))

    def failing(_: object) -> Any:
        raise ValueError("no memory\nat all")

    def not_a_number(workload: Any) -> Any:
        return step(lambda x, y, scale: (x * y).sum() * scale * float("nan"), workload.leaves)

    def wrong(workload: Any) -> Any:
        return step(lambda x, y, scale: (x * y).sum() * scale, workload.leaves)

    measured = raced(spec, with_rivals(spec, wrong=wrong, failing=failing, not_a_number=not_a_number), seconds=0)
    assert str(measured["wrong"]).startswith("wrong result: relative error ")
    assert str(measured["not_a_number"]).startswith("wrong result: relative error inf")
    assert measured["failing"] == "failed: ValueError: no memory"
    assert isinstance(measured[OURS], Measurement)


@pytest.mark.parametrize(("factor", "is_right"), [(1, True), (1 + 1e-5, False)])
def test_ours_is_held_to_the_elementwise_budget(factor: float, is_right: bool) -> None:
    """Every number is off by far less than what the relative bound would find."""
    spec = Spec("icm_loss", (9, 5))

    def ours(workload: Any) -> Any:
        leaves = workload.leaves
        return step(lambda logits: F_icm.icm_loss(logits, workload.inputs["target"]) * factor, leaves)

    measured = raced(spec, {OURS: Contender(ours, OURSELVES), "rival": Contender(ours)}, seconds=0)
    assert isinstance(measured["rival"], Measurement)
    assert isinstance(measured[OURS], Measurement) == is_right
    assert is_right or "beyond the budget" in str(measured[OURS])


def test_a_call_that_draws_lam_is_judged_by_its_own() -> None:
    workload = make(Spec("mixup", (6, 3, 4, 4), FLIPPED))
    x, labels, index = (workload.inputs[name] for name in ("x", "labels", "index"))
    error, lam = truths.drawn(workload), torch.tensor(0.3)
    mixed = lam * x + (1 - lam) * x[index]
    assert error((mixed, (labels, labels[index], lam))) < 1e-6
    assert error((mixed, (labels, labels[index], 1 - lam))) > 0.1
    assert error((lam * x + (1 - lam) * x.roll(1, 0), (labels, labels[index], lam))) > 0.1


def test_large_batches_are_judged_by_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Spec("icm_loss", (64, 10))
    workload = make(spec)
    right = step(F_icm.icm_loss, workload.leaves, workload.inputs["target"])()
    error = truths.sampled(workload)
    assert error(right) < 1e-5
    assert error((right[0], right[1] * 1.01)) > 1e-3 and error((right[0] * 1.01, right[1])) > 1e-3


def test_errors_of_sparse_gradients() -> None:
    expected = torch.tensor([[0.0, 0.0], [4.0, 2.0]], dtype=torch.float64)
    assert largest_error(expected.float().to_sparse(), expected) == 0
    assert largest_error((expected.float() + torch.eye(2)).to_sparse(), expected) == 0.25
    assert largest_error(expected[0], expected) == float("inf")


def test_bounds_follow_the_type() -> None:
    assert bound(torch.float32) == bound(torch.uint8) == 1e-3 < bound(torch.float16) < bound(torch.bfloat16) < 0.05


def test_workloads_of_the_suite() -> None:
    assert len(set(SUITE)) == len(SUITE)
    assert all(Spec.parse(spec.name) == spec for spec in SUITE)
    assert {spec.operation for spec in SUITE} == set(OPERATIONS)
    assert all(sizes_of(operation) for operation in OPERATIONS)
    large = next(spec for spec in SUITE if is_of_ours_alone(spec))
    assert list(contenders(large)) == [OURS]
    for tail in ("", "-9x5", "-9x5-flipped-float32-cpu", "-9x5-int8-cpu", "-9x5-float32-cuda", "-x-float32-cpu"):
        with pytest.raises(ValueError, match="unknown workload"):
            Spec.parse(f"icm_loss{tail}")


@pytest.mark.parametrize(("classes", "way"), [(8, "classifier"), (500, "views")])
def test_the_floor_takes_the_way_of_the_loss(classes: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Sequence[int]] = []
    of_views = floor._of_views
    monkeypatch.setattr(floor, "_of_views", lambda *size: taken.append(size) or of_views(*size))
    floor.floor(crossover.workload((16, 4, classes)))()
    assert taken == ([(16, 4)] if way == "views" else [])


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--sizes", "9x6x5", "--no-compile", "--threads", "1", "--seconds", "0"]
    assert command.main(["--operations", "linear_icm_loss", *options]) == 0
    assert "x the floor" in capsys.readouterr().out


@pytest.mark.parametrize("part", crossover.PARTS)
def test_classes_for_a_part_of_the_batch(part: float) -> None:
    size = (256, 4, crossover.classes_for(part, 256))
    target = crossover.workload(size).inputs["target"]
    used = len(torch.cat((target.y_a, target.y_b)).unique())
    assert used == pytest.approx(part * 256, rel=0.1)


def test_both_ways_are_right_wherever_the_library_changes() -> None:
    for classes in (8, 100):
        work = crossover.workload((16, 4, classes))
        measured = measure(crossover.ways(work), relative(exact(work)), seconds=0)
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
