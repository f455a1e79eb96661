"""`python -m benchmarks.growth`: time and memory of the loss with its gradient, from small sizes to very large ones."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from ..speed.race import alone
from ..speed.report import machine
from .measure import LAMS, OPERATION, eager_bytes, key, points
from .report import MEMORY_CLASSES, draw, table

BATCHES = (64, 256, 1024, 4096, 16_384, 65_536)
CLASSES = (10, 100, 1000)
CLASS_BATCHES = (256, 1024)
MANY_CLASSES = (10, 100, 1000, 10_000, 100_000, 1_000_000)
MOST_NUMBERS = 1 << 28  # in the logits: 1 GiB, as much again for the gradient, and for either kind of lam
EAGER_BATCHES = (64, 256, 1024, 4096, 8192)
OUT = Path(__file__).resolve().parent.parent / "results" / "growth.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 1 if a result was wrong or a process died."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES, metavar="B")
    parser.add_argument("--classes", nargs="+", type=int, default=CLASSES, metavar="C", help="at which B grows")
    parser.add_argument("--class-batches", nargs="+", type=int, default=CLASS_BATCHES, metavar="B", help="where C does")
    parser.add_argument("--many-classes", nargs="+", type=int, default=MANY_CLASSES, metavar="C")
    parser.add_argument("--eager-batches", nargs="+", type=int, default=EAGER_BATCHES, metavar="B")
    parser.add_argument("--threads", nargs="+", type=int, default=(1, 2))
    parser.add_argument("--seconds", type=float, default=1.0, help="per size (default 1); large ones take more")
    parser.add_argument("--out", type=Path, default=OUT, help="write JSON here, and a figure beside it")
    options = parser.parse_args(arguments)
    facts = {**machine(), "threads": max(options.threads), "operation": OPERATION}
    print("  ".join(f"{name} {value}" for name, value in facts.items()))

    sizes = {(b, c) for c in options.classes for b in options.batches}
    sizes |= {(b, c) for b in options.class_batches for c in options.many_classes if b * c <= MOST_NUMBERS}
    results = {_name(size): _points(size, options) for size in sorted(sizes)}
    eager = {
        _name(size): alone(eager_bytes, size) for size in ((b, MEMORY_CLASSES) for b in sorted(options.eager_batches))
    }
    kept = {name: value for name, value in vars(options).items() if name != "out"}
    body = {"machine": facts, "options": kept, "results": results, "eager": eager}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    print(f"\n{table(body)}")
    draw(body, options.out.with_suffix(".png"))
    return int(any(isinstance(result, str) for of_size in results.values() for result in of_size.values()))


def _name(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _points(size: tuple[int, int], options: argparse.Namespace) -> dict[str, Any]:
    try:
        found = alone(points, size, options.threads, options.seconds)
    except BrokenProcessPool:
        reason = "failed: the process died, as it does where memory ends"
        return {key(lam, threads): reason for lam in LAMS for threads in options.threads}
    print(".", end="", flush=True)
    return {name: point if isinstance(point, str) else point._asdict() for name, point in found.items()}


if __name__ == "__main__":
    raise SystemExit(main())
