"""`make gpu-check`: whether the kernels are right on the GPU that is here, in minutes, whatever goes wrong.

Every part is a process of its own with a limit of its own: one that crashes, hangs or loses the device is one failed
part. The table of parts is printed last; everything is in the JSON file, which is written anew as each part ends.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import shutil
import time
from datetime import datetime, timezone
from pathlib import Path

from . import outcomes, report
from .check_parts import LIMIT_S, LOGS, built, device_facts, parts_for, self_checked
from .parts import NO_TIME, Budget, Outcome, Part, run_part, run_parts
from .processes import ROOT

OUT = ROOT / "benchmarks" / "results" / "gpu-check.json"
BACKENDS = ("triton", "cuda")


def main(options: argparse.Namespace) -> int:
    """Run all parts; 0 if all that could run passed, 1 if one failed or found no time, 2 without a GPU."""
    budget, stand_in = Budget.of(options.budget), options.device == "cpu"
    partial = stand_in or options.only is not None
    out = options.out or (LOGS / "gpu-check.json" if partial else OUT)
    if partial and out.resolve().parent == OUT.parent:
        print(f"gpu-check: {OUT.parent} is for whole runs on a GPU; give another --out")
        return 2
    shutil.rmtree(LOGS, ignore_errors=True)
    device = run_part(Part("device", LIMIT_S["device"], device_facts(stand_in)), budget)
    if device.state != "passed":
        print(f"gpu-check: nothing was checked: {device.note}")
        return 2
    record = Record(out, device, options.commit)
    record.ended("device", device)
    record.ended("build", run_part(Part("build", LIMIT_S["build"], built(device.details.get("capability"))), budget))
    self_check = run_part(Part("self-check", LIMIT_S["self-check"], self_checked), budget)
    record.ended("self-check", self_check)
    backends = self_check.details.get("backends", {})
    parts = parts_for(backends, ("cpu",) if stand_in else BACKENDS, stand_in)
    if options.only is not None:
        parts = [part for part in parts if any(fnmatch.fnmatch(part.name, pattern) for pattern in options.only)]
    run_parts(parts, budget, options.jobs, record.ended)
    print(f"\n{out}\nlogs in {LOGS}\n\n{report.part_table(record.parts)}")
    return record.status()


class Record:
    """The JSON file, complete after every part."""

    def __init__(self, path: Path, device: Outcome, commit: str | None) -> None:
        self.path = path
        self.parts: dict[str, Outcome] = {}
        self.device = {**device.details, **({"commit": commit} if commit else {})}
        self.started = time.monotonic()
        self.when = datetime.now(timezone.utc).isoformat(timespec="seconds")

    def ended(self, name: str, outcome: Outcome) -> None:
        """Another part has ended."""
        self.parts[name] = outcome
        print(f"{name}: {outcome.state} after {outcome.seconds:.0f} s: {outcome.note}", flush=True)
        timings = self.parts["timings"].details if "timings" in self.parts else {}
        body = {
            "schema": report.SCHEMA,
            "kind": "gpu-check",
            "when": self.when,
            "device": self.device,
            "seconds": round(time.monotonic() - self.started, 1),
            "parts": [report.part_row(name, part) for name, part in self.parts.items()],
            **outcomes.merged(part.details for part in self.parts.values()),
            "timings": timings.get("results", {}),
        }
        report.write(self.path, body)

    def status(self) -> int:
        """1 if a part failed or found no time, or if no kernel ran."""
        bad = [part for part in self.parts.values() if part.state == "failed" or part.note == NO_TIME]
        ran = any(part.details.get("covered") for part in self.parts.values())
        return 0 if ran and not bad else 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `check`."""
    parser.add_argument("--out", type=Path, help=f"JSON file (default {OUT.relative_to(ROOT)})")
    parser.add_argument("--budget", type=float, default=450.0, help="seconds in all (default 450)")
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help='parts by name, such as "cuda: *"')
    parser.add_argument("--commit", help="what is checked, where there is no git")
    parser.add_argument("--jobs", type=int, default=max(1, min(8, (os.cpu_count() or 2) // 2)), help="parts at a time")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a stand-in, for tests only")
