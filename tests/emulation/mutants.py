"""Takes one barrier after another out of a copy of the kernels, and reports which of them no test misses.

    python -m tests.emulation.mutants icm_loss.cu tests/test_icm_loss.py tests/test_icm_loss_guard.py -k cuda

A barrier that no test misses is not needed, or not tested: see which. Each costs a compilation and a run of the tests.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .build import ROOT

# A barrier, and what it leaves behind: nothing, or the thread's own condition.
BARRIERS = {
    re.compile(r"\b(sync_block|sync_warp|\w*Group::sync)\(\);"): ";",
    re.compile(r"\bany_in_block\(([^()]+)\)"): r"(\1)",
}
LAYER = ("device.h", "runtime.h")  # defines them


def included(path: Path) -> set[Path]:
    """A source and the headers of this backend that it needs."""
    found = {path}
    for name in re.findall(r'^#include "([\w/.]+\.h)"', path.read_text(), re.MULTILINE):
        header = (path.parent / name).resolve()
        if "cuda" in header.parts and header.name not in LAYER and header.exists():
            found |= included(header)
    return found


def mutants(source: Path) -> Iterator[tuple[Path, int, str]]:
    """File, line number and new line of each."""
    for path in sorted(included(source)):
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            for pattern, rest in BARRIERS.items():
                code = line.partition("//")[0]
                if pattern.search(code):
                    yield path, number, pattern.sub(rest, code, count=1)


def fails(tree: Path, source: str, tests: list[str]) -> str:
    """The first failure of the tests with the kernels of a tree; "" when they pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "tests.emulation.plugin"]
    environment = {"OMP_NUM_THREADS": "1", "ICM_SIMT_ROOT": str(tree), "ICM_SIMT_SOURCES": source}
    result = subprocess.run(
        [*command, "-m", "not long", *tests],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode == 0:
        return ""
    lines = (result.stdout + result.stderr).splitlines()
    named = [line for line in lines if line.startswith(("FAILED", "ERROR", "Fatal"))]
    return (named or lines or ["killed"])[-1]


def main() -> None:
    source, *tests = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        shutil.copytree(ROOT / "csrc", tree / "csrc")
        if failure := fails(tree, source, tests):
            raise SystemExit(f"the tests must pass as the kernels are: {failure}")
        for path, number, line in list(mutants(tree / "csrc" / "cuda" / source)):
            original = path.read_text()
            lines = original.splitlines()
            place = f"{path.name}:{number} {lines[number - 1].strip()}"
            lines[number - 1] = line
            path.write_text("\n".join(lines) + "\n")
            sys.stdout.write(f"{place}: {fails(tree, source, tests) or 'NOT MISSED'}\n")
            sys.stdout.flush()
            path.write_text(original)


if __name__ == "__main__":
    main()
