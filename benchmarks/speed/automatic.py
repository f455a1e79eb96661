"""`python -m benchmarks.speed.automatic`: what `auto` takes on the CPU, against what else it could take.

The step of every operation on each backend that has it, interleaved, over batch sizes and types. From it come the lines
of the table in icm_fast/_backends.py for the CPU; the lines for a GPU would come from `make gpu-bench`, which races all
its backends.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from icm_fast import _backends

from .contenders import Step, step
from .measure import Measurement, bound, measure, relative
from .race import alone
from .report import machine, time, write
from .truths import exact, function
from .workloads import OPERATIONS, Spec, Workload, make

BACKENDS = ("reference", "cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
ROWS = (1, 16, 64, 96, 128, 256, 384, 512)
# What follows the rows: classes; features and classes; features of a view; channels, height and width.
REST = {"linear_icm_loss": (64, 100), "contrastive_loss": (128,), "mixup": (3, 32, 32)}
OUT = Path(__file__).resolve().parent.parent / "results" / "automatic.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 1 if a result was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.automatic", description=__doc__)
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=OPERATIONS)
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS, metavar="B")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=tuple(DTYPES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.4, help="per size and type (default 0.4)")
    parser.add_argument("--out", type=Path, default=OUT, help="write JSON here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print("  ".join(f"{key} {value}" for key, value in machine().items()))

    results: dict[str, dict[str, Measurement | str]] = {}
    for operation in options.operations:
        for dtype in options.dtypes:
            results |= alone(_measured, operation, dtype, tuple(options.rows), options.threads, options.seconds)
            print(".", end="", flush=True)
    write(options.out, results, {"seconds": options.seconds})
    print(table(json.loads(options.out.read_text(encoding="utf-8"))))
    return 0 if all(isinstance(one, Measurement) for each in results.values() for one in each.values()) else 1


def _measured(
    operation: str, dtype: str, rows: Sequence[int], threads: int, seconds: float
) -> dict[str, dict[str, Measurement | str]]:
    torch.set_num_threads(threads)
    sizes: list[tuple[int, ...]] = [(each, *REST.get(operation, (100,))) for each in rows]
    found = {}
    for size in sizes:
        workload = make(Spec(operation, size, dtype=dtype))
        gate = relative(exact(workload), bound(DTYPES[dtype]))
        found[f"{workload.name} {dtype}"] = measure(on_backends(workload), gate, seconds)
    return found


def on_backends(workload: Workload) -> dict[str, Step]:
    """The same step on each."""
    if workload.operation == "mixup":
        arguments = [workload.inputs[name] for name in ("x", "index", "lam")]
        return {name: lambda name=name: function("mixup")(*arguments, backend=name) for name in BACKENDS}  # type: ignore[misc]
    target = [workload.inputs["target"]] if "target" in workload.inputs else []
    loss = function(workload.operation)
    return {name: step(loss, workload.leaves, *target, backend=name) for name in BACKENDS}


def table(body: dict[str, Any]) -> str:
    """A line for each operation and type: the reference's time over the kernels' by rows, those that `auto` takes the
    reference for in brackets."""
    lines = [f"\n  {'reference over cpu, time':>32} " + " ".join(f"{f'B={each}':>8}" for each in _rows(body))]
    times: dict[str, list[str]] = {}
    for name, results in body["results"].items():
        operation, rows, dtype = parse(name)
        times.setdefault(f"{operation} {dtype}", []).append(f"{_ratio(results, _taken(operation, rows, dtype)):>8}")
    lines += [f"  {name:>32} {' '.join(cells)}" for name, cells in times.items()]
    return "\n".join([*lines, "", *losses(body)])


def _ratio(results: dict[str, Any], taken: str) -> str:
    if not all(isinstance(results[name], dict) for name in BACKENDS):
        return "wrong"
    ratio = f"{results['reference']['median_us'] / results['cpu']['median_us']:.2f}x"
    return f"[{ratio}]" if taken == "reference" else ratio


def losses(body: dict[str, Any], margin: float = 1.1) -> list[str]:
    """Where what `auto` takes is slower than the other by more than a margin."""
    found = []
    for name, results in body["results"].items():
        operation, rows, dtype = parse(name)
        if not all(isinstance(results[each], dict) for each in BACKENDS):
            continue
        taken = _taken(operation, rows, dtype)
        best = min(BACKENDS, key=lambda each: float(results[each]["median_us"]))
        slower = results[taken]["median_us"] / results[best]["median_us"]
        if slower > margin:
            found.append(f"{name}: {taken} {time(results[taken]['median_us'])}, {slower:.2f}x the time of {best}")
    return found or [f"auto takes nothing that is slower than the other by more than a factor of {margin}"]


def parse(name: str) -> tuple[str, int, str]:
    """Operation, rows and type of a result."""
    workload, _, dtype = name.partition(" ")
    operation, _, size = workload.partition("-")
    return operation, int(size.partition("x")[0]), dtype


def _taken(operation: str, rows: int, dtype: str) -> str:
    return _backends.choose(operation, None, "cpu", rows, DTYPES[dtype])


def _rows(body: dict[str, Any]) -> list[int]:
    return sorted({parse(name)[1] for name in body["results"]})


if __name__ == "__main__":
    raise SystemExit(main())
