"""`python -m benchmarks.instructions`: counts, and compares with the record in the tree; 1 if they differ.

With --record every count is taken twice and becomes the new record if both are the same: to the instruction in the
kernels, and around them but for a thousandth.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import icm_fast

from . import record
from .callgrind import LIBRARY, SETS, Count, conditions, counts, missing
from .cases import parts
from .loops import Loop, loops


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, print, and compare or record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="instruction sets (default all)")
    parser.add_argument("--path", type=Path, default=record.PATH, help="of the record")
    options = parser.parse_args(arguments)
    if reason := missing():
        print(f"nothing can be counted: {reason}")
        return 1
    counted = {name: counts(name) for name in options.sets}
    print(table(counted))
    print(loop_table(loops(Path(icm_fast.__file__).parent / "lib" / LIBRARY)))
    if options.record:
        again = {name: counts(name) for name in options.sets}
        if lines := record.differences(record.kept(counted), again, record.NOISE):
            print("\n".join(["not recorded: a second run counted something else", *lines]))
            return 1
        record.write(options.path, conditions(), counted)
        print(f"recorded in {options.path}; a second run counted the same")
        return 0
    body = record.read(options.path)
    if reason := record.incomparable(body, conditions()):
        print(f"not compared: {reason}")
        return 1
    lines = record.differences(body["counts"], counted)
    print("\n".join([*lines, record.AGAIN]) if lines else f"all within {100 * record.MARGIN:g} % of the record")
    return bool(lines)


def table(counted: record.Counts) -> str:
    """Every part with its instructions; those of the kernels also for each element: of Z for icm_loss, of the logits or
    of the batch for the others.
    """
    elements = {name: count for name, count, _ in parts()}
    heads = "".join(f"{f'{name}: kernels':>20}{'an element':>12}{'around':>10}" for name in counted)
    lines = [f"{'':58}{heads}"]
    for part, count in elements.items():
        cells = "".join(_cells(of_set.get(part), count) for of_set in counted.values())
        lines.append(f"{part:58}{cells}")
    return "\n".join(lines)


def _cells(count: Count | None, elements: int) -> str:
    return f"{count.kernels:>20}{count.kernels / elements:>12.3f}{count.operator:>10}" if count else f"{'':42}"


def loop_table(found: list[Loop] | str) -> str:
    """The listing's side: what valgrind cannot run."""
    if isinstance(found, str):
        return f"\nno listing of the AVX-512 kernels: {found}"
    heads = ("instructions", "of 512 bits", "fused", "exponentials", "an exponential")
    lines = ["", f"{'innermost AVX-512 loops, counted in the listing':58}" + "".join(f"{head:>16}" for head in heads)]
    for loop in found:
        each = f"{loop.instructions / (16 * loop.exponentials):.2f}" if loop.exponentials else ""
        cells = (loop.instructions, loop.vector, loop.fused, loop.exponentials, each)
        lines.append(f"{loop.function:58}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
