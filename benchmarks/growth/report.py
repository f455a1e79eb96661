"""What a run says: the table that is printed, slopes, the part of README.md and the figure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..speed.gate import WHOLE
from ..speed.report import time
from .measure import LAMS, key

# From here on a slope is taken: below, a call costs much the same whatever its size.
UPPER = {"B": 4096, "C": 10_000}
MEMORY_CLASSES = 1000

Curve = list[tuple[int, float]]


def sizes(body: dict[str, Any]) -> list[tuple[int, int]]:
    """(B, C) of every result."""
    return sorted((int(name.split("x")[0]), int(name.split("x")[1])) for name in body["results"])


def of_batch(body: dict[str, Any], num_classes: int, name: str, field: str = "median_us") -> Curve:
    """(B, value) at so many classes; points that failed are left out."""
    return [(b, value) for b, c, value in _values(body, name, field) if c == num_classes]


def of_classes(body: dict[str, Any], batch_size: int, name: str, field: str = "median_us") -> Curve:
    """(C, value) at that batch size."""
    return [(c, value) for b, c, value in _values(body, name, field) if b == batch_size]


def slope(curve: Curve, start: int) -> float | None:
    """Of the straight line nearest to log(value) over log(size), by least squares, over sizes from `start` on."""
    points = [(math.log(size), math.log(value)) for size, value in curve if size >= start]
    if len(points) < 2:
        return None
    middle_x, middle_y = (sum(each) / len(points) for each in zip(*points, strict=True))
    along = sum((x - middle_x) * (y - middle_y) for x, y in points)
    return along / sum((x - middle_x) ** 2 for x, _ in points)


def table(body: dict[str, Any]) -> str:
    """Every size: medians with p20 and p80, and memory."""
    names = list(next(iter(body["results"].values())))
    lines = [
        "median (p20 to p80)",
        f"{'B, C':>14}" + "".join(f"{name:>34}" for name in names) + f"{'memory':>12}{'page faults':>13}",
    ]
    for batch_size, num_classes in sizes(body):
        results = body["results"][f"{batch_size}x{num_classes}"]
        timed = {name: result for name, result in results.items() if isinstance(result, dict)}
        cells = "".join(f"{_cell(results[name]):>34}" for name in names)
        most = [
            max((each[field] for each in timed.values()), default=0) for field in ("peak_extra_bytes", "page_faults")
        ]
        lines.append(f"{f'{batch_size}, {num_classes}':>14}{cells}{mebibytes(most[0]):>12}{most[1]:>13}")
        lines += [f"{'':14}{name}: {result}" for name, result in results.items() if isinstance(result, str)]
    return "\n".join([*lines, "", *slopes(body, names)])


def slopes(body: dict[str, Any], names: Sequence[str]) -> list[str]:
    """A line for each way of growing, of the points of these names."""
    lines = []
    for name in names:
        batch = {f"C = {c}": slope(of_batch(body, c, name), UPPER["B"]) for c in body["options"]["classes"]}
        classes = {f"B = {b}": slope(of_classes(body, b, name), UPPER["C"]) for b in body["options"]["class_batches"]}
        for way, start, found in (("B", UPPER["B"], batch), ("C", UPPER["C"], classes)):
            texts = [f"{value:.2f} at {place}" for place, value in found.items() if value is not None]
            if texts:
                lines.append(f"slope in {way} from {way} = {start} on, {name}: {', '.join(texts)}")
    return lines


def block(body: dict[str, Any]) -> str:
    """For README.md: time and memory against B, and the slopes."""
    most = max(body["options"]["threads"])
    heads = [f"B, C = {MEMORY_CLASSES}", *(f"one lam per {lam}" for lam in LAMS), "extra memory", "of it the gradient"]
    heads += list(next(iter(body["eager"].values())))
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for batch_size, num_classes in sizes(body):
        if num_classes != MEMORY_CLASSES:
            continue
        results = [body["results"][f"{batch_size}x{num_classes}"][key(lam, most)] for lam in LAMS]
        cells = [f"{batch_size}", *(_short(result) for result in results), *_memory(results, batch_size, num_classes)]
        cells += [eager_memory(body, name, batch_size) for name in heads[5:]]
        lines.append(f"| {' | '.join(cells)} |")
    machine = body["machine"]
    intro = (
        f"{machine['processor']}, {most} threads, torch {machine['torch']}, float32; loss and gradient, medians. "
        f"Results are held against the float64 reference, beyond B = {WHOLE[0]} a sample of them. Peak extra "
        "memory of a step is measured, in the resident memory of the process; the eager forms' as far as they were run "
        "(~: computed, growing with B² from there):"
    )
    found = [*slopes(body, [key(lam, most) for lam in LAMS]), *page_faults(body, key("sample", most))]
    return "\n".join([intro, "", *lines, "", *(f"- {line[0].upper()}{line[1:]}." for line in found)])


def page_faults(body: dict[str, Any], name: str) -> list[str]:
    """A line where the page faults of a step jump as C grows, and with them the time; of the points of that name."""
    faults = {(b, c): value for b, c, value in _values(body, name, "page_faults")}
    jumps = []
    for batch_size in body["options"]["class_batches"]:
        classes = sorted(c for b, c in faults if b == batch_size)
        for few, many in itertools.pairwise(classes):
            before, after = faults[batch_size, few], faults[batch_size, many]
            if after > 1000 and after > 2 * (many / few) * max(before, 1):
                jumps.append(f"from {before} at ({batch_size}, {few}) to {after} at ({batch_size}, {many})")
    text = "a gradient of 32 MiB or more goes back to the system after each step (glibc) and comes again page by page"
    return [f"{text}: the page faults of a step go {', '.join(jumps)}"] if jumps else []


def eager_memory(body: dict[str, Any], name: str, batch_size: int) -> str:
    """What was measured, or, marked so, computed from the largest batch that was."""
    measured = {int(size.split("x")[0]): of_size for size, of_size in body["eager"].items()}
    if batch_size in measured:
        return mebibytes(measured[batch_size][name])
    largest = max(measured)
    if batch_size < largest:
        return "not run"
    return f"~{mebibytes(measured[largest][name] * (batch_size / largest) ** 2)} (computed)"


def mebibytes(size_bytes: float) -> str:
    """Two digits or more."""
    value = size_bytes / 2**20
    return f"{value / 1024:.3g} GiB" if value >= 1000 else f"{value:.0f} MiB" if value >= 10 else f"{value:.2g} MiB"


def gradient_bytes(batch_size: int, num_classes: int) -> int:
    """In float32."""
    return 4 * batch_size * num_classes


def draw(body: dict[str, Any], path: Path) -> None:
    """Time against B and against C, and memory against B, on log axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), layout="constrained")
    (axes_sample, axes_batch), (axes_classes, axes_memory) = figure.subplots(2, 2)
    for axes, lam in ((axes_sample, "sample"), (axes_batch, "batch")):
        _draw_times(axes, body, lam, body["options"]["classes"], of_batch, "C", UPPER["B"])
        axes.set(title=f"time of loss and gradient, one lam per {lam}", xlabel="batch size B", ylabel="ms, median")
    batches = body["options"]["class_batches"]
    _draw_times(axes_classes, body, "sample", batches, of_classes, "B", UPPER["C"])
    axes_classes.set(
        title="time of loss and gradient, one lam per sample", xlabel="number of classes C", ylabel="ms, median"
    )
    _draw_memory(axes_memory, body)
    titles = dict.fromkeys((axes_sample, axes_batch), f"slopes from B = {UPPER['B']} on")
    titles[axes_classes] = f"slopes from C = {UPPER['C']} on"
    for axes in (axes_sample, axes_batch, axes_classes, axes_memory):
        axes.set(xscale="log", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, title_fontsize=8, title=titles.get(axes))
    figure.savefig(path, dpi=110)


_STYLES = (("#0072B2", "s"), ("#009E73", "^"), ("#D55E00", "o"))


def _draw_times(
    axes: Any, body: dict[str, Any], lam: str, places: Sequence[int], curve_of: Any, letter: str, start: int
) -> None:
    for place, (colour, marker) in zip(places, _STYLES, strict=False):
        for threads, line in zip(body["options"]["threads"], ("--", "-"), strict=False):
            name = key(lam, threads)
            low, middle, high = (curve_of(body, place, name, field) for field in ("p20_us", "median_us", "p80_us"))
            x, y = [point[0] for point in middle], [point[1] / 1000 for point in middle]
            found = slope(middle, start)
            text = "" if found is None else f", slope {found:.2f}"
            label = f"{letter} = {place}, threads {threads}{text}"
            axes.plot(x, y, line, color=colour, marker=marker, markersize=4, label=label)
            axes.fill_between(x, [p[1] / 1000 for p in low], [p[1] / 1000 for p in high], color=colour, alpha=0.2)


def _draw_memory(axes: Any, body: dict[str, Any]) -> None:
    name = key("sample", max(body["options"]["threads"]))
    ours = of_batch(body, MEMORY_CLASSES, name, "peak_extra_bytes")
    gradients = [(b, float(gradient_bytes(b, MEMORY_CLASSES))) for b, _ in ours]
    curves: list[tuple[str, Curve, str, str]] = [("icm_fast", ours, "#D55E00", "o-")]
    curves.append(("of it the gradient", gradients, "#000000", ":"))
    for number, rival in enumerate(next(iter(body["eager"].values()), {})):
        points = [(int(size.split("x")[0]), of_size[rival]) for size, of_size in body["eager"].items()]
        colour, marker = _STYLES[number % len(_STYLES)]
        curves.append((rival, points, colour, f"{marker}-"))
        largest, most = max(points)
        beyond = [(largest, most), *((b, most * (b / largest) ** 2) for b, _ in ours if b > largest)]
        curves.append((f"{rival}, computed", beyond, colour, ":"))
    for label, points, colour, line in curves:
        x, y = [point[0] for point in points], [max(point[1], 2**12) / 2**20 for point in points]
        axes.plot(x, y, line, color=colour, markersize=4, label=label)
    axes.set(title=f"peak extra memory of a step, C = {MEMORY_CLASSES}", xlabel="batch size B", ylabel="MiB")


def _values(body: dict[str, Any], name: str, field: str) -> list[tuple[int, int, float]]:
    results = [(b, c, body["results"][f"{b}x{c}"].get(name)) for b, c in sizes(body)]
    return [(b, c, result[field]) for b, c, result in results if isinstance(result, dict)]


def _cell(result: dict[str, Any] | str) -> str:
    if isinstance(result, str):
        return "no time"
    return f"{time(result['median_us'])} ({time(result['p20_us'])} to {time(result['p80_us'])})"


def _short(result: dict[str, Any] | str) -> str:
    return result if isinstance(result, str) else time(result["median_us"]).replace("us", "µs")


def _memory(results: Sequence[Any], batch_size: int, num_classes: int) -> list[str]:
    measured = [result["peak_extra_bytes"] for result in results if isinstance(result, dict)]
    return [mebibytes(max(measured)) if measured else "", mebibytes(gradient_bytes(batch_size, num_classes))]
