"""`python -m benchmarks.speed.crossover`: where the two ways of linear_icm_loss cost the same.

Both ways of a step, interleaved, against the number of classes U that the batch uses, in parts of its size B. Labels
and partners' labels are drawn alike, from as many classes C as give about U different ones.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast.functional import _linear_ways

from .contenders import Step, step
from .measure import Measurement, measure, relative
from .race import alone
from .report import machine, time, write
from .truths import exact
from .workloads import Workload, linear_workload

BATCH_SIZE = 1024
DEPTHS = (256, 512)
PARTS = tuple(eighths / 8 for eighths in range(2, 13))
LOGITS, MIXED = "through the logits", "on mixed classifiers"
_WAYS = {LOGITS: True, MIXED: False}
OUT = Path(__file__).resolve().parent.parent / "results" / "crossover.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 1 if a result was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.crossover", description=__doc__)
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--depths", nargs="+", type=int, default=DEPTHS, metavar="D")
    parser.add_argument("--parts", nargs="+", type=float, default=PARTS, metavar="U/B")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=3.0, help="per point (default 3)")
    parser.add_argument("--out", type=Path, default=OUT, help="write JSON here, and a figure beside it")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print("  ".join(f"{key} {value}" for key, value in machine().items()))

    results, used = {}, {}
    for depth in options.depths:
        for part in options.parts:
            work = workload((options.batch_size, depth, classes_for(part, options.batch_size)))
            target = work.inputs["target"]
            used[work.name] = len(torch.cat((target.y_a, target.y_b)).unique())
            results[work.name] = alone(_measured, work.size, options.threads, options.seconds)
            print(".", end="", flush=True)
    changes_at = _linear_ways.most_classes(options.batch_size, options.batch_size)
    write(options.out, results, {"seconds": options.seconds, "used": used, "changes_at": changes_at})
    body = json.loads(options.out.read_text(encoding="utf-8"))
    print(table(body))
    draw(body, options.out.with_suffix(".png"))
    return 0 if all(isinstance(way, Measurement) for ways in results.values() for way in ways.values()) else 1


def classes_for(part: float, batch_size: int) -> int:
    """The number of classes of which 2 B draws give about part * B different ones."""

    def different(classes: int) -> float:
        return classes * -float(torch.tensor(-1 / classes).log1p().mul(2 * batch_size).expm1())

    return bisect.bisect_left(range(2, 64 * batch_size), part * batch_size, key=different) + 2


def workload(size: tuple[int, ...]) -> Workload:
    """That of the race, with partners from outside the batch, so that more than B classes can be used."""
    work = linear_workload(size, one_lam=False)
    target = work.inputs["target"]
    y_b = torch.randint(size[2], (size[0],), generator=torch.Generator().manual_seed(1))
    return Workload(work.operation, size, {**work.inputs, "target": icm.MixedTarget(target.y_a, y_b, target.lam)})


def ways(work: Workload) -> dict[str, Step]:
    """A step in either way, whatever the library would take."""
    return {
        name: step(_forced(takes_logits), work.leaves, work.inputs["target"]) for name, takes_logits in _WAYS.items()
    }


def _forced(takes_logits: bool) -> Callable[..., Tensor]:
    """The loss if that were the library's choice: nothing else of the call changes."""

    def loss(features: Tensor, weight: Tensor, bias: Tensor, target: icm.MixedTarget) -> Tensor:
        with mock.patch.object(_linear_ways, "through_logits", return_value=takes_logits):
            result: Tensor = F_icm.linear_icm_loss(features, weight, target, bias)
        return result

    return loss


def _measured(size: tuple[int, ...], threads: int, seconds: float) -> dict[str, Measurement | str]:
    torch.set_num_threads(threads)
    work = workload(size)
    return measure(ways(work), relative(exact(work)), seconds)


def curves(body: dict[str, Any]) -> dict[int, list[tuple[float, float]]]:
    """D -> (U/B, time on mixed classifiers over time through the logits), of the points that were timed."""
    found: dict[int, list[tuple[float, float]]] = {}
    for name, results in body["results"].items():
        batch_size, depth, _ = _size(name)
        points = found.setdefault(depth, [])
        if all(isinstance(results[way], dict) for way in _WAYS):
            ratio = results[MIXED]["median_us"] / results[LOGITS]["median_us"]
            points.append((body["options"]["used"][name] / batch_size, ratio))
    return {depth: sorted(points) for depth, points in found.items()}


def crossings(points: Sequence[tuple[float, float]]) -> list[float]:
    """Where the straight lines between the points pass a ratio of 1."""
    return [
        x + (1 - ratio) / (next_ratio - ratio) * (next_x - x)
        for (x, ratio), (next_x, next_ratio) in itertools.pairwise(points)
        if (ratio < 1) != (next_ratio < 1)
    ]


def sentence(body: dict[str, Any]) -> str:
    """Where they cross."""
    places = []
    for depth, points in curves(body).items():
        found = " and ".join(f"{place:.2f}" for place in crossings(points))
        places.append(f"{f'at U/B = {found}' if found else 'nowhere measured'} for D = {depth}")
    batch_size = _size(next(iter(body["results"])))[0]
    return (
        f"In a batch of B = {batch_size} that uses U classes, the two ways of `linear_icm_loss` cost the same "
        f"{', '.join(places)}; it changes from one to the other at {body['options']['changes_at']}."
    )


def table(body: dict[str, Any]) -> str:
    """Every point, in the order measured."""
    lines = [f"\n  {'B, D, C':>18} {'U':>6} {'U/B':>6} {LOGITS:>20} {MIXED:>22} {'ratio':>7}"]
    for name, results in body["results"].items():
        size, used = _size(name), body["options"]["used"][name]
        logits, mixed = results[LOGITS], results[MIXED]
        start = f"  {', '.join(map(str, size)):>18} {used:>6} {used / size[0]:>6.2f}"
        if isinstance(logits, str) or isinstance(mixed, str):
            lines += [f"{start}  {way}: {results[way]}" for way in _WAYS if isinstance(results[way], str)]
            continue
        times = f"{time(logits['median_us']):>20} {time(mixed['median_us']):>22}"
        lines.append(f"{start} {times} {mixed['median_us'] / logits['median_us']:>6.2f}x")
    return "\n".join([*lines, "", sentence(body)])


def draw(body: dict[str, Any], path: Path) -> None:
    """The ratio of the ways against U/B, for every D."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    styles = (("#0072B2", "s"), ("#D55E00", "o"), ("#009E73", "^"))
    for number, (depth, points) in enumerate(curves(body).items()):
        colour, marker = styles[number % len(styles)]
        parts, ratios = [point[0] for point in points], [point[1] for point in points]
        axes.semilogy(parts, ratios, "-", color=colour, marker=marker, markersize=4, label=f"D = {depth}")
    axes.axhline(1, color="#000000", linewidth=1)
    axes.axvline(body["options"]["changes_at"], color="#666666", linestyle="--", label="where the library changes")
    ticks = (0.5, 0.7, 1, 1.4, 2, 3, 4, 5)
    axes.set_yticks(ticks, [f"{tick}×" for tick in ticks])
    axes.minorticks_off()
    axes.set(title=f"{MIXED} over {LOGITS}", xlabel="classes used over batch size, U/B", ylabel="time, median")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _size(name: str) -> tuple[int, int, int]:
    batch_size, depth, classes = map(int, name.partition("-")[2].split("x"))
    return batch_size, depth, classes


if __name__ == "__main__":
    raise SystemExit(main())
