"""`python -m benchmarks.processes`: bytes and time of a step on several processes of this machine, and an estimate.

No way gets a number whose loss and gradients are not those of one process with the whole batch, in float64. The times
are of processes that share the cores and the memory of one machine: they say little of machines with a network.
"""

from __future__ import annotations

import argparse
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..speed.report import machine
from .report import estimates, table
from .worker import Size, run

ROWS = {2: (64, 256, 1024), 3: (64, 256), 4: (64, 256)}
DEPTH, CLASSES = 512, 1000
LIMIT_S = 240


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 1 if a result was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="per size (default 3)")
    parser.add_argument("--out", type=Path, help="write JSON here")
    options = parser.parse_args(arguments)
    facts = {**machine(), "threads": 1}
    print("  ".join(f"{key} {value}" for key, value in facts.items()))
    results = {}
    for world, of_each in ROWS.items():
        sizes = [Size(rows, DEPTH, CLASSES) for rows in of_each]
        for size, measured in zip(sizes, _run(world, sizes, options.seconds), strict=True):
            name = "x".join(map(str, (world, *size)))
            results[name] = measured
            print(f"\n{world} processes, {size.rows} rows each, D = {size.depth}, C = {size.classes}")
            print(table(measured), flush=True)
    print(f"\n{estimates()}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        body = {"machine": facts, "options": {"seconds": options.seconds}, "results": results}
        options.out.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return int(any("wrong" in result for measured in results.values() for result in measured.values()))


def _run(world: int, sizes: list[Size], seconds: float) -> list[dict[str, dict[str, Any]]]:
    """In processes of their own, of which none is left behind."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    context = torch.multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    arguments = (world, port, sizes, seconds, there)
    processes = [context.Process(target=run, args=(rank, *arguments), daemon=True) for rank in range(world)]
    try:
        for process in processes:
            process.start()
        there.close()  # of this process: else the end of theirs would not be seen
        if not here.poll(LIMIT_S):
            raise RuntimeError(f"{world} processes took more than {LIMIT_S} s")
        measured: list[dict[str, dict[str, Any]]] = here.recv()
        for process in processes:
            process.join(timeout=30)
        return measured
    finally:
        for process in processes:
            process.kill()


if __name__ == "__main__":
    raise SystemExit(main())
