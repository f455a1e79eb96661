"""benchmarks/results/README.md: which kernels, types and sizes have run on which GPU, from the JSON files beside it.

`python -m benchmarks.readme` writes it with the rest. A file of a stand-in, or of no GPU, counts for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import report, tables
from .workloads import PRODUCTS, TARGETS, Spec, backends_of

RESULTS = Path(__file__).resolve().parent.parent / "results"
OPERATIONS = ("icm_loss", "mixup", "mixup_cross_entropy", "am_mixup_loss", *PRODUCTS)
BACKENDS = ("cuda", "triton")
DTYPES = ("float32", "bfloat16", "float16", "float64", "uint8")
NEVER = "not run"
HEAD = """# Results

Written by `python -m benchmarks.readme` from the JSON files here; a test checks that it is current.

`cpu.json`, `growth.json`, `crossover.json`, `automatic.json` and `processes.json` are from `make bench`, `digits` from
`make readme`, `wheel.json` from `make wheel-check`, `gpu-check*.json` from `make gpu-check`, `gpu-bench*.json` from
`make gpu-bench`.

## What has run on a GPU"""


def text(results: Path = RESULTS) -> str:
    """The page."""
    found = [body for body in map(report.read, sorted(results.glob("gpu-*.json"))) if _is_of_gpu(body)]
    checks = [body for body in found if body["kind"] == "gpu-check"]
    benches = [body for body in found if body["kind"] == "gpu-bench"]
    parts = [HEAD]
    if not found:
        parts.append("No kernel of this project has run on any GPU yet: everything below is open.")
    for body in checks:
        parts += _checked(body)
    if not checks:
        parts += _checked(None)
    for body in benches:
        parts += _raced(body)
    if not benches:
        parts.append(f"No race against rivals has run on a GPU. Open: {', '.join(spec.name for spec in TARGETS)}.")
    return "\n\n".join(parts) + "\n"


def write(results: Path = RESULTS) -> None:
    """Write the page."""
    (results / "README.md").write_text(text(results), encoding="utf-8")


def _is_of_gpu(body: dict[str, Any]) -> bool:
    return body.get("kind") in ("gpu-check", "gpu-bench") and body["device"].get("stand_in") is False


def _checked(body: dict[str, Any] | None) -> Iterable[str]:
    """One device: for each kernel and type, how many shapes were right, and the largest."""
    if body is not None:
        yield f"### {_device(body)}\n\nCorrectness, {body['when']}: {_parts(body)}"
    rows = ["| kernel | " + " | ".join(DTYPES) + " |", "|---|" + "---|" * len(DTYPES)]
    for operation in OPERATIONS:
        for backend in backends_of(operation, BACKENDS):
            cells = [_cell(body, f"{backend}/{operation}/{dtype}") for dtype in DTYPES]
            if operation != "mixup":
                cells[-1] = ""
            rows.append(f"| `{operation}`, {backend} | " + " | ".join(cells) + " |")
    yield "\n".join(rows)


def _cell(body: dict[str, Any] | None, name: str) -> str:
    if body is None:
        return NEVER
    backend, operation, _ = name.split("/")
    # A test of several types names none when it fails.
    failed = body["failed"].get(name, 0) + body["failed"].get(f"{backend}/{operation}/?", 0)
    shapes = body["covered"].get(name, [])
    words = []
    if shapes:
        largest = max(shapes, key=lambda shape: (math.prod(shape), shape))
        words.append(f"{len(shapes)} shapes, up to {'×'.join(map(str, largest))}")
    if failed:
        words.append(f"**{failed} tests failed**")
    return "; ".join(words) or NEVER


def _parts(body: dict[str, Any]) -> str:
    """How many parts ended how, and which did not pass."""
    states = {state: [p["name"] for p in body["parts"] if p["state"] == state] for state in ("passed", "failed", NEVER)}
    words = [f"{len(states['passed'])} parts passed"]
    words += [f"{state}: {', '.join(states[state])}" for state in ("failed", NEVER) if states[state]]
    return "; ".join(words) + "."


def _raced(body: dict[str, Any]) -> Iterable[str]:
    """One device: our best median of each workload against its best rival."""
    yield f"### {_device(body)}: races\n\nMedians of loss and gradient (of mixing), the better of eager and graph."
    rows = ["| workload | icm_fast | share of the floor | best rival | its time |", "|---|---|---|---|---|"]
    for name, races in body["results"].items():
        mode = "both" if Spec.parse(name).has_gradient else "forward"
        times = {who: us for race in races for who, us in _medians(race, mode)}
        ours = min((us for who, us in times.items() if tables.is_function(who)), default=None)
        rivals = [(us, who) for who, us in times.items() if not who.startswith(tables.PREFIX) and "hard" not in who]
        rival_us, rival = min(rivals, default=(None, ""))
        floors = [race["work"][mode]["floor_us"] for race in races if race["work"].get(mode)]
        share = f"{100 * floors[0] / ours:.0f} %" if ours and floors and floors[0] else ""
        rows.append(f"| {name} | {tables.time(ours) or NEVER} | {share} | {rival or NEVER} | {tables.time(rival_us)} |")
    yield "\n".join(rows)
    left = [spec.name for spec in TARGETS if spec.name not in body["results"]]
    if left:
        yield f"Not raced: {', '.join(left)}."


def _medians(race: dict[str, Any], mode: str) -> Iterable[tuple[str, float]]:
    for name, result in race["results"].items():
        us = tables.best_us(result, mode)
        if us is not None:
            yield name, us


def _device(body: dict[str, Any]) -> str:
    device = body["device"]
    versions = device["versions"]
    return (
        f"{device['name']}, driver {device.get('driver')}, torch {versions['torch']}, "
        f"triton {versions['triton']}, commit {device['commit']}"
    )
