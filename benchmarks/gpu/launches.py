"""What a call costs the host: time without waiting, launches, copies back, waits."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

CALLS = 20  # in a row: more would fill the queue, and the host would wait
ROUNDS = 25
# What the profiler calls a launch, and a wait that is not its own.
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchCooperativeKernel", "cudaGraphLaunch")
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cuStreamSynchronize", "cuCtxSynchronize")


def host_us(call: Callable[[], object], synchronize: Callable[[], object]) -> float:
    """Microseconds of a call that does not wait for the device; the median over rounds of many calls in a row."""
    times = []
    for _ in range(ROUNDS):
        synchronize()
        started = time.perf_counter()
        for _ in range(CALLS):
            call()
        times.append((time.perf_counter() - started) / CALLS * 1e6)
    synchronize()
    return sorted(times)[ROUNDS // 2]


def launches(call: Callable[[], object]) -> dict[str, Any]:
    """Of one call on the GPU: kernels by name, launches, copies to the host and waits for it."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    return counted([(event.name, "CUDA" in str(event.device_type)) for event in profile.events()])


def counted(events: list[tuple[str, bool]]) -> dict[str, Any]:
    """The same from names of events and whether they are the device's."""
    on_device = [name for name, is_device in events if is_device]
    on_host = [name for name, is_device in events if not is_device]
    transfers = Counter(name for name in on_device if name.startswith(("Memcpy", "Memset")))
    launched = [name for name in on_host if name.startswith(LAUNCHES)]
    if not launched and not on_device:
        raise RuntimeError("the profiler saw nothing of the device")
    # A compiled program marks its regions among the device's events; they are no kernels.
    kernels = Counter(name for name in on_device if name not in transfers and not name.startswith("##"))
    return {
        "launches": len(launched),
        "kernels": dict(kernels),
        "copies_to_host": sum(count for name, count in transfers.items() if "DtoH" in name or "Pageable" in name),
        "other_transfers": sum(count for name, count in transfers.items() if "DtoH" not in name),
        "waits": sum(name.startswith(WAITS) for name in on_host),
    }
