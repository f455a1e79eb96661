"""Real processes of a gloo group, for tests."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

LIMIT_S = 120


def run(work: Callable[[int, int], Any], world: int, folder: Path, dying: tuple[int, ...] = ()) -> list[Any]:
    """What work(rank, world) returned in each process of a group; None of those that are to end without returning.

    No process is left behind, whatever happens.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    start = multiprocessing.get_context("spawn").Process
    processes = [start(target=_enter, args=(work, rank, world, port, str(folder))) for rank in range(world)]
    try:
        for process in processes:
            process.start()
        end = time.monotonic() + LIMIT_S
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
        hanging = [rank for rank, process in enumerate(processes) if process.is_alive()]
        assert not hanging, f"ranks {hanging} hang"
    finally:
        for process in processes:
            process.kill()
            process.join()
    files = [folder / f"{rank}.pt" for rank in range(world)]
    missing = [rank for rank, file in enumerate(files) if not file.exists()]
    assert missing == list(dying), f"ranks {missing} returned nothing"
    return [None if rank in dying else torch.load(file) for rank, file in enumerate(files)]


def _enter(work: Callable[[int, int], Any], rank: int, world: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    torch.save(work(rank, world), f"{folder}/{rank}.part")
    os.rename(f"{folder}/{rank}.part", f"{folder}/{rank}.pt")
    with contextlib.suppress(RuntimeError):  # one is dead
        dist.barrier()
    # Not the interpreter's way out: torch's own threads of a group, joined in no order there, may abort the process.
    os._exit(0)
