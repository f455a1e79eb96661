"""The races on the CPU, as `pytest benchmarks/speed --benchmark-json` keeps them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..speed.contenders import COMPILED, OURS, RIVAL
from ..speed.workloads import ONE_LAM, Spec


@dataclass(frozen=True)
class Timed:
    """What a contender took."""

    name: str
    role: str
    median_us: float
    p20_us: float
    p80_us: float
    peak_extra_bytes: int

    @property
    def is_compiled(self) -> bool:
        return self.name.startswith(COMPILED)


@dataclass(frozen=True)
class Race:
    """One workload. `without_time`: why those contenders have none."""

    spec: Spec
    timed: dict[str, Timed]
    without_time: dict[str, str]

    @property
    def ours(self) -> Timed | None:
        return self.timed.get(OURS)

    def rivals(self) -> list[Timed]:
        """Neither ours, nor a floor, nor another task."""
        return [each for each in self.timed.values() if each.role == RIVAL]

    def best(self, is_wanted: Callable[[Timed], bool] = lambda _: True) -> Timed | None:
        """The fastest of some rivals."""
        return min(filter(is_wanted, self.rivals()), key=lambda each: each.median_us, default=None)

    def ratio(self, name: str) -> float | None:
        """A contender's time over ours."""
        return times(self.timed.get(name), self.ours)


@dataclass(frozen=True)
class Races:
    """All of one run."""

    machine: dict[str, Any]
    of: dict[Spec, Race]

    def select(self, operation: str, is_wanted: Callable[[Spec], bool] = lambda _: True) -> list[Race]:
        """Of an operation, in the order of the run."""
        return [race for spec, race in self.of.items() if spec.operation == operation and is_wanted(spec)]

    def where(self) -> str:
        """What was measured on."""
        machine = self.machine
        return f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}"


def read(body: dict[str, Any]) -> Races:
    """The file's content."""
    timed: dict[str, dict[str, Timed]] = {name: {} for name in body["without_time"]}
    for entry in body["benchmarks"]:
        extra, stats = entry["extra_info"], entry["stats"]
        median, p20, p80 = (1e6 * seconds for seconds in (stats["median"], extra["p20"], extra["p80"]))
        name = extra["contender"]
        of_group = timed.setdefault(entry["group"], {})
        of_group[name] = Timed(name, extra["role"], median, p20, p80, extra["peak_extra_bytes"])
    names = dict.fromkeys([*(entry["group"] for entry in body["benchmarks"]), *timed])
    specs = {name: Spec.parse(name) for name in names}
    races = {spec: Race(spec, timed[name], body["without_time"].get(name, {})) for name, spec in specs.items()}
    return Races(body["machine_info"], races)


def times(slow: Timed | None, fast: Timed | None) -> float | None:
    """The quotient of two times, if there are two."""
    return slow.median_us / fast.median_us if slow and fast else None


def factor(ratio: float | None, missing: str = "not timed") -> str:
    """Such as 2.5×."""
    if ratio is None:
        return missing
    return f"{ratio:.2f}×" if ratio < 10 else f"{ratio:.0f}×"


def place(spec: Spec) -> str:
    """Its size, and what else is not as usual."""
    more = [] if spec.dtype == "float32" else [spec.dtype]
    more += [spec.variant.replace("_", " ")] if spec.variant and spec.variant != ONE_LAM else []
    more += ["one lam for the batch"] if spec.variant == ONE_LAM else []
    size = f"({', '.join(map(str, spec.size))})"
    return ", ".join([size, *more])


def time(us: float) -> str:
    """Three digits with a unit."""
    value, unit = (us, "µs") if us < 1000 else (us / 1000, "ms") if us < 1e6 else (us / 1e6, "s")
    return f"{value:.3g} {unit}"


def spread(timed: Timed | None) -> str:
    """Median with p20 and p80 in the median's unit."""
    if timed is None:
        return "not timed"
    middle = time(timed.median_us)
    scale = {"µs": 1.0, "ms": 1e3, "s": 1e6}[middle.split()[1]]
    return f"{middle} ({timed.p20_us / scale:.3g}–{timed.p80_us / scale:.3g})"


def memory(size_bytes: float) -> str:
    """MiB."""
    mebibytes = size_bytes / 2**20
    return f"{mebibytes:.0f} MiB" if mebibytes >= 10 else f"{mebibytes:.2g} MiB"


def row(cells: Iterable[str]) -> str:
    """Of a table."""
    return f"| {' | '.join(cells)} |"


def table(header: list[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Its lines."""
    return [row(header), "|" + "---|" * len(header), *map(row, rows)]
