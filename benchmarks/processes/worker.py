"""One process of a group: is a way right, what does it send, how long does it take."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .contenders import CLASS_AXIS, WAYS, one_process, problem, step, whole
from .traffic import bytes_sent, collectives

# Relative error in float64 from which on a way is wrong.
WRONG = 1e-11
STEPS_COUNTED = 5
_AXES = ((WAYS, "both"), (CLASS_AXIS, "class"))


class Size(NamedTuple):
    """Rows of one process, depth of the features, classes."""

    rows: int
    depth: int
    classes: int


def run(rank: int, world: int, port: int, sizes: list[Size], seconds: float, results: Any) -> None:
    """All sizes; rank 0 sends the results."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    measured = [measure(size, seconds) for size in sizes]
    if rank == 0:
        results.send(measured)
    dist.barrier()
    os._exit(
        0
    )  # torch's own threads of a group, joined in no order on the interpreter's way out, may abort the process


def measure(size: Size, seconds: float) -> dict[str, dict[str, Any]]:
    errors = _errors(size)
    part = problem(*size, rank=dist.get_rank(), dtype=torch.float32)
    measured: dict[str, dict[str, Any]] = {}
    right: dict[str, Callable[[], object]] = {}
    for name, way in (WAYS | CLASS_AXIS).items():
        if errors[name] >= WRONG:
            measured[name] = {"wrong": f"relative error {errors[name]:.1e}"}
            continue
        steps = right[name] = functools.partial(step, way, part)
        measured[name] = {"error": errors[name], "collectives": collectives(steps), "bytes": _bytes(steps)}
    for name, median_us in _times({name: right[name] for name in WAYS if name in right}, seconds).items():
        measured[name]["median_us"] = median_us
    return measured


def _errors(size: Size) -> dict[str, float]:
    """Of loss and gradients in float64 against one process with the whole batch, relative to the largest number."""
    rank, world = dist.get_rank(), dist.get_world_size()
    parts = [problem(*size, rank=each, dtype=torch.float64) for each in range(world)]
    batch = whole(parts)
    truths = [(ways, step(functools.partial(one_process, axis=axis), batch)) for ways, axis in _AXES]
    errors = {}
    for name, way, (loss, of_features, of_weight) in ((*way, truth) for ways, truth in truths for way in ways.items()):
        truth = (loss, of_features[rank * size.rows :][: size.rows], of_weight)
        own_loss, own_features, own_weight = step(way, parts[rank])
        result = (_mean(own_loss), own_features / world, _mean(own_weight))
        worst = max(
            float((ours - exact).abs().max() / exact.abs().max()) for ours, exact in zip(result, truth, strict=True)
        )
        errors[name] = float(_largest(torch.tensor(worst if worst == worst else float("inf"))))
    return errors


def _mean(values: Tensor) -> Tensor:
    """Over processes, as DistributedDataParallel takes it."""
    values = values.clone()
    dist.all_reduce(values)
    return values / dist.get_world_size()


def _largest(value: Tensor) -> Tensor:
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return value


def _bytes(steps: Callable[[], object]) -> int:
    """That the process which sends most sends in a step."""
    steps()
    dist.barrier()
    before = bytes_sent()
    for _ in range(STEPS_COUNTED):
        steps()
    sent = bytes_sent() - before
    dist.barrier()
    return int(_largest(torch.tensor(sent / STEPS_COUNTED)))


def _times(steps: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Medians of rank 0; all ways take turns, and all processes take as many."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + seconds
    is_on = True
    while is_on:
        for name, each in steps.items():
            dist.barrier()
            start = time.perf_counter()
            each()
            times[name].append((time.perf_counter() - start) * 1e6)
        is_on = bool(_largest(torch.tensor(float(time.perf_counter() < end))))
    return {name: float(torch.tensor(samples).median()) for name, samples in times.items()}
