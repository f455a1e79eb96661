"""The accuracy harness: its data, its registry, its training, its statistics and its command line."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch

import icm_fast as icm
from benchmarks.accuracy import __main__ as command
from benchmarks.accuracy import data, figure, floor, grid, methods, report, results, timing, train
from benchmarks.accuracy.mixings import FeatureMixing
from benchmarks.accuracy.models import DigitNet

MISSING = [module for module in command.NEEDED if importlib.util.find_spec(module) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}")

QUICK = train.Recipe(steps=20, evaluations=2)
METHOD_NAMES = [
    "erm", "mixup", "ic-mixup-class", "ic-mixup-pair", "ic-mixup",
    "remix", "ic-remix", "regmixup", "ic-regmixup", "am-mixup",
]  # fmt: skip


# data


@pytest.mark.parametrize(
    ("largest", "num_classes", "imbalance", "total"),
    [(5000, 10, 0.1, 20_431), (5000, 10, 0.01, 12_406), (500, 100, 0.1, 19_573), (500, 100, 0.01, 10_847)],
    ids=["cifar10-0.1", "cifar10-0.01", "cifar100-0.1", "cifar100-0.01"],
)
def test_long_tailed_counts_are_those_of_the_papers(
    largest: int, num_classes: int, imbalance: float, total: int
) -> None:
    counts = data.long_tailed_counts(largest, num_classes, imbalance)
    assert sum(counts) == total
    assert counts[0] == largest
    assert counts == sorted(counts, reverse=True)


def test_long_tailed_counts_by_hand() -> None:
    assert data.long_tailed_counts(100, 3, 0.01) == [100, 10, 1]
    assert data.long_tailed_counts(7, 4, 1.0) == [7, 7, 7, 7]


@pytest.mark.parametrize(("num_classes", "imbalance"), [(1, 0.1), (10, 0.0), (10, 1.5)])
def test_long_tailed_counts_rejects_nonsense(num_classes: int, imbalance: float) -> None:
    with pytest.raises(ValueError, match="long_tailed_counts: expected"):
        data.long_tailed_counts(100, num_classes, imbalance)


def test_split_is_stratified_disjoint_complete_and_fixed() -> None:
    labels = torch.arange(10).repeat(30)[:297]
    pool, test = data.stratified_split(labels, 5)
    assert torch.bincount(labels[test]).tolist() == [5] * 10
    assert torch.cat([pool, test]).sort().values.equal(torch.arange(297))
    assert data.stratified_split(labels, 5)[1].equal(test)
    assert not data.stratified_split(labels, 5, seed=1)[1].equal(test)


def test_choosing_more_images_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 3 images of class 1, got 2"):
        data.choose_per_class(torch.tensor([0, 0, 0, 1, 1]), [3, 3], torch.Generator())


def test_digits_sets() -> None:
    balanced, tailed = data.load("digits", seed=0), data.load("digits-lt-0.01", seed=0)
    assert balanced.class_counts.tolist() == [124] * 10
    assert tailed.class_counts.tolist() == data.long_tailed_counts(124, 10, 0.01)
    assert (balanced.is_long_tailed, tailed.is_long_tailed) == (False, True)
    head, tail = tailed.head_and_tail()
    assert (head.tolist(), tail.tolist()) == ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9])
    for images in (balanced, tailed):
        assert images.train_images.shape == (int(images.class_counts.sum()), 1, 8, 8)
        assert torch.bincount(images.test_labels).tolist() == [50] * 10
        assert images.train_images.mean().abs() < 1e-5
        assert (images.train_images.std() - 1).abs() < 1e-5


def test_seed_chooses_the_training_images_and_never_the_test_images() -> None:
    first, again, other = (data.load("digits-lt-0.1", seed) for seed in (0, 0, 1))
    assert first.train_images.equal(again.train_images)
    assert not first.train_images.equal(other.train_images)
    assert first.test_labels.equal(other.test_labels)
    torch.testing.assert_close(first.test_images * first.std + first.mean, other.test_images * other.std + other.mean)


# methods and training


def test_registry_is_complete() -> None:
    assert list(methods.METHODS) == METHOD_NAMES
    assert set(figure.STYLES) == set(METHOD_NAMES)
    assert {method.counterpart for method in methods.METHODS.values()} <= {None, *METHOD_NAMES}
    assert len({method.title for method in methods.METHODS.values()}) == len(METHOD_NAMES)


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_each_method_trains(name: str) -> None:
    images = data.load("digits-lt-0.01", seed=0)
    torch.manual_seed(0)
    model, method = DigitNet(images.num_classes), methods.get(name)
    mixing = method.mixing(methods.Context(images.class_counts, torch.Generator().manual_seed(0)))
    loss_function, optimizer = method.loss(), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(25):
        shown, target = mixing.prepare(images.train_images[::5], images.train_labels[::5])
        logits = mixing.logits(model, shown)
        loss = loss_function(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mixing.observe(logits, images.train_labels[::5])
        losses.append(loss.item())
    mixing.end_epoch()
    assert all(map(math.isfinite, losses))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_am_mixup_rate_falls_as_the_training_accuracy_rises() -> None:
    am_mixup = icm.AMMixup(beta=methods.AM_MIXUP_BETA)
    mixing = FeatureMixing(am_mixup, torch.Generator())
    labels = torch.tensor([0, 1, 2, 3])
    assert mixing.prepare(labels, labels)[1].rate == 1
    mixing.observe(torch.eye(4), labels)
    mixing.observe(torch.eye(4).roll(1, 0), labels)
    mixing.end_epoch()
    assert mixing.prepare(labels, labels)[1].rate == pytest.approx(math.exp(-0.67 * 0.5))


def test_remix_is_mixup_when_classes_are_equally_frequent() -> None:
    mixup, remix = (train.train(train.Run("digits", name, 0, QUICK)) for name in ("mixup", "remix"))
    assert mixup.train_loss == pytest.approx(remix.train_loss, rel=1e-3)


def without_time(result: train.RunResult) -> dict[str, object]:
    return {name: value for name, value in dataclasses.asdict(result).items() if name != "train_s"}


def test_runs_repeat_and_do_not_depend_on_the_number_of_workers() -> None:
    # more runs than workers, so that the queue has to be refilled
    runs = [train.Run("digits-lt-0.01", name, 1, QUICK) for name in ("ic-mixup", "erm", "am-mixup", "ic-regmixup")]
    seen: list[train.RunResult] = []
    alone, together = grid.run_all(runs, 1, seen.append), grid.run_all(runs, 2, seen.append)
    assert [result.method for result in together] == [run.method for run in runs]
    assert list(map(without_time, alone)) == list(map(without_time, together))
    assert len(seen) == 2 * len(runs)


@pytest.mark.parametrize("workers", [1, 2])
def test_failed_run_is_named(workers: int) -> None:
    runs = [train.Run("digits", "mixdown", seed, QUICK) for seed in range(3)]
    with pytest.raises(RuntimeError, match=r"training mixdown on digits with seed [01] failed") as failure:
        grid.run_all(runs, workers, lambda result: None)
    assert "unknown method 'mixdown'" in str(failure.value.__cause__)


def test_last_partial_batch_is_trained_on() -> None:
    result = train.train(train.Run("digits-lt-0.01", "erm", 0, train.Recipe(steps=5, batch_size=64)))
    assert result.epochs == 1
    assert result.curve_steps == [math.ceil(304 / 64)]


def test_learning_rate_falls_after_each_quarter() -> None:
    recipe = train.Recipe(lr=1.0, decay=0.5)
    assert [recipe.lr_at(progress) for progress in (0, 0.24, 0.25, 0.5, 0.75, 1)] == [1, 1, 0.5, 0.25, 0.125, 0.125]


def test_evaluation_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    loss, by_class = train.evaluate(torch.nn.Identity(), logits, torch.tensor([0, 1, 1]), 2)
    assert by_class == [100, 50]
    assert loss == pytest.approx((2 * math.log1p(math.exp(-2)) + math.log1p(math.exp(2))) / 3)


# statistics


def fake(method: str, seed: int, accuracy: float) -> train.RunResult:
    return train.RunResult("digits", method, seed, 1, accuracy=accuracy)


def test_scores_and_paired_differences_by_hand() -> None:
    found = [fake("mixup", seed, value) for seed, value in enumerate([90.0, 80.0, 70.0])]
    found += [fake("ic-mixup", seed, value) for seed, value in enumerate([93.0, 84.0, 72.0])]
    assert results.score(found, "digits", "mixup") == results.Score(80, 10)
    gain = results.difference(found, "digits", "ic-mixup", "mixup")  # 3, 4, 2: deviation 1
    assert (gain.mean, gain.standard_error, gain.seeds) == (3, pytest.approx(1 / math.sqrt(3)), 3)
    assert gain.exceeds_noise  # 3 / 0.577 = 5.2; Student's t with two degrees of freedom: 4.303
    assert not results.Difference(3, 3 / 4.2, 3).exceeds_noise
    text = "\n".join(results.findings(found, "digits"))
    assert "highest mean is that of IC-Mixup (both), 83.00 ± 10.54 %" in text
    assert "beyond the noise" in text


def test_nothing_is_claimed_of_one_seed_or_of_equal_results() -> None:
    one = [fake("erm", 0, 90.0), fake("mixup", 0, 99.0)]
    assert "the noise is unknown" in results.findings(one, "digits")[1]
    assert not results.Difference(0, 0, 5).exceeds_noise


def test_unpaired_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="not run with the same seeds"):
        results.difference([fake("erm", 0, 1.0), fake("mixup", 1, 1.0)], "digits", "mixup", "erm")


def test_floor_by_hand() -> None:
    y_a, y_b = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 1, 0, 2])
    # lam = 1/2: the first three are one class
    repeated, floor_nats = floor.duplicates_of(icm.MixedTarget(y_a, y_b, torch.tensor(0.5)), 3)
    assert (repeated, floor_nats) == (2, pytest.approx(3 * math.log(3) / 4))
    repeated, floor_nats = floor.duplicates_of(icm.MixedTarget(y_a, y_b, torch.tensor(0.25)), 3)
    assert (repeated, floor_nats) == (1, pytest.approx(2 * math.log(2) / 4))


def test_floor_is_reached_by_perfect_logits() -> None:
    y_a, y_b, lam = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 1, 2]), torch.tensor(1.0)
    target = icm.MixedTarget(y_a, y_b, lam)
    logits = 100 * torch.nn.functional.one_hot(y_a, 3).float()
    _, floor_nats = floor.duplicates_of(target, 3)
    assert float(icm.ICMLoss()(logits, target)) == pytest.approx(2 * floor_nats)


# timing and reports


def test_a_wrong_loss_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = dataclasses.replace(methods.get("ic-mixup"), plain_loss=methods.get("ic-mixup-class").plain_loss)
    monkeypatch.setitem(methods.METHODS, "ic-mixup", wrong)
    with pytest.raises(AssertionError, match="the sides differ"):
        timing.measure("ic-mixup", "digits", QUICK, timing.Rounds(1, 1))


def test_table_lines_up() -> None:
    rows: list[report.Row] = [
        {("", "method"): "A", ("a long group", "x"): "1", ("b", "y"): "22", ("b", "z"): "3"},
        {("", "method"): "BCD", ("a long group", "x"): "1.5", ("b", "y"): "2", ("b", "z"): "3"},
    ]
    head, labels, rule, *body = report.format_table(rows).splitlines()
    assert "a long group" in head
    assert {len(line) for line in (labels, rule, *body)} == {len(rule)}


def test_quick_demo_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "folder"
    assert command.main(["demo", "--quick", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    titles = [method.title for method in methods.METHODS.values()]
    assert all(title in printed for title in titles)
    assert printed.startswith((out / "report.txt").read_text(encoding="utf-8"))
    with (out / "runs.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["data"], row["method"]) for row in rows] == [(d, m) for d in command.DEMO_DATA for m in METHOD_NAMES]
    assert all(0 <= float(row["tail_accuracy"]) <= 100 for row in rows)
    with (out / "summary.csv").open(encoding="utf-8") as file:
        assert all(float(row["loss_ms"]) > 0 for row in csv.DictReader(file))
    everything = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert everything["seeds"] == [0]
    assert everything["environment"]["torch"] == torch.__version__
    picture = (out / "demo.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 50_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "mixdown"], "unknown method 'mixdown'; there is: " + ", ".join(METHOD_NAMES)),
        (["--data", "digit"], "unknown data set 'digit'; there is: digits, digits-lt-0.1, digits-lt-0.01"),
        (["--seeds", "0"], "argument --seeds: expected at least 1, got 0"),
        (["--workers", "-1"], "argument --workers: expected at least 1, got -1"),
    ],
)
def test_wrong_arguments_list_what_there_is(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(["demo", "--out", str(tmp_path / "out"), *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(command.NEEDED, "no_such_module", "no-such-package")
    assert command.main(["demo", "--out", str(tmp_path / "out")]) == 1
    assert "the demo needs no-such-package" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_demo_of_one_method_and_one_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--methods", "erm", "--data", "digits-lt-0.1", "--seeds", "2"]
    assert command.main(["demo", "--quick", "--out", str(tmp_path), *arguments]) == 0
    assert "ERM has no loss of ours to compare" in capsys.readouterr().out


def test_list_shows_methods_and_data_sets(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*METHOD_NAMES, *data.DATA_SETS])
