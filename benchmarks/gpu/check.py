"""`make gpu-check`: whether the kernels are right on the GPU that is here, in minutes, whatever goes wrong.

Every part is a process of its own with a limit of its own: one that crashes, hangs or loses the device is one failed
part. The table of parts is printed last; everything is in the JSON file, which is written anew as each part ends.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from . import outcomes, report
from .parts import NO_TIME, Budget, Outcome, Part, run_part, run_parts
from .processes import ROOT, Finished, run

LOGS = ROOT / "build" / "gpu-check"
OUT = ROOT / "benchmarks" / "results" / "gpu-check.json"
BACKENDS = ("triton", "cuda")
OF_OPERATIONS = ("icm_loss", "mixup", "mixup_cross_entropy", "am_mixup_loss")
TOGETHER = (*OF_OPERATIONS, "layouts_and_bad_values", "streams_and_graphs", "repeat", "small")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FOUND = 77  # exit status of compute-sanitizer when it found something
TIMED = ("icm_loss-128x100", "icm_loss-1024x1000", "icm_loss-4096x1000", "mixup-256x3x224x224")
# Seconds. No part takes more than is left of the budget, whatever its limit.
LIMIT_S = {"device": 60, "build": 240, "self-check": 60, "tests": 150, "large": 90, "sanitizer": 120, "timings": 110}
RESTARTS = 5  # after tests that lost the device


def main(options: argparse.Namespace) -> int:
    """Run all parts; 0 if all that could run passed, 1 if one failed or found no time, 2 without a GPU."""
    budget = Budget.of(options.budget)
    shutil.rmtree(LOGS, ignore_errors=True)
    device = run_part(Part("device", LIMIT_S["device"], device_facts), budget)
    if device.state != "passed":
        print(f"gpu-check: nothing was checked: {device.note}")
        return 2
    record = Record(options.out, device, options.commit)
    record.ended("device", device)
    archs = {"TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST") or device.details["capability"]}
    build = Part("build", LIMIT_S["build"], lambda limit_s: built(limit_s, archs))
    record.ended("build", run_part(build, budget))
    self_check = run_part(Part("self-check", LIMIT_S["self-check"], self_checked), budget)
    record.ended("self-check", self_check)
    run_parts(parts_for(self_check.details.get("backends", {})), budget, options.jobs, record.ended)
    print(report.part_table(record.parts))
    print(f"\n{options.out}\nlogs in {LOGS}")
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


def parts_for(backends: dict[str, Any]) -> list[Part]:
    """Tests, sanitizers and timings of the backends that work here; one line for one that does not."""
    parts = [file_part("reference", "tests", "reference", kernels=None)]
    for backend in BACKENDS:
        state = backends.get(backend, {"available": False, "reason": "the self-check did not say"})
        if not state["available"]:
            parts.append(Part(f"{backend}: all", 0, _not_run(state["reason"])))
            continue
        parts += [file_part(f"{backend}: {name}", "tests", name, backend) for name in TOGETHER]
        parts += [file_part(f"{backend}: {tool}", "sanitizer", "small", backend, tool) for tool in TOOLS]
        parts.append(file_part(f"{backend}: large", "large", "large", backend))
    parts += [Part(f"planted fault: {tool}", LIMIT_S["sanitizer"], _planted(tool)) for tool in TOOLS]
    return [*parts, Part("timings", LIMIT_S["timings"], timed, alone=True)]


def _not_run(reason: str) -> Callable[[float], Outcome]:
    return lambda _: Outcome("not run", reason)


def device_facts(limit_s: float) -> Outcome:
    """What is here, asked of another process: starting a broken driver may hang."""
    finished = run([sys.executable, "-m", "benchmarks.gpu.facts"], limit_s, LOGS / "device.log")
    if finished.status != 0:
        return Outcome("not run", "the device does not answer" if finished.status is None else finished.last_line())
    found = finished.json()
    if found is None:
        return Outcome("not run", f"no facts: {finished.last_line()}")
    return Outcome("passed", found["name"], found)


def built(limit_s: float, environment: dict[str, str]) -> Outcome:
    """The libraries, in place."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    finished = run(command, limit_s, LOGS / "build.log", environment)
    return _plain(finished, f"for {environment['TORCH_CUDA_ARCH_LIST']}")


def self_checked(limit_s: float) -> Outcome:
    """`python -m icm_fast`: which backends work, and whether each computes the right thing."""
    finished = run([sys.executable, "-m", "icm_fast", "--json"], limit_s, LOGS / "self-check.log")
    found = finished.json()
    if found is None:
        return Outcome("failed", f"no report: {finished.last_line()}")
    wrong = [f"{r['backend']} {r['operator']} {r['dtype']}" for r in found["self_check"] if not r["passed"]]
    details = {"backends": found["backends"], "build": found["build"], "self_check": found["self_check"]}
    if wrong:
        return Outcome("failed", f"wrong: {', '.join(wrong)}", details)
    return Outcome("passed", f"{len(found['self_check'])} results", details)


def file_part(name: str, limit: str, file: str, kernels: str | None, tool: str | None = None) -> Part:
    """A file of tests/gpu for one backend, under a tool of compute-sanitizer if one is given."""

    def work(limit_s: float) -> Outcome:
        budget, stem = Budget.of(limit_s), name.replace(": ", "-")
        record, log = LOGS / f"{stem}.jsonl", LOGS / f"{stem}.log"
        command = [sys.executable, "-m", "pytest", f"tests/gpu/test_{file}.py", "-q", "-p", "no:cacheprovider"]
        command += ["--outcomes", str(record), "--resume", *(["--kernels", kernels] if kernels else [])]
        environment = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        if tool is not None:
            prefix = sanitizer(tool)
            if prefix is None:
                return Outcome("not run", "compute-sanitizer is not installed")
            # Without the cache of allocations every tensor has bounds that memcheck knows.
            command, environment = [*prefix, *command], {**environment, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        finished = run(command, limit_s, log, environment)
        for _ in range(RESTARTS):
            if finished.status != outcomes.DEVICE_LOST or budget.allowance(limit_s) is None:
                break
            finished = run(command, budget.left(), log, environment)
        if tool is not None and (unusual := _said_by_tool(tool, finished)) is not None:
            return unusual
        return outcomes.judge(finished, outcomes.read(record))

    return Part(name, LIMIT_S[limit], work, alone=limit == "large")


def sanitizer(tool: str) -> list[str] | None:
    """compute-sanitizer up to the program to run; None where it is not found."""
    found = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if found is None:
        return None
    # torch probes for functions that a driver may lack, which is no error. 0: no limit on the start of Python.
    extra = ["--report-api-errors", "no"] if tool == "memcheck" else []
    options = ["--launch-timeout", "0", "--target-processes", "application-only", "--print-limit", "20"]
    return [found, "--tool", tool, "--error-exitcode", str(FOUND), *options, *extra]


def _said_by_tool(tool: str, finished: Finished) -> Outcome | None:
    """What the tool itself reports; None: the tests have the word."""
    lines = [line.strip("= \n") for line in finished.output.splitlines() if line.startswith("=====")]
    if finished.status == FOUND:
        return Outcome("failed", next((line for line in reversed(lines) if "SUMMARY" in line), "it found errors"))
    refusal = next((line for line in lines if "not supported" in line.lower()), None)
    if finished.status != 0 and refusal is not None:
        return Outcome("not run", refusal)
    if finished.status == 0 and not any("SUMMARY: 0" in line for line in lines):
        return Outcome("failed", f"{tool} printed no summary of 0 errors: {finished.last_line()}")
    return None


def _planted(tool: str) -> Callable[[float], Outcome]:
    """That the tool finds a fault here at all."""

    def work(limit_s: float) -> Outcome:
        prefix = sanitizer(tool)
        if prefix is None:
            return Outcome("not run", "compute-sanitizer is not installed")
        command = [*prefix, sys.executable, "tests/gpu/planted_fault.py", tool]
        finished = run(command, limit_s, LOGS / f"planted-{tool}.log")
        if finished.status == FOUND and "planted_fault" in finished.output:
            return Outcome("passed", "found")
        unusual = _said_by_tool(tool, finished)
        if unusual is not None and unusual.state == "not run":
            return unusual
        return Outcome("failed", f"{tool} did not find it (exit status {finished.status}): {finished.last_line()}")

    return work


def timed(limit_s: float) -> Outcome:
    """Our own times, without rivals."""
    out = LOGS / "timings.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "bench", "--rivals", "none", "--out", str(out)]
    command += ["--budget", str(max(10, limit_s - 5)), "--seconds", "1.5", "--sizes", *TIMED]
    finished = run(command, limit_s, LOGS / "timings.log")
    results = json.loads(out.read_text(encoding="utf-8"))["results"] if out.exists() else {}
    outcome = _plain(finished, f"{len(results)} of {len(TIMED)} sizes")
    return Outcome(outcome.state, outcome.note, {"results": results})


def _plain(finished: Finished, note: str) -> Outcome:
    """Passed with exit status 0."""
    if finished.status == 0:
        return Outcome("passed", note)
    reason = "ran past its limit" if finished.status is None else f"exit status {finished.status}"
    return Outcome("failed", f"{reason}: {finished.last_line()}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `check`."""
    parser.add_argument("--out", type=Path, default=OUT, help=f"JSON file (default {OUT.relative_to(ROOT)})")
    parser.add_argument("--budget", type=float, default=450.0, help="seconds in all (default 450)")
    parser.add_argument("--commit", help="what is checked, where there is no git")
    parser.add_argument("--jobs", type=int, default=max(1, min(8, (os.cpu_count() or 2) // 2)), help="parts at a time")
