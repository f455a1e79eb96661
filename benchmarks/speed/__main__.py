"""`python -m benchmarks.speed`: time and memory against rivals, interleaved, with a correctness gate."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from .contenders import OURS
from .measure import Measurement
from .race import race
from .report import Results, machine, table, write
from .workloads import OPERATIONS, workloads


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 1 if a result of ours was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=["icm_loss"], metavar="OPERATION")
    parser.add_argument("--sizes", nargs="+", type=_size, help="such as 128x100 (batch x classes), 1024x512x1000")
    parser.add_argument("--one-lam", action="store_true", help="one lam for the batch instead of one per sample")
    parser.add_argument("--no-compile", action="store_true", help="leave the torch.compile rivals out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=5.0, help="per size (default 5)")
    parser.add_argument("--out", type=Path, help="write JSON here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print("  ".join(f"{key} {value}" for key, value in machine().items()))

    results: Results = {}
    for operation in options.operations:
        for workload in workloads(operation, options.sizes, options.one_lam):
            print(f"\n{workload.name}{'' if operation == 'mixup' else '  (loss + gradient)'}", flush=True)
            results[workload.name] = race(operation, workload.size, options)
            print(table(results[workload.name]), flush=True)
    if options.out:
        kept = {"threads": options.threads, "one_lam": options.one_lam, "seconds": options.seconds}
        write(options.out, results, kept)
    return 0 if all(isinstance(each[OURS], Measurement) for each in results.values()) else 1


def _size(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split("x"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected sizes such as 128x100, got {text!r}") from error


if __name__ == "__main__":
    raise SystemExit(main())
