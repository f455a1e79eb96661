"""Compiling and linking, only what changed.

An object carries a key beside it: a digest of its command, its source, every header of csrc, and the compiler's and
torch's versions. Contents instead of times, because a checkout or a copy of the tree makes times lie.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import shlex
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .errors import CompileError
from .toolchain import run, say

SOURCE_SUFFIXES = (".cpp", ".cu")
HEADER_SUFFIXES = (".h", ".hpp", ".cuh", ".inc")


@dataclass(frozen=True)
class Unit:
    """One compiler call."""

    source: Path
    object: Path
    command: tuple[str, ...]  # without source and output


def compile_units(units: Sequence[Unit], csrc: Path, salt: str, jobs: int) -> None:
    """Bring every object up to date, `jobs` at a time; `salt` names what else the objects depend on."""
    salt += headers_digest(csrc)
    keys = {unit: digest(salt, *unit.command, unit.source.read_bytes()) for unit in units}
    stale = [unit for unit in units if not unit.object.exists() or read_key(unit.object) != keys[unit]]
    if not stale:
        return
    say(f"compiling {len(stale)} of {len(units)} objects, {min(jobs, len(stale))} at a time")
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(compile_unit, unit, keys[unit]) for unit in stale]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def compile_unit(unit: Unit, key: str) -> None:
    """One object and its key."""
    unit.object.parent.mkdir(parents=True, exist_ok=True)
    make((*unit.command, str(unit.source)), unit.object, key)


def link(library: Path, units: Sequence[Unit], linker: Sequence[str], flags: Sequence[str], salt: str) -> Path:
    """Link the objects of `units`, unless `library` holds just these already."""
    # Objects before the flags: a linker takes from -l only what it has seen a need for.
    line = (*linker, "-shared", *(str(unit.object) for unit in units), *flags)
    key = digest(salt, *line, *(read_key(unit.object) for unit in units))
    if not library.exists() or read_key(library) != key:
        say(f"linking {library.name}")
        make(line, library, key)
    return library


def make(command: Sequence[str], output: Path, key: str) -> None:
    """Run a command that writes `output`, which appears complete or not at all."""
    partial = output.with_name(f"partial.{output.name}")
    line = [*command, "-o", str(partial)]
    result = run(line)
    if result.returncode != 0:
        partial.unlink(missing_ok=True)
        raise CompileError(f"this command failed:\n{shlex.join(line)}\n{result.stdout}{result.stderr}")
    if result.stderr.strip():
        say(f"{output.name}:\n{result.stderr.rstrip()}")
    os.replace(partial, output)
    key_file(output).write_text(key, encoding="utf-8")


def copy_if_changed(source: Path, destination: Path) -> None:
    """Copy by replacement: a running program keeps the library that it has mapped."""
    if destination.exists() and filecmp.cmp(source, destination, shallow=False):
        return
    partial = destination.with_name(f"partial.{destination.name}")
    shutil.copy2(source, partial)
    os.replace(partial, destination)


def headers_digest(csrc: Path) -> str:
    """Digest of the names and contents of all headers below csrc."""
    headers = sorted(path for path in csrc.rglob("*") if path.suffix in HEADER_SUFFIXES)
    return digest(*(part for path in headers for part in (str(path.relative_to(csrc)), path.read_bytes())))


def digest(*parts: str | bytes) -> str:
    """Of the parts and of where one ends and the next begins."""
    whole = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        whole.update(len(content).to_bytes(8, "little") + content)
    return whole.hexdigest()


def key_file(output: Path) -> Path:
    return output.with_name(f"{output.name}.key")


def read_key(output: Path) -> str:
    """The key of an output, empty when it has none."""
    try:
        return key_file(output).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
