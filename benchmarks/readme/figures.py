"""README.md's figures of the races on the CPU: time, memory and speed-up against the batch size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..speed.contenders import OURS, UNMIXED
from ..speed.suite import SWEEP
from ..speed.workloads import Spec
from .cpu import Race, Races, Timed
from .tables import LOSS

LEAST_BYTES = 2**12  # a page: what took none is drawn there, for the axis is logarithmic
BATCH_SIZES = (64, 256, 1024, 4096, 16384, 65536)  # marked on the axis


class Style(NamedTuple):
    colour: str
    line: str
    marker: str


STYLES = {
    OURS: Style("#D55E00", "-", "o"),
    "authors' formulation": Style("#0072B2", "-", "s"),
    "index-gather": Style("#009E73", "-", "^"),
    "torch.compile authors' formulation": Style("#0072B2", "--", "s"),
    "torch.compile index-gather": Style("#009E73", "--", "^"),
    UNMIXED: Style("#777777", ":", "x"),
}
# Of a contender and its race: what is drawn, with the ends of its bar.
Value = Callable[[Timed, Race], tuple[float, float, float] | None]


class Figure(NamedTuple):
    title: str
    unit: str
    value: Value


def _milliseconds(timed: Timed, _: Race) -> tuple[float, float, float]:
    middle, low, high = (us / 1000 for us in (timed.median_us, timed.p20_us, timed.p80_us))
    return middle, low, high


def _mebibytes(timed: Timed, _: Race) -> tuple[float, float, float]:
    value = max(timed.peak_extra_bytes, LEAST_BYTES) / 2**20
    return value, value, value


def _speed_up(timed: Timed, race: Race) -> tuple[float, float, float] | None:
    """Of medians; the ends, each against our median."""
    if race.ours is None or timed.name == OURS:
        return None
    ours = race.ours.median_us
    return timed.median_us / ours, timed.p20_us / ours, timed.p80_us / ours


FIGURES = {
    "speed.png": Figure("time of loss and gradient", "ms, median, p20 to p80", _milliseconds),
    "memory.png": Figure("peak extra memory of a step", "MiB", _mebibytes),
    "speedup.png": Figure("time over that of icm_fast", "×, median, p20 to p80", _speed_up),
}


def points(races: Races, classes: int, name: str, value: Value) -> list[tuple[int, float, float, float]]:
    """Batch size, value and ends of a contender, float32 with one lam per sample."""
    found = []
    for race in races.select(LOSS, lambda spec: spec == Spec(LOSS, (spec.size[0], classes))):
        drawn = value(race.timed[name], race) if name in race.timed else None
        if drawn:
            found.append((race.spec.size[0], *drawn))
    return sorted(found)


def draw(races: Races, folder: Path) -> None:
    """All of them, four panels each."""
    for name, figure in FIGURES.items():
        _draw(races, figure, folder / name)


def _draw(races: Races, what: Figure, path: Path) -> None:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(13, 4), layout="constrained")
    panels = canvas.subplots(1, len(SWEEP), sharey=True)
    for axes, classes in zip(panels, SWEEP, strict=True):
        _panel(axes, races, classes, what.value)
        axes.set(title=f"C = {classes}", xlabel="batch size B", xlim=(BATCH_SIZES[0] / 1.5, BATCH_SIZES[-1] * 1.5))
        axes.set_xticks(BATCH_SIZES, [str(rows) for rows in BATCH_SIZES], fontsize=8)
        axes.minorticks_off()
    panels[0].set_ylabel(what.unit)
    if what.value is _speed_up:
        for axes in panels:
            axes.axhline(1, color=STYLES[OURS].colour, linewidth=1)
    handles: dict[str, Any] = {}
    for axes in panels:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    where: dict[str, Any] = {"loc": "outside lower center", "ncols": len(handles), "fontsize": 8, "handlelength": 3}
    canvas.legend(handles.values(), handles.keys(), **where)
    canvas.suptitle(what.title, fontsize=11)
    canvas.savefig(path, dpi=110)


def _panel(axes: Any, races: Races, classes: int, value: Value) -> None:
    for name, style in STYLES.items():
        found = points(races, classes, name, value)
        if not found:
            continue  # a contender that took no part, or a value that it lacks
        rows, middle, low, high = zip(*found, strict=True)
        look = {"color": style.colour, "linestyle": style.line, "marker": style.marker, "markersize": 4}
        axes.plot(rows, middle, label=name, **look)
        axes.fill_between(rows, low, high, color=style.colour, alpha=0.2, linewidth=0)
    axes.set(xscale="log", yscale="log")
    axes.grid(alpha=0.3)
