"""The parts of `check`: each runs a command with a limit and judges what came of it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import outcomes
from .parts import Budget, Outcome, Part
from .processes import ROOT, Finished, run
from .workloads import PRODUCTS, backends_of

LOGS = ROOT / "build" / "gpu-check"
TOGETHER = (
    *("icm_loss", "mixup", "mixup_cross_entropy", "am_mixup_loss", *PRODUCTS),
    *("layouts_and_bad_values", "streams_and_graphs", "repeat", "small"),
)
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FOUND = 77  # exit status of compute-sanitizer when it found something
CANNOT_PLANT = 66  # of tests/gpu/planted_fault.py
# Without torch's cache of allocations every tensor has bounds that the tools know.
UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
TIMED = (
    "icm_loss-128x100",
    "icm_loss-1024x1000",
    "icm_loss-4096x1000",
    "mixup-256x3x224x224",
    "linear_icm_loss-4096x1000x512",
)
# Seconds. No part takes more than is left of the budget, whatever its limit.
LIMIT_S = {"device": 60, "build": 240, "self-check": 60, "tests": 150, "large": 90, "sanitizer": 120, "timings": 110}
RESTARTS = 5  # after tests that lost the device
NO_SANITIZER = Outcome("not run", "compute-sanitizer is not installed")

Work = Callable[[float], Outcome]


def parts_for(backends: dict[str, Any], names: tuple[str, ...], stand_in: bool) -> list[Part]:
    """Tests, sanitizers and timings of the backends that work here; one line for one that does not."""
    parts = [file_part("reference", "tests", "reference", [], stand_in)]
    for backend in names:
        # A self-check that died says nothing: then the tests find out by themselves.
        state = backends.get(backend, {"available": True})
        if not state["available"]:
            parts.append(Part(f"{backend}: all", 0, _not_run(state["reason"])))
            continue
        kernels = ["--kernels", backend]
        files = [name for name in TOGETHER if backends_of(name, (backend,))]
        parts += [file_part(f"{backend}: {name}", "tests", name, kernels, stand_in) for name in files]
        parts += [file_part(f"{backend}: {tool}", "sanitizer", "small", kernels, stand_in, tool) for tool in TOOLS]
        parts.append(file_part(f"{backend}: large", "large", "large", kernels, stand_in))
    parts += [Part(f"planted fault: {tool}", LIMIT_S["sanitizer"], planted(tool)) for tool in TOOLS]
    return [*parts, Part("timings", LIMIT_S["timings"], timed(stand_in), alone=True)]


def _not_run(reason: str) -> Work:
    return lambda _: Outcome("not run", reason)


def device_facts(stand_in: bool) -> Work:
    """What is here, asked of another process: starting a broken driver may hang."""

    def work(limit_s: float) -> Outcome:
        command = [sys.executable, "-m", "benchmarks.gpu.facts", "cpu" if stand_in else "cuda"]
        finished = run(command, limit_s, LOGS / "device.log")
        found = finished.json()
        if finished.status != 0 or found is None:
            late = finished.status is None
            return Outcome("not run", "the device does not answer" if late else finished.last_line())
        return Outcome("passed", found["name"], found)

    return work


def built(capability: str | None, logs: Path = LOGS) -> Work:
    """The libraries, in place, for the device that is here and no other: that takes a third of the time."""

    def work(limit_s: float) -> Outcome:
        if capability is None:
            return Outcome("not run", "a stand-in takes what is built")
        archs = os.environ.get("TORCH_CUDA_ARCH_LIST") or capability
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        finished = run(command, limit_s, logs / "build.log", {"TORCH_CUDA_ARCH_LIST": archs})
        return plain(finished, f"for {archs}")

    return work


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


def file_part(name: str, limit: str, file: str, options: list[str], stand_in: bool, tool: str | None = None) -> Part:
    """A file of tests/gpu, under a tool of compute-sanitizer if one is given."""

    def work(limit_s: float) -> Outcome:
        budget, stem = Budget.of(limit_s), name.replace(": ", "-")
        record = LOGS / f"{stem}.jsonl"
        command = [sys.executable, "-m", "pytest", f"tests/gpu/test_{file}.py", "-q", "-p", "no:cacheprovider"]
        command += ["--outcomes", str(record), "--resume", *options, *(["--stand-in"] if stand_in else [])]
        environment = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        if tool is not None:
            prefix = sanitizer(tool)
            if prefix is None:
                return NO_SANITIZER
            command, environment = [*prefix, *command], {**environment, **UNCACHED}
        finished = run(command, limit_s, LOGS / f"{stem}.log", environment)
        for number in range(RESTARTS):
            if finished.status != outcomes.DEVICE_LOST or budget.allowance(limit_s) is None:
                break
            finished = run(command, budget.left(), LOGS / f"{stem}-restart-{number + 1}.log", environment)
        said = None if tool is None else said_by_tool(tool, finished)
        return said or outcomes.judge(finished, outcomes.read(record))

    return Part(name, LIMIT_S[limit], work, alone=limit == "large")


def sanitizer(tool: str) -> list[str] | None:
    """compute-sanitizer up to the program to run; None where it is not found."""
    found = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if found is None:
        return None
    # torch probes for functions that a driver may lack, which is no error. 0: no limit on the start of Python.
    options = ["--report-api-errors", "no", "--launch-timeout", "0", "--target-processes", "application-only"]
    return [found, "--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "20", *options]


def said_by_tool(tool: str, finished: Finished) -> Outcome | None:
    """What the tool itself reports; None: the tests have the word."""
    lines = [line.strip("= \n") for line in finished.output.splitlines() if line.startswith("=====")]
    found = [line for line in lines if "SUMMARY" in line and "SUMMARY: 0" not in line]
    if finished.status == FOUND or found:
        return Outcome("failed", found[-1] if found else f"{tool} found errors")
    refusal = next((line for line in lines if "not supported" in line.lower()), None)
    if finished.status != 0 and refusal is not None:
        return Outcome("not run", refusal)
    if finished.status == 0 and not any("SUMMARY: 0" in line for line in lines):
        return Outcome("failed", f"{tool} printed no summary of 0 errors: {finished.last_line()}")
    return None


def planted(tool: str) -> Work:
    """That the tool finds a fault here at all."""

    def work(limit_s: float) -> Outcome:
        prefix = sanitizer(tool)
        if prefix is None:
            return NO_SANITIZER
        command = [*prefix, sys.executable, "tests/gpu/planted_fault.py", tool]
        finished = run(command, limit_s, LOGS / f"planted-{tool}.log", UNCACHED)
        if finished.status == FOUND and "planted_fault" in finished.output:
            return Outcome("passed", "found")
        if finished.status == CANNOT_PLANT:
            return Outcome("not run", finished.words("cannot be planted"))
        said = said_by_tool(tool, finished)
        if said is not None and said.state == "not run":
            return said
        return Outcome("failed", f"{tool} did not find it (exit status {finished.status}): {finished.last_line()}")

    return work


def timed(stand_in: bool) -> Work:
    """Our own times, without rivals."""

    def work(limit_s: float) -> Outcome:
        out = LOGS / "timings.json"
        command = [sys.executable, "-m", "benchmarks.gpu", "bench", "--rivals", "none", "--out", str(out)]
        command += ["--budget", str(max(10, limit_s - 5)), "--seconds", "1.5"]
        command += ["--sizes", "8x10", "--device", "cpu"] if stand_in else ["--sizes", *TIMED]
        finished = run(command, limit_s, LOGS / "timings.log")
        results = json.loads(out.read_text(encoding="utf-8"))["results"] if out.exists() else {}
        outcome = plain(finished, f"{len(results)} of {1 if stand_in else len(TIMED)} sizes")
        return Outcome(outcome.state, outcome.note, {"results": results})

    return work


def plain(finished: Finished, note: str) -> Outcome:
    """Passed with exit status 0."""
    if finished.status == 0:
        return Outcome("passed", note)
    reason = "ran past its limit" if finished.status is None else f"exit status {finished.status}"
    return Outcome("failed", f"{reason}: {finished.last_line()}")
