"""`make gpu-bench`: the race against rivals on the GPU that is here, in as many calls as it takes.

A call stops cleanly before its budget ends. The JSON file keeps what is finished, and the next call goes on from there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from . import facts, report, tables
from .check_parts import LIMIT_S, built
from .contenders import FAMILIES, MODULES, OURS
from .parts import Budget
from .processes import ROOT, Finished, run
from .workloads import Spec, chosen

OUT = ROOT / "benchmarks" / "results" / "gpu-bench.json"
LOGS = ROOT / "build" / "gpu-bench"
# What is raced together, and the seconds that it may take. Compilers are slow, and are not to hold up the others.
BATCHES: tuple[tuple[tuple[str, ...], float], ...] = (
    ((OURS, "plain", "cross-entropy", *MODULES), 150.0),
    (("compile", "reduce-overhead"), 240.0),
    (("max-autotune",), 300.0),
)
LEAST_S = 25.0  # a race that cannot have that is left for the next call
# torch says so itself: the profiler's library, taken down, does not get along with graphs.
NO_TEARDOWN = {"DISABLE_CUPTI_LAZY_REINIT": "1", "TEARDOWN_CUPTI": "0"}
RESERVE_S = 10.0  # for ending a process and writing


def main(options: argparse.Namespace) -> int:
    """Run what is missing until the budget ends; 1 if a result of ours was wrong or failed, 2 if nothing can run."""
    if options.device == "cpu" and options.out.resolve().is_relative_to(OUT.parent):
        print(f"gpu-bench: --device cpu is for tests; write it elsewhere than {OUT.parent} with --out")
        return 2
    try:
        device = {**facts.facts(options.device), **({"commit": options.commit} if options.commit else {})}
        kept = Kept.open(options.out, device, options.again)
        specs = chosen(options.sizes)
    except (RuntimeError, ValueError) as error:
        print(f"gpu-bench: nothing was run: {error}")
        return 2
    budget, left = Budget.of(options.budget), 0
    build = built(device.get("capability"), LOGS)(min(LIMIT_S["build"], options.budget))
    if build.state == "failed":
        print(f"build: failed, so what was built before is timed: {build.note}")
    for spec, families, limit_s in missing(specs, wanted(options.rivals), kept.races):
        allowed_s = budget.left() - RESERVE_S
        if left or allowed_s < min(LEAST_S, limit_s):
            left += 1
            continue
        print(f"\n{spec.name}: {', '.join(families)}", flush=True)
        race = run_race(spec, families, min(limit_s, allowed_s), options)
        # Ended early by the budget, not by its own limit: no verdict, the next call tries again.
        if limit_s > allowed_s and (race["finished"] is not True or race["out_of_time"]):
            print("  broken off by the budget")
            left += 1
            continue
        kept.add(spec, families, race)
        print(tables.race(spec, race), flush=True)
    print(f"\n{options.out}" + (f"\n{left} races are left: run it again" if left else ""))
    return 1 if any(tables.ours_is_wrong(race) for races in kept.races.values() for race in races) else 0


class Kept:
    """The JSON file: races by workload, each with the families that it had and the commit that it ran at."""

    def __init__(self, path: Path, body: dict[str, Any]) -> None:
        self.path, self.body = path, body

    @classmethod
    def open(cls, path: Path, device: dict[str, Any], again: bool) -> Kept:
        """What an earlier call kept.

        Raises:
            ValueError: the file is of another device.
        """
        body = {} if again else report.read(path)
        if body and body["device"]["name"] != device["name"]:
            raise ValueError(
                f"{path} is of {body['device']['name']}, this is {device['name']}; give another --out, or --again"
            )
        head = {"schema": report.SCHEMA, "kind": "gpu-bench", "device": device}
        return cls(path, {**body, **head, "results": body.get("results", {})})

    @property
    def races(self) -> dict[str, list[dict[str, Any]]]:
        """Workload -> its races."""
        found: dict[str, list[dict[str, Any]]] = self.body["results"]
        return found

    def add(self, spec: Spec, families: Iterable[str], race: dict[str, Any]) -> None:
        """Keep a race, at once."""
        when = datetime.now(timezone.utc).isoformat(timespec="seconds")
        entry = {"rivals": list(families), "commit": self.body["device"]["commit"], "when": when, **race}
        self.races.setdefault(spec.name, []).append(entry)
        report.write(self.path, self.body)


def wanted(rivals: list[str] | None) -> tuple[str, ...]:
    """The families asked for; ours takes part in every race, and is one of its own where there is no rival."""
    if rivals is None:
        return FAMILIES
    return tuple(dict.fromkeys(family for family in rivals if family != "none")) or (OURS,)


def missing(
    specs: Iterable[Spec], families: Iterable[str], races: dict[str, list[dict[str, Any]]]
) -> list[tuple[Spec, tuple[str, ...], float]]:
    """What is still to be raced: the quick batches of all workloads before the slow ones."""
    found = []
    specs, families = list(specs), set(families)
    for batch, limit_s in BATCHES:
        for spec in specs:
            done = {family for race in races.get(spec.name, ()) for family in (OURS, *race["rivals"])}
            todo = tuple(family for family in batch if family in families - done)
            if todo:
                found.append((spec, todo, limit_s))
    return found


def run_race(spec: Spec, families: tuple[str, ...], limit_s: float, options: argparse.Namespace) -> dict[str, Any]:
    """A race in a process of its own. `finished`: True, or what became of it instead."""
    stem = f"{spec.name}-{families[0]}"
    out = LOGS / f"{stem}.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu", "race", "--workload", spec.name, "--out", str(out)]
    command += ["--limit", str(limit_s - 10), "--seconds", str(options.seconds), "--device", options.device]
    command += [*(["--cold"] if options.cold else []), "--rivals", *families]
    finished = run(command, limit_s, LOGS / f"{stem}.log", NO_TEARDOWN)
    found = report.read(out)
    if found:  # timed; what a profiler did to the process after that takes nothing back
        kept = {key: value for key, value in found.items() if key not in ("schema", "kind")}
        late = {} if finished.status == 0 else {"after_timing": _why(finished, limit_s)}
        return {"finished": True, **kept, **late}
    return {"finished": _why(finished, limit_s), "results": {}, "work": {}, "out_of_time": []}


def _why(finished: Finished, limit_s: float) -> str:
    if finished.status is None:
        return f"ended at its limit of {limit_s:.0f} s"
    return f"exit status {finished.status}: {finished.last_line()}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `bench`."""
    parser.add_argument("--sizes", nargs="+", metavar="SIZE", help="such as 128x100, or names of workloads")
    parser.add_argument(
        "--rivals",
        nargs="+",
        choices=(*FAMILIES, "none"),
        metavar="FAMILY",
        help=f"of {', '.join(FAMILIES)}, or none (default: all)",
    )
    parser.add_argument("--out", type=Path, default=OUT, help=f"JSON file (default {OUT.relative_to(ROOT)})")
    parser.add_argument("--again", action="store_true", help="forget what the file holds")
    parser.add_argument("--budget", type=float, default=530.0, help="seconds of this call (default 530)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of timing for each race (default 6)")
    parser.add_argument("--cold", action="store_true", help="empty the L2 cache before every timed region")
    parser.add_argument("--commit", help="what is timed, where there is no git")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a stand-in, for tests only")
