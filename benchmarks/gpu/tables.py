"""Results of races as text."""

from __future__ import annotations

from typing import Any

from . import report
from .workloads import PRODUCTS, Spec

HEADER: tuple[str, ...] = (
    *("", "both", "p20", "p80", "in a graph", "forward", "backward"),
    *("GB/s", "Gexp/s", "Tflop/s", "floor", "memory", "error", "host", "launches", "ours is"),
)
PREFIX = "icm_fast "  # of what is ours; more words tell what it is that is not the function itself


def race(spec: Spec, entry: dict[str, Any]) -> str:
    """Every contender; rates and share of the floor are those of the best of eager and graph."""
    if entry["finished"] is not True:
        return f"  {entry['finished']}"
    whole = "both" if spec.has_gradient else "forward"
    rows, notes = [HEADER], []
    best = {name: best_us(result, whole) for name, result in entry["results"].items()}
    ours_us = min((us for name, us in best.items() if us and is_function(name)), default=None)
    for name, result in entry["results"].items():
        if isinstance(result, str):
            notes.append(f"  {name}: {result}")
            continue
        us = best[name]
        factor = us / ours_us if us and ours_us and not is_function(name) else None
        rows.append((name, *_times(result, whole), *_rates(entry, whole, us), *_costs(result), _factor(factor)))
        if "no_graph" in result:
            notes.append(f"  {name}: no graph: {result['no_graph']}")
    table = report.aligned(rows, range(1, len(HEADER)))
    if spec.operation in PRODUCTS:
        notes.append("  floor: matrix products at the rate of a large square one, and the passes over their results")
    bound = "\n  * the host could not keep ahead of the device" if "*" in table else ""
    return "\n".join(["  " + line for line in table.splitlines()] + notes) + bound


def is_function(name: str) -> bool:
    """Whether a contender is our function of that operation, by some backend."""
    return name.startswith(PREFIX) and " " not in name.removeprefix(PREFIX)


def best_us(result: Any, mode: str) -> float | None:
    """The better of the medians eager and in a graph."""
    if isinstance(result, str):
        return None
    found = [result[how][mode]["median_us"] for how in ("eager", "graph") if mode in result.get(how, {})]
    return min(found, default=None)


def ours_is_wrong(entry: dict[str, Any]) -> bool:
    """Whether a backend of ours gave a wrong result or failed in a race; one that is not available did not."""
    ours = [result for name, result in entry["results"].items() if name.startswith(PREFIX)]
    return any(isinstance(result, str) and not result.startswith("not run") for result in ours)


def time(us: float | None) -> str:
    """Three digits with a unit; nothing for None."""
    if us is None:
        return ""
    value, unit = (us, "us") if us < 1000 else (us / 1000, "ms") if us < 1e6 else (us / 1e6, "s")
    return f"{value:.3g} {unit}"


def _times(result: dict[str, Any], whole: str) -> tuple[str, ...]:
    eager, graph = result.get("eager", {}), result.get("graph", {})
    first = eager.get(whole, {})
    mark = "*" if first.get("host_bound") else ""
    cells = [time(first.get(name)) + (mark if first else "") for name in ("median_us", "p20_us", "p80_us")]
    parts = [eager.get(mode, {}).get("median_us") if whole == "both" else None for mode in ("forward", "backward")]
    return (*cells, time(graph.get(whole, {}).get("median_us")), *(time(us) for us in parts))


def _rates(entry: dict[str, Any], whole: str, us: float | None) -> tuple[str, ...]:
    work = entry["work"].get(whole)
    if not work or not us:
        return "", "", "", ""
    floor_us = work["floor_us"]
    exponentials = f"{work['exponentials'] / us / 1e3:.0f}" if work["exponentials"] else ""
    products = f"{work['operations'] / us / 1e6:.1f}" if work.get("operations") else ""
    share = f"{100 * floor_us / us:.0f} %" if floor_us else ""
    return f"{work['bytes'] / us / 1e3:.0f}", exponentials, products, share


def _costs(result: dict[str, Any]) -> tuple[str, str, str, str]:
    extra, profile = result.get("peak_extra_bytes"), result.get("profile")
    launches = ""
    if isinstance(profile, dict):
        copies, waits = profile["copies_to_host"], profile["waits"]
        launches = str(profile["launches"]) + (f", {copies} copies to host" if copies else "")
        launches += f", {waits} waits" if waits else ""
    memory = "" if extra is None else f"{extra / 2**20:.1f} MiB"
    return memory, f"{result['error']:.0e}", time(result.get("host_us")), launches


def _factor(factor: float | None) -> str:
    if factor is None:
        return ""
    return f"{factor:.2f}x faster" if factor >= 1 else f"{1 / factor:.2f}x slower"
