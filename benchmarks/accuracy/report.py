"""The table and the statements for the terminal, and the same as files: CSV, JSON and text."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import platform
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

import icm_fast as icm
from benchmarks.accuracy import methods
from benchmarks.accuracy.data import ImageSet
from benchmarks.accuracy.floor import Duplicates
from benchmarks.accuracy.results import CONFIDENCE, Part, findings, score
from benchmarks.accuracy.timing import Timing
from benchmarks.accuracy.train import Recipe, RunResult

PARTS: dict[Part, str] = {"accuracy": "all %", "head_accuracy": "head %", "tail_accuracy": "tail %"}
# (group, label) -> text: columns of one group stand under one heading
Row = dict[tuple[str, str], str]


@dataclasses.dataclass
class Report:
    """Everything that one call of the harness found; `duplicates` of IC-Mixup, if it was trained."""

    data_sets: list[ImageSet]
    recipe: Recipe
    results: list[RunResult]
    timings: list[Timing]
    duplicates: list[Duplicates]

    @property
    def method_names(self) -> list[str]:
        return list(dict.fromkeys(result.method for result in self.results))

    @property
    def num_seeds(self) -> int:
        return len({result.seed for result in self.results})

    @property
    def seeds_text(self) -> str:
        return "1 seed" if self.num_seeds == 1 else f"{self.num_seeds} seeds"


def environment() -> dict[str, Any]:
    """What the numbers depend on besides the seeds."""
    return {
        "icm_fast": icm.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "backends": {name: "available" if entry[0] else entry[1] for name, entry in icm.backends().items()},
    }


def table_rows(report: Report) -> list[Row]:
    """One row per method, cells as text."""
    timings = {timing.method: timing for timing in report.timings}
    rows = []
    for name in report.method_names:
        row: Row = {("", "method"): methods.get(name).title}
        for images in report.data_sets:
            for part, label in PARTS.items():
                if part == "accuracy" or images.is_long_tailed:
                    row[images.name, label] = str(score(report.results, images.name, name, part))
        timing = timings[name]
        # plain cross-entropy is torch's on both sides
        ours = ("-", "-") if name == "erm" else (f"{timing.loss_ms:.3f}", f"{timing.step_ms:.2f}")
        row["loss, ms", "ours"], row["loss, ms", "authors'"] = ours[0], f"{timing.plain_loss_ms:.3f}"
        row["whole step, ms", "ours"], row["whole step, ms", "authors'"] = ours[1], f"{timing.plain_step_ms:.2f}"
        rows.append(row)
    return rows


def format_table(rows: Sequence[Row]) -> str:
    """Plain text; the first column is flush left, the others right."""
    columns = list(rows[0])
    widths = {column: max(len(column[1]), *(len(row[column]) for row in rows)) for column in columns}
    groups = []
    for group, members in itertools.groupby(columns, key=lambda column: column[0]):
        inside = list(members)
        width = sum(widths[column] for column in inside) + 2 * (len(inside) - 1)
        widths[inside[0]] += max(0, len(group) - width)
        groups.append(group.center(max(width, len(group))))
    labels = _line([column[1] for column in columns], list(widths.values()))
    body = [_line([row[column] for column in columns], list(widths.values())) for row in rows]
    return "\n".join(["  ".join(groups).rstrip(), labels, "-" * len(labels), *body])


def _line(texts: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = zip(texts, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(text.rjust(width) for text, width in rest)])


def describe(report: Report) -> str:
    """What was run, before the table."""
    recipe, timing, found = report.recipe, report.timings[0], environment()
    lines = [", ".join(f"{name} {found[name]}" for name in ("icm_fast", "torch", "python", "machine"))]
    if found["backends"]["cpu"] != "available":
        lines.append(f"No fused kernels here ({found['backends']['cpu']}): ours is the reference in plain PyTorch.")
    for images in report.data_sets:
        counts = images.class_counts.tolist()
        per_class = str(counts[0]) if len(set(counts)) == 1 else ", ".join(map(str, counts))
        text = (
            f"{images.name}: {sum(counts)} training images ({per_class} per class), {recipe.epochs(sum(counts))} epochs"
        )
        if images.is_long_tailed:
            head, tail = (", ".join(map(str, sorted(part.tolist()))) for part in images.head_and_tail())
            text += f"; head: classes {head}; tail: {tail}"
        lines.append(text)
    lines.append(
        f"Test: {len(report.data_sets[0].test_labels)} unmixed images, equally many of each class, after the last "
        f"epoch; mean ± standard deviation over {report.seeds_text}."
    )
    lines.append(
        f"All methods: SGD, {recipe.steps} steps of {recipe.batch_size} images, learning rate {recipe.lr} (times "
        f"{recipe.decay} after each quarter), momentum {recipe.momentum}, weight decay {recipe.weight_decay}; chosen "
        f"once, for ERM alone, on held-out training images."
    )
    lines.append(
        f"Times: medians, one thread, (B, C) = ({timing.batch_size}, {timing.num_classes}); loss: forward and "
        f"backward to the logits; authors': the loss as the methods' own programs write it, in plain PyTorch."
    )
    return "\n".join(map(_wrap, lines))


def _wrap(text: str) -> str:
    return textwrap.fill(text, 110, subsequent_indent="  ", break_long_words=False)


def statements(report: Report) -> str:
    """What the numbers say, whatever it is; differences are taken seed by seed."""
    lines = [line for images in report.data_sets for line in findings(report.results, images.name)]
    notes = [_noise()]
    if "remix" in report.method_names and not all(images.is_long_tailed for images in report.data_sets):
        notes.append("With equal class counts Remix is Mixup by definition.")
    notes.extend(map(_floor, report.duplicates))
    notes.append(_cost(report.timings))
    return "\n".join([*lines, "", *map(_wrap, notes)])


def _noise() -> str:
    return (
        f"Differences are in points, with their standard error over the seeds. Beyond the noise: zero lies outside the "
        f"{CONFIDENCE:.0%} range of Student's t, which chance alone brings about in one comparison of "
        f"{1 / (1 - CONFIDENCE):.0f}. The highest of many means is flattered by having been picked."
    )


def _floor(found: Duplicates) -> str:
    return (
        f"{found.data}: with one lam per batch, {found.repeated:.0f} of {found.batch_size} images repeat a mixed class "
        f"of their batch on average; the loss of IC-Mixup cannot fall below {found.floor_nats:.2f} nats per axis."
    )


def _cost(timings: Sequence[Timing]) -> str:
    loss_ratios = [timing.plain_loss_ms / timing.loss_ms for timing in timings if timing.method != "erm"]
    step_ratios = [timing.plain_step_ms / timing.step_ms for timing in timings if timing.method != "erm"]
    if not loss_ratios:
        return "ERM has no loss of ours to compare."
    return (
        f"Authors' time / ours: {min(loss_ratios):.2f} to {max(loss_ratios):.2f} for the loss alone, "
        f"{min(step_ratios):.2f} to {max(step_ratios):.2f} for a whole step of this small network."
    )


def write_files(report: Report, folder: Path) -> list[Path]:
    """runs.csv (one line per run), summary.csv (one per data set and method), results.json (all), report.txt."""
    runs = [_flat(result) for result in report.results]
    everything = {
        "environment": environment(),
        "recipe": dataclasses.asdict(report.recipe),
        "class_counts": {images.name: images.class_counts.tolist() for images in report.data_sets},
        "seeds": sorted({result.seed for result in report.results}),
        "runs": [dataclasses.asdict(result) for result in report.results],
        "timings": [dataclasses.asdict(timing) for timing in report.timings],
        "duplicates": [dataclasses.asdict(found) for found in report.duplicates],
    }
    text = "\n\n".join([describe(report), format_table(table_rows(report)), statements(report)])
    return [
        _write_csv(folder / "runs.csv", runs),
        _write_csv(folder / "summary.csv", list(_summary(report))),
        _write(folder / "results.json", json.dumps(everything, indent=1)),
        _write(folder / "report.txt", text),
    ]


def _flat(result: RunResult) -> dict[str, Any]:
    """A run without its curves; the classes' accuracies get a column each."""
    row = {name: value for name, value in dataclasses.asdict(result).items() if not isinstance(value, list)}
    return row | {f"class_{c}_accuracy": value for c, value in enumerate(result.class_accuracy)}


def _summary(report: Report) -> Iterable[dict[str, Any]]:
    timings = {timing.method: timing for timing in report.timings}
    for images in report.data_sets:
        for name in report.method_names:
            row: dict[str, Any] = {"data": images.name, "method": name, "seeds": report.num_seeds}
            for part in PARTS:
                found = score(report.results, images.name, name, part)
                row |= {f"{part}_mean": found.mean, f"{part}_std": found.std}
            costs = dataclasses.asdict(timings[name])
            yield row | {key: value for key, value in costs.items() if key != "method"}


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def _write(path: Path, text: str) -> Path:
    path.write_text(text + "\n", encoding="utf-8")
    return path
