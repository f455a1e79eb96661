"""The table that is printed and the JSON that is kept."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import icm_fast as icm

from .contenders import OURS
from .floor import COPY, FLOOR
from .measure import Measurement

Results = dict[str, dict[str, Measurement | str]]


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "icm_fast": icm.__version__,
        "commit": commit(),
        "backend": icm.backends()["cpu"].reason,
    }


def table(results: dict[str, Measurement | str]) -> str:
    """One workload: every contender, the fastest rival's ratio first in the reader's eye."""
    ours = results[OURS]
    lines = [f"  {'':45} {'median':>10} {'p20':>10} {'p80':>10} {'extra memory':>13} {'error':>8}   ours is"]
    for name, result in results.items():
        if isinstance(result, str):
            lines.append(f"  {name:45} {result}")
            continue
        ratio = ""
        if isinstance(ours, Measurement) and name != OURS:
            factor = result.median_us / ours.median_us
            ratio = f"{factor:8.2f}x faster" if factor >= 1 else f"{1 / factor:8.2f}x slower"
            if name in (FLOOR, COPY):
                ratio = f"{1 / factor:8.2f}x the floor"
        times = "".join(f" {time(us):>10}" for us in (result.median_us, result.p20_us, result.p80_us))
        error = "" if result.error is None else f"{result.error:.0e}"
        lines.append(f"  {name:45}{times} {result.peak_extra_bytes / 2**20:9.1f} MiB {error:>8} {ratio}")
    return "\n".join(lines)


def write(path: Path, results: Results, options: dict[str, Any]) -> None:
    """Everything, with the machine and the commit that it belongs to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = {
        "machine": machine(),
        "options": options,
        "results": {
            workload: {name: r if isinstance(r, str) else r.summary() for name, r in each.items()}
            for workload, each in results.items()
        },
    }
    path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def time(us: float) -> str:
    """Three digits with a unit."""
    return f"{us:.1f} us" if us < 1000 else f"{us / 1000:.3g} ms" if us < 1e6 else f"{us / 1e6:.3g} s"


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str:
    """What is checked out, with "-dirty" where it was changed."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    except OSError:  # no git
        return "unknown"
    return found.stdout.strip() or "unknown"
