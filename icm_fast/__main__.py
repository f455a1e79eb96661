"""`python -m icm_fast [--json]`: what is installed, what was built, what works. Made to be pasted into an issue."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

import icm_fast

from . import _selfcheck
from ._native import build_info

# None of ours: icm_fast reads no variable at run time. These change what is built, or what torch and CUDA do.
VARIABLES = (
    *("USE_CPP", "ICM_FAST_CUDA", "CXX", "CXXFLAGS", "CUDA_HOME", "NVCC_FLAGS", "TORCH_CUDA_ARCH_LIST", "DEBUG"),
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "TRITON_INTERPRET", "ATEN_CPU_CAPABILITY"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; 1 if the self-check failed."""
    parser = argparse.ArgumentParser(
        prog="python -m icm_fast",
        description="Report versions, what was built, each backend and why one is unavailable; check the results of "
        "every available backend against the reference.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    as_json = parser.parse_args(arguments).json
    backends = icm_fast.backends()
    report: dict[str, Any] = {
        "versions": versions(),
        "platform": platform_facts(),
        "gpus": gpus(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "build": build_info(),
        "backends": {name: {"available": ok, "reason": reason} for name, (ok, reason) in backends.items()},
        "self_check": [result.as_dict() for result in _selfcheck.run(backends)],
    }
    print(json.dumps(report, indent=2, allow_nan=False) if as_json else as_text(report))
    return 0 if all(result["passed"] for result in report["self_check"]) else 1


def versions() -> dict[str, str | None]:
    """Installed versions; None for what is absent. Only torch is imported to find out."""
    found: dict[str, str | None] = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("icm_fast", "triton", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["icm_fast"] = icm_fast.__version__
    return found


def platform_facts() -> dict[str, Any]:
    """The machine, as far as speed depends on it."""
    return {
        "system": platform.platform(),
        "cpu": cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch_cuda": torch.version.cuda,
    }


def cpu_name() -> str:
    """The processor's name; platform.processor() is empty on most Linux systems."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def gpus() -> list[dict[str, Any]]:
    """Name, compute capability and memory of each CUDA device."""
    if not torch.cuda.is_available():
        return []
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [
        {"name": device.name, "capability": f"{device.major}.{device.minor}", "memory_bytes": device.total_memory}
        for device in devices
    ]


def as_text(report: Mapping[str, Any]) -> str:
    """The same report for people."""
    lines = [f"{name}: {version or 'not installed'}" for name, version in report["versions"].items()]
    lines += [f"{name}: {value}" for name, value in report["platform"].items()]
    lines += [f"gpu: {gpu['name']}, sm_{gpu['capability']}, {gpu['memory_bytes']} bytes" for gpu in report["gpus"]]
    lines += [f"{name}={value}" for name, value in report["variables"].items()]
    lines += ["", "build"]
    lines += build_lines(report["build"])
    lines += ["", "backends"]
    for name, backend in report["backends"].items():
        state = "available" if backend["available"] else "unavailable"
        lines.append(f"  {name}: {state}" + (f": {backend['reason']}" if backend["reason"] else ""))
    lines += ["", "self-check (forward and backward, against the reference in float64)"]
    for result in report["self_check"]:
        if result["max_error"] is None:
            outcome = f"FAILED: {result['message']}"
        else:
            outcome = f"{'ok' if result['passed'] else 'FAILED'}, max error {result['max_error']:.1e}"
            outcome += f" (at most {result['tolerance']:.1e})"
        lines.append(f"  {result['backend']} {result['operator']} {result['dtype']}: {outcome}")
    return "\n".join(lines)


def build_lines(build: Mapping[str, Any]) -> list[str]:
    """One line for each fact of build.json."""
    if not build:
        return ["  no record of a build"]
    lines = []
    for name, value in build.items():
        facts = value if isinstance(value, dict) else {"": value}
        for fact, content in facts.items():
            if isinstance(content, dict):
                content = "; ".join(f"{key} {' '.join(flags)}".strip() for key, flags in content.items())
            elif isinstance(content, list):
                content = " ".join(content)
            lines.append(f"  {name} {fact}: {content}".replace(" :", ":"))
    return lines


if __name__ == "__main__":
    sys.exit(main())
