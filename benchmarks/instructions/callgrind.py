"""Runs the cases under valgrind and reads what callgrind wrote.

Counted are the functions of libicm_fast_cpu.so themselves, without what they call in other libraries: nothing of
Python, torch or the C library. Valgrind knows no AVX-512 and tells the library so, which then takes AVX2.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from icm_fast import _native

LIBRARY = "libicm_fast_cpu.so"
ROOT = Path(__file__).resolve().parent.parent.parent
SETS = {"avx2": "avx2", "portable": "default"}  # ours -> torch's name for it, in ATEN_CPU_CAPABILITY
LIMIT_S = 300
_MARKS = Path(__file__).with_name("marks.c")
_KERNEL = re.compile(r"\bicm::(portable|avx2|avx512)::")


class Count(NamedTuple):
    """Instructions in the kernels, and in what prepares, cuts and merges around them."""

    kernels: int
    operator: int


def missing() -> str | None:
    """Why nothing can be counted here."""
    if not (_native.build_info().get("cpu") or {}).get("built"):
        return "the CPU library is not built"
    lacking = [tool for tool in ("valgrind", "cc") if shutil.which(tool) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    found = subprocess.run(["cc", "-fsyntax-only", str(_MARKS)], capture_output=True, text=True, check=False)
    return f"valgrind's headers are not installed: {found.stderr.strip()}" if found.returncode else None


def conditions() -> dict[str, Any]:
    """What the counts depend on beside the sources."""
    info = _native.build_info()
    cpu = info["cpu"]
    return {
        "compiler": cpu["compiler"],
        "flags": cpu["kernel_flags"],
        "instruction_sets": {name: cpu["instruction_sets"].get(name) for name in SETS},
        "torch": torch.__version__.partition("+")[0],
        "built_with_torch": info["torch"].partition("+")[0],
    }


def counts(instruction_set: str) -> dict[str, Count]:
    """Part -> its count, with the kernels of that instruction set. Some 20 s.

    Raises:
        RuntimeError: valgrind failed, or other kernels ran than were asked for.
    """
    with tempfile.TemporaryDirectory() as folder:
        marks, out = Path(folder, "marks.so"), Path(folder, "out")
        _run(["cc", "-shared", "-fPIC", "-o", str(marks), str(_MARKS)], {})
        options = ("--tool=callgrind", "--instr-atstart=no", "--dump-line=no", f"--callgrind-out-file={out}")
        driver = (sys.executable, "-m", f"{__package__}.cases", str(marks))
        ran = _run(["valgrind", *options, *driver], {"ATEN_CPU_CAPABILITY": SETS[instruction_set]}).split()[-1]
        if ran != instruction_set:
            raise RuntimeError(f"expected the {instruction_set} kernels to run, got {ran}")
        texts = [path.read_text(encoding="utf-8") for path in Path(folder).glob("out.*")]
    # Names hold a size and "x" only, so that they come back as they were sent.
    return {name: split(self_counts(text)) for text in sorted(texts, key=_part) if (name := _mark(text))}


def self_counts(text: str) -> dict[str, int]:
    """Function of our library -> its own instructions, from one file in callgrind's format."""
    names: dict[tuple[str, str], str] = {}
    current = {"ob": "", "fn": ""}
    found: dict[str, int] = {}
    lines = iter(text.splitlines())
    for line in lines:
        if match := re.match(r"(c?)(ob|fn)=\((\d+)\)(?: (.*))?", line):
            of_callee, kind, number, name = match.groups()
            name = names.setdefault((kind, number), name)  # written out where it occurs first
            if not of_callee:
                current[kind] = name
        elif line.startswith("calls="):
            next(lines)  # what the callee took
        elif (match := re.match(r"[\d+*-]\S* (\d+)$", line)) and current["ob"].endswith(LIBRARY):
            found[current["fn"]] = found.get(current["fn"], 0) + int(match[1])
    return found


def split(functions: dict[str, int]) -> Count:
    """The kernels apart from the rest."""
    kernels = sum(count for name, count in functions.items() if _KERNEL.search(name))
    return Count(kernels, sum(functions.values()) - kernels)


def _mark(text: str) -> str:
    match = re.search(r"^desc: Trigger: Client Request: (.*)$", text, flags=re.MULTILINE)
    return match[1] if match else ""


def _part(text: str) -> int:
    match = re.search(r"^part: (\d+)$", text, flags=re.MULTILINE)
    return int(match[1]) if match else 0


def _run(command: list[str], environ: dict[str, str]) -> str:
    alone = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT), **environ}
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **alone}, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
    return result.stdout
