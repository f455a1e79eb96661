"""`python -m icm_build.wheel build | audit | symbols`: see --help; csrc must be on PYTHONPATH."""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from .. import BuildError
from . import audit, elf
from .build import audit_wheel, build_wheels

ROOT = Path(__file__).resolve().parents[3]


def main(arguments: Sequence[str] | None = None) -> int:
    """1 if a build failed or an audit found something."""
    parser = argparse.ArgumentParser(prog="python -m icm_build.wheel", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build, audit and name the wheels that this machine can build")
    build.add_argument("--out", type=Path, default=ROOT / "dist", metavar="FOLDER")
    audited = commands.add_parser("audit", help="say what wheels and libraries need, and whether everyone has it")
    audited.add_argument("files", nargs="+", type=Path, metavar="FILE")
    symbols = commands.add_parser("symbols", help=f"write {audit.SYMBOLS_FILE.name}")
    symbols.add_argument("wheel", type=Path, help="torch 2.10's, as pip download --no-deps torch==2.10.0 gets it")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "build":
            for wheel in build_wheels(ROOT, chosen.out):
                print(wheel)
            return 0
        if chosen.command == "symbols":
            write_symbols(chosen.wheel)
            return 0
        return max([audit_file(file) for file in chosen.files])
    except (BuildError, elf.NotALibrary, audit.NoPlatform) as error:
        print(f"icm_fast: ERROR: {error}", file=sys.stderr)
        return 1


def audit_file(file: Path) -> int:
    """Print what a wheel or a library needs; 1 if something is wrong."""
    if file.suffix == ".whl":
        tag, found = audit_wheel(file)
    else:
        library = elf.read(file)
        tag, found = audit.platform_tag([library]), audit.problems(library, audit.torch_symbols())
        of_torch = [need for need in library.needed if audit.is_of_torch(need.name)]
        newest = audit.newest([library])
        versions = [f"{family} {'.'.join(map(str, number))}" for family, number in sorted(newest.items())]
        print(f"{file.name}: {len(of_torch)} functions of torch; {', '.join(versions)}")
    print(f"{file.name}: {tag}; {'nothing wrong' if not found else ''}".rstrip("; "))
    for problem in found:
        print(f"{file.name}: {problem}")
    return 1 if found else 0


def write_symbols(wheel: Path) -> None:
    """List the C functions that torch's CPU library exports, with where they were read."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        exported = elf.read(Path(archive.extract(f"torch/lib/{audit.TORCH}", folder))).exported
    names = sorted(name for name in exported if audit.is_of_torch(name))
    head = [
        f"# What {audit.TORCH} of torch 2.10 exports under the names of its C interface.",
        "# Written by: python -m icm_build.wheel symbols WHEEL",
        f"# WHEEL: {wheel.name}",
        f"# sha256: {hashlib.sha256(wheel.read_bytes()).hexdigest()}",
    ]
    audit.SYMBOLS_FILE.write_text("\n".join([*head, *names]) + "\n", encoding="utf-8")
    print(f"{audit.SYMBOLS_FILE}: {len(names)} names")


if __name__ == "__main__":
    sys.exit(main())
