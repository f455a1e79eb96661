"""`python -m benchmarks.speed`: a quick look at some sizes; `pytest benchmarks/speed` keeps what it measures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from .contenders import OURS
from .measure import Measurement
from .race import Options, race
from .report import machine, table
from .suite import sizes_of
from .workloads import DTYPES, ONE_LAM, OPERATIONS, VARIANTS, Spec


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 1 if a result of ours was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=["icm_loss"], metavar="OPERATION")
    parser.add_argument("--sizes", nargs="+", type=_size, help="such as 128x100 (batch x classes), 1024x512x1000")
    parser.add_argument("--one-lam", action="store_true", help="one lam for the batch instead of one per sample")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--no-compile", action="store_true", help="leave the torch.compile rivals out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=5.0, help="per size (default 5)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print("  ".join(f"{key} {value}" for key, value in machine().items()))

    is_right = True
    for operation in options.operations:
        variant = ONE_LAM if options.one_lam and ONE_LAM in VARIANTS[operation] else ""
        for size in options.sizes or sizes_of(operation):
            spec = Spec(operation, size, variant, options.dtype)
            print(f"\n{spec.name}{'' if operation == 'mixup' else '  (loss + gradient)'}", flush=True)
            results = race(spec, Options(options.seconds, options.threads, not options.no_compile))
            is_right &= isinstance(results[OURS], Measurement)
            print(table(results), flush=True)
    return 0 if is_right else 1


def _size(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split("x"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected sizes such as 128x100, got {text!r}") from error


if __name__ == "__main__":
    raise SystemExit(main())
