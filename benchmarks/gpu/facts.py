"""The device that numbers belong to: name, driver, clocks, versions, commit."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from typing import Any

import torch

import icm_fast

from ..speed.report import commit, processor

STAND_IN = "CPU stand-in"
# Versions that kernels or rivals depend on.
PACKAGES = ("triton", "numpy", "liger-kernel", "open_clip_torch", "pytest")
# As nvidia-smi names them -> our name.
QUERY = {
    "driver_version": "driver",
    "clocks.max.sm": "max_sm_clock_mhz",
    "clocks.max.memory": "max_memory_clock_mhz",
    "clocks.sm": "sm_clock_mhz",
    "clocks.mem": "memory_clock_mhz",
    "power.limit": "power_limit_w",
    "temperature.gpu": "temperature_c",
}


def facts(kind: str) -> dict[str, Any]:
    """Of the current GPU, or for kind "cpu" of a stand-in, which is marked and never counts as a GPU.

    Raises:
        RuntimeError: there is no GPU.
    """
    found = {"stand_in": True, "name": f"{STAND_IN}: {processor()}"} if kind == "cpu" else _gpu()
    versions = {"python": platform.python_version(), "torch": torch.__version__, "torch_cuda": torch.version.cuda}
    versions |= {name: _version(name) for name in PACKAGES} | {"icm_fast": icm_fast.__version__}
    return {**found, "system": platform.platform(), "versions": versions, "commit": commit()}


def why_no_gpu() -> str | None:
    """None where torch sees a GPU, else the reason in one line."""
    if torch.cuda.is_available():
        return None
    built = f"built for CUDA {torch.version.cuda}, but sees no device" if torch.version.cuda else "built without CUDA"
    return f"no GPU here: torch {torch.__version__} is {built}"


def clocks(uuid: str = "") -> dict[str, Any]:
    """What nvidia-smi says of driver and clocks at this moment, of one device or the first; empty without it."""
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    command += [f"--id=GPU-{uuid}"] if uuid else []
    try:
        printed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = [value.strip() for value in (printed.stdout.splitlines() or [""])[0].split(",")]
    if printed.returncode != 0 or len(values) != len(QUERY):
        return {}
    return {name: _number(value) for name, value in zip(QUERY.values(), values, strict=True)}


def _gpu() -> dict[str, Any]:
    reason = why_no_gpu()
    if reason is not None:
        raise RuntimeError(reason)
    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    found: dict[str, Any] = {
        "stand_in": False,
        "name": device.name,
        "capability": f"{device.major}.{device.minor}",
        "multiprocessors": device.multi_processor_count,
        "memory_bytes": device.total_memory,
        "l2_bytes": getattr(device, "L2_cache_size", None),
        "count": torch.cuda.device_count(),
    }
    # CUDA may number the devices otherwise than nvidia-smi; a part of a device has an id that it does not know.
    found |= clocks(str(getattr(device, "uuid", ""))) or clocks()
    rate_khz = getattr(device, "clock_rate", None)  # absent in some versions of torch, 0 under some of CUDA
    found["max_sm_clock_mhz"] = found.get("max_sm_clock_mhz") or (rate_khz / 1000 if rate_khz else None)
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _number(text: str) -> float | str | None:
    """A number where it is one; None for what nvidia-smi does not know ("[N/A]")."""
    try:
        return float(text)
    except ValueError:
        return None if text.startswith("[") else text


if __name__ == "__main__":
    try:
        print(json.dumps(facts(sys.argv[1])))
    except RuntimeError as error:
        raise SystemExit(str(error)) from None
