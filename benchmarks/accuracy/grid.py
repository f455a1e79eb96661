"""Many training runs at once, in worker processes of one thread each: results do not depend on how many."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.connection import wait as wait_for_any

import torch

from benchmarks.accuracy.train import Run, RunResult, train


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch on one thread meanwhile: sums then have one order, and timings one meaning."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_all(runs: Sequence[Run], workers: int, on_result: Callable[[RunResult], None]) -> list[RunResult]:
    """Trains every run and returns the results in the order of the runs; the first failure ends it.

    With one worker everything happens in this process.
    """
    if workers < 1:
        raise ValueError(f"run_all: expected at least 1 worker, got {workers}")
    results: dict[Run, RunResult] = {}
    outcomes = _run_here(runs) if workers == 1 else _run_in_processes(runs, workers)
    with contextlib.closing(outcomes):
        for run, result in outcomes:
            results[run] = result
            on_result(result)
    return [results[run] for run in runs]


def _run_here(runs: Sequence[Run]) -> Generator[tuple[Run, RunResult], None, None]:
    with one_thread():
        for run in runs:
            yield run, _train_here(run)


def _train_here(run: Run) -> RunResult:
    try:
        return train(run)
    except Exception as error:
        raise _failure(run) from error


def _run_in_processes(runs: Sequence[Run], workers: int) -> Generator[tuple[Run, RunResult], None, None]:
    # spawn: a forked child of a process that has started OpenMP threads can hang
    context = multiprocessing.get_context("spawn")
    queue = iter(runs)
    pending: dict[Future[RunResult], Run] = {}
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        # No more is handed over than is running: after a failure or Ctrl-C, only the runs under way are waited for.
        for run in itertools.islice(queue, workers):
            pending[pool.submit(train, run)] = run
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                run = pending.pop(future)
                try:
                    result = future.result()
                except Exception as error:
                    raise _failure(run) from error
                for following in itertools.islice(queue, 1):
                    pending[pool.submit(train, following)] = following
                yield run, result


def _failure(run: Run) -> RuntimeError:
    return RuntimeError(f"training {run.method} on {run.data} with seed {run.seed} failed")


def _start_worker() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent alone decides what ends
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Ends this worker when the parent is killed: it would otherwise wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_any([parent.sentinel])
        os._exit(1)
