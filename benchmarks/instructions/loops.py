"""A static look at the AVX-512 kernels, which valgrind cannot run: what their innermost loops consist of.

A loop is what a backward jump closes; of a function that innermost one is shown which has most fused multiplications.
How often it runs, the listing does not say.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

_FUNCTION = re.compile(r"[0-9a-f]+ <(.*icm::avx512::(?:\(anonymous namespace\)::)?\w+<[^(]*\bfloat\b[^(]*>\(.*)>:$")
_INSTRUCTION = re.compile(r"\s+([0-9a-f]+):\s+(\S+)\s*(.*)$")
_SHORT = re.compile(r"avx512::(?:\(anonymous namespace\)::)?([^(]*)\((?:icm::)?(\w+(?: char)?)")
LIMIT_S = 60


class Instruction(NamedTuple):
    """One line of the listing."""

    address: int
    name: str
    operands: str


class Loop(NamedTuple):
    """An innermost loop, counted in instructions."""

    function: str
    instructions: int
    vector: int  # of them on registers of 512 bits
    fused: int  # of those, multiplications with addition
    exponentials: int  # vectors of 16: each shifts once into the exponent, by 23, or by 18 after the table (simd.h)


def loops(library: Path) -> list[Loop] | str:
    """Of every float kernel that has one with fused multiplications; or why there is no listing."""
    if shutil.which("objdump") is None:
        return "objdump is not installed"
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", "--section=.text", str(library)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if result.returncode != 0:
        return f"objdump failed: {result.stderr[-500:]}"
    found = (hottest(name, body) for name, body in functions(result.stdout))
    return sorted(loop for loop in found if loop is not None)


def functions(listing: str) -> Iterator[tuple[str, list[Instruction]]]:
    """Each AVX-512 float kernel of a listing: its short name, its instructions."""
    for block in listing.split("\n\n"):
        head, _, body = block.strip().partition("\n")
        if match := _FUNCTION.match(head):
            short = _SHORT.search(match[1])
            lines = filter(None, map(_INSTRUCTION.match, body.splitlines()))
            name = f"{short[1]}({short[2]})" if short else match[1]
            yield name, [Instruction(int(line[1], 16), line[2], line[3]) for line in lines]


def hottest(function: str, body: Sequence[Instruction]) -> Loop | None:
    """Of the innermost loops with fused multiplications, that with most exponentials, or else most such instructions.

    A loop without any, such as one that fetches lines ahead, does not count as inner.
    """
    spans = []
    for each in body:
        target = re.match(r"([0-9a-f]+)\b", each.operands) if each.name.startswith("j") else None
        if target and body[0].address <= int(target[1], 16) <= each.address:
            spans.append((int(target[1], 16), each.address))
    counted = {
        (first, last): _count(function, [each for each in body if first <= each.address <= last])
        for first, last in spans
    }
    fusing = {span: loop for span, loop in counted.items() if loop.fused}
    innermost = [loop for span, loop in fusing.items() if not any(_holds(span, other) for other in fusing)]
    return max(innermost, key=lambda loop: (loop.exponentials, loop.fused, -loop.instructions), default=None)


def _holds(outer: tuple[int, int], inner: tuple[int, int]) -> bool:
    return outer != inner and outer[0] <= inner[0] and inner[1] <= outer[1]


def _count(function: str, body: Sequence[Instruction]) -> Loop:
    vector = [each for each in body if "%zmm" in each.operands]
    fused = sum(bool(re.match(r"vfn?m(add|sub)", each.name)) for each in vector)
    exponentials = sum(each.name == "vpslld" and each.operands.startswith(("$0x17,", "$0x12,")) for each in vector)
    return Loop(function, len(body), len(vector), fused, exponentials)
