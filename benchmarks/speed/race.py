"""One size, in a process of its own.

What the sizes before left to the allocator would decide whether a new array is memory already or must be got page by
page, which can be half of the time of a call.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import torch

from .contenders import contenders, truth
from .measure import Measurement, measure
from .workloads import workloads

Measured = TypeVar("Measured")


def race(operation: str, size: tuple[int, ...], options: argparse.Namespace) -> dict[str, Measurement | str]:
    """All contenders for one size."""
    return alone(_race, operation, size, options)


def alone(function: Callable[..., Measured], *arguments: object) -> Measured:
    """Start the process and wait for what it measured."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _race(operation: str, size: tuple[int, ...], options: argparse.Namespace) -> dict[str, Measurement | str]:
    torch.set_num_threads(options.threads)
    (workload,) = workloads(operation, [size], options.one_lam)
    return measure(contenders(workload, compiled=not options.no_compile), truth(workload), options.seconds)
