"""The picture: mixed images, test errors, the cost of the loss, and how training went.

Colour (Okabe and Ito's palette, safe for colour-blind readers) tells the family, the line style the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.accuracy import methods
from benchmarks.accuracy.data import ImageSet
from benchmarks.accuracy.report import Report
from benchmarks.accuracy.results import Part, score
from benchmarks.accuracy.train import RunResult
from icm_fast import functional as F_icm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

# method -> (colour, line style)
STYLES = {
    "erm": ("#000000", "-"),
    "mixup": ("#0072B2", "--"),
    "ic-mixup-class": ("#56B4E9", ":"),
    "ic-mixup-pair": ("#56B4E9", "-."),
    "ic-mixup": ("#0072B2", "-"),
    "remix": ("#D55E00", "--"),
    "ic-remix": ("#D55E00", "-"),
    "regmixup": ("#009E73", "--"),
    "ic-regmixup": ("#009E73", "-"),
    "am-mixup": ("#CC79A7", "-"),
}
PLAIN_STYLE = ("#666666", "-")
MAX_SHOWN = 10


def draw(report: Report, path: Path) -> Path:
    """Writes the picture as PNG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    settings: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10}
    with rc_context(settings):
        figure = Figure(figsize=(14, 14), layout="constrained")
        parts: Any = figure.subfigures(3, 1, height_ratios=[1.7, 3.2, 3.2], hspace=0.03)
        images, scores, curves = parts
        _draw_images(images, report.data_sets[0])
        _draw_scores(scores, report)
        _draw_curves(curves, report)
        figure.savefig(path, dpi=110)
    return path


def _draw_images(figure: SubFigure, data_set: ImageSet) -> None:
    """Training images of different classes, their partners and the mixtures, lam from 1 to 0."""
    num_shown = min(MAX_SHOWN, data_set.num_classes)
    labels = torch.arange(num_shown)
    images = torch.stack([data_set.train_images[data_set.train_labels == label][0] for label in labels])
    index, lam = labels.roll(-3), torch.linspace(1, 0, num_shown)
    rows = {"own": images, "partner": images[index], "mixed": F_icm.mixup(images, index, lam)}
    figure.suptitle("Mixing: lam × own image + (1 - lam) × partner", fontsize=10)
    panels = figure.subplots(len(rows), num_shown, squeeze=False)
    for row, (title, shown) in zip(panels, rows.items(), strict=True):
        for axes, image in zip(row, shown, strict=True):
            axes.imshow((image[0] * data_set.std + data_set.mean).numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        row[0].set_ylabel(title, rotation=0, ha="right", va="center")
    for axes, own, partner, weight in zip(panels[-1], labels, labels[index], lam.tolist(), strict=True):
        axes.set_xlabel(f"{weight:.2f} × {own} + {1 - weight:.2f} × {partner}", fontsize=8)


def _draw_scores(figure: SubFigure, report: Report) -> None:
    """Test errors from zero, so that lengths compare; then the time of the loss."""
    names = report.method_names
    panels = figure.subplots(1, len(report.data_sets) + 1, sharey=True, squeeze=False)[0]
    for axes, data_set in zip(panels, report.data_sets, strict=False):
        _draw_errors(axes, report.results, data_set, names)
    _draw_times(panels[-1], report)
    panels[0].set_yticks(range(len(names)), [methods.get(name).title for name in names])
    panels[0].set_ylim(len(names) + 0.4, -0.6)  # first method on top, room for the legends below the last


def _draw_errors(axes: Axes, results: Sequence[RunResult], data_set: ImageSet, names: Sequence[str]) -> None:
    parts: list[tuple[Part, str, str]] = [
        ("head_accuracy", "<", "head classes"),
        ("tail_accuracy", ">", "tail classes"),
    ]
    for place, name in enumerate(names):
        colour = STYLES.get(name, PLAIN_STYLE)[0]
        found = score(results, data_set.name, name)
        axes.barh(place, 100 - found.mean, height=0.62, color=colour, alpha=0.75)
        axes.errorbar(100 - found.mean, place, xerr=_bar(found.std), color="#444444", capsize=3, linewidth=1.2)
        if data_set.is_long_tailed:
            for part, marker, label in parts:
                found = score(results, data_set.name, name, part)
                axes.errorbar(
                    100 - found.mean, place, xerr=_bar(found.std), fmt=marker, color="#444444", markerfacecolor="white",
                    markersize=6, linewidth=0.8, label=label if place == 0 else None,
                )  # fmt: skip
    axes.set_xlim(left=0)
    axes.set_xlabel("test error = 100 - accuracy (%)")
    axes.set_title(f"{data_set.name}: {'bars: all classes' if data_set.is_long_tailed else 'balanced'}")
    axes.grid(axis="x", alpha=0.25)
    if data_set.is_long_tailed:
        axes.legend(loc="lower right", fontsize=8)


def _draw_times(axes: Axes, report: Report) -> None:
    """Plain cross-entropy has no side of ours; the numbers at the bars are the authors' time over ours."""
    from matplotlib.patches import Patch

    for place, timing in enumerate(report.timings):
        colour = STYLES.get(timing.method, PLAIN_STYLE)[0]
        plain_us = 1e3 * timing.plain_loss_ms
        axes.barh(place + 0.2, plain_us, height=0.38, facecolor="white", edgecolor=colour, hatch="////")
        if timing.method != "erm":
            axes.barh(place - 0.2, 1e3 * timing.loss_ms, height=0.38, color=colour)
            axes.annotate(f" {timing.loss_speedup:.1f}×", (1e3 * timing.loss_ms, place - 0.2), va="center", fontsize=8)
    first = report.timings[0]
    axes.set_xlabel("loss, forward and backward (µs, median)")
    axes.set_title(f"time of the loss at (B, C) = ({first.batch_size}, {first.num_classes}), one thread")
    axes.grid(axis="x", alpha=0.25)
    ours, theirs = Patch(facecolor="#777777"), Patch(facecolor="white", edgecolor="#777777", hatch="////")
    axes.legend([ours, theirs], ["ours", "authors' formulation"], loc="lower right", fontsize=8)


def _draw_curves(figure: SubFigure, report: Report) -> None:
    panels = figure.subplots(1, 2 * len(report.data_sets), squeeze=False)[0]
    for place, data_set in enumerate(report.data_sets):
        losses, accuracies = panels[2 * place], panels[2 * place + 1]
        for name in report.method_names:
            colour, line = STYLES.get(name, PLAIN_STYLE)
            runs = [result for result in report.results if (result.data, result.method) == (data_set.name, name)]
            steps, title = runs[0].curve_steps, methods.get(name).title
            losses.plot(steps, _mean([run.train_loss for run in runs]), line, color=colour, linewidth=1.4, label=title)
            accuracies.plot(steps, _mean([run.test_accuracy for run in runs]), line, color=colour, linewidth=1.4)
        losses.set_yscale("log")
        losses.set(xlabel="training step", ylabel="loss (nats)", title=f"{data_set.name}: training loss")
        accuracies.set(xlabel="training step", ylabel="accuracy (%)", title=f"{data_set.name}: test accuracy")
        for axes in (losses, accuracies):
            axes.grid(alpha=0.25)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.suptitle(
        f"Training, mean of {report.seeds_text}; each method minimises its own loss, so their levels do not compare",
        fontsize=10,
    )


def _mean(curves: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(column) for column in zip(*curves, strict=True)]


def _bar(std: float) -> float:
    return 0.0 if math.isnan(std) else std
