"""Fresh environments, one for each pair of Python and torch, with the wheels in them one after the other.

An environment holds torch with what it depends on, and a wheel; some gigabytes, deleted after use. What could not be
tried is untested, with the reason; FAILED is kept for wheels that were tried.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .table import FAILED, NO_BUILD, PASSED, UNTESTED

CELL = Path(__file__).with_name("cell.py")
PIP = ("-I", "-m", "pip", "install", "-q", "--disable-pip-version-check")
INSTALL_TIMEOUT_S, CHECK_TIMEOUT_S = 1800, 600

Cell = dict[str, Any]
Say = Callable[[str], None]


class Untested(Exception):
    """Why a pair cannot be tried here, and how that is called."""

    def __init__(self, why: str, state: str = UNTESTED) -> None:
        super().__init__(why)
        self.why, self.state = why, state


def describe(wheels: Iterable[Path]) -> dict[str, dict[str, str]]:
    """Wheels by what they hold: "cpu", or "cuda" for those with both libraries.

    Raises:
        ValueError: two of a kind.
    """
    found: dict[str, dict[str, str]] = {}
    for wheel in wheels:
        kind = kind_of(wheel)
        with zipfile.ZipFile(wheel) as archive:
            (record,) = (name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
            digest = hashlib.sha256(archive.read(record)).hexdigest()
            torch = json.loads(archive.read("icm_fast/lib/build.json")).get("torch", "none")
        if kind in found:
            raise ValueError(f"expected one {kind} wheel, got {found[kind]['file']} and {wheel.name}")
        found[kind] = {"file": wheel.name, "sha256_of_RECORD": digest, "built_with_torch": torch}
    return dict(sorted(found.items()))


def kind_of(wheel: Path) -> str:
    """What a wheel holds."""
    with zipfile.ZipFile(wheel) as archive:
        return "cuda" if "icm_fast/lib/libicm_fast_cuda.so" in archive.namelist() else "cpu"


def kept(previous: Mapping[str, Any], wheels: Mapping[str, Any], pairs: Sequence[tuple[str, str]]) -> list[Cell]:
    """Outcomes of an earlier run that still hold: of the same wheels, in pairs that are not tried again."""
    same = {kind for kind in wheels if previous.get("wheels", {}).get(kind) == wheels[kind]}
    return [
        cell
        for cell in previous.get("cells", [])
        if cell["wheel"] in same and (cell["python"], cell["torch"]) not in pairs
    ]


def cell(python: str, torch: str, wheel: str, state: str, why: str = "", **facts: Any) -> Cell:
    """One outcome."""
    return {"python": python, "torch": torch, "wheel": wheel, "state": state, "why": why, **facts}


def try_pair(python: str, torch: str, wheels: Mapping[str, Path], say: Say) -> Iterator[Cell]:
    """The outcome of each wheel in one environment."""
    try:
        interpreter = find_python(python)
        with tempfile.TemporaryDirectory(prefix="icm_fast_cell_") as folder:
            inside = make_environment(interpreter, torch, Path(folder))
            for kind, wheel in wheels.items():
                say(f"Python {python}, torch {torch}: {kind} wheel")
                yield try_wheel(python, torch, kind, wheel, inside)
    except Untested as reason:
        for kind in wheels:
            yield cell(python, torch, kind, reason.state, reason.why)


def find_python(version: str) -> Path:
    """An interpreter of that version: this one, one on PATH, one of pyenv's."""
    if platform.python_version().startswith(f"{version}."):
        return Path(sys.executable)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    candidates = [shutil.which(f"python{version}"), *sorted(map(str, pyenv.glob(f"{version}.*/bin/python")))]
    for candidate in candidates:
        # A shim may stand for a version that is not chosen.
        if candidate and run([candidate, "-c", ""], Path.cwd()).returncode == 0:
            return Path(candidate)
    raise Untested(f"no Python {version} here")


def make_environment(python: Path, torch: str, folder: Path) -> Path:
    """The Python of a new environment in which torch works."""
    inside = folder / "env" / "bin" / "python"
    made = run([python, "-m", "venv", folder / "env"], folder)
    if made.returncode != 0:
        raise Untested(f"no environment: {last_line(made)}")
    # Neither a local version's mark nor the patch release is the point.
    installed = run([inside, *PIP, f"torch=={torch}.*"], folder, INSTALL_TIMEOUT_S)
    if "No matching distribution found for torch" in installed.stderr:
        raise Untested(f"torch {torch} has no build for it", NO_BUILD)
    if installed.returncode != 0:
        raise Untested(f"torch {torch} could not be installed: {last_line(installed)}")
    imported = run([inside, "-I", "-c", "import torch"], folder)
    if imported.returncode != 0:
        raise Untested(f"torch {torch} itself does not work here: {last_line(imported)}")
    return inside


def try_wheel(python: str, torch: str, kind: str, wheel: Path, inside: Path) -> Cell:
    """Install it in the place of another and run every check."""
    folder = inside.parents[2]
    installed = run([inside, *PIP, "--no-deps", "--force-reinstall", wheel.resolve()], folder, INSTALL_TIMEOUT_S)
    if installed.returncode != 0:
        return cell(python, torch, kind, FAILED, f"pip: {last_line(installed)}")
    return check(python, torch, kind, inside, folder)


def check(python: str, torch: str, kind: str, inside: Path, folder: Path) -> Cell:
    """Run the checks on what is installed."""
    checked = run([inside, "-I", CELL], folder, CHECK_TIMEOUT_S)
    try:
        report = json.loads(checked.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return cell(python, torch, kind, FAILED, last_line(checked))
    failed = [f"{name}: {outcome}" for name, outcome in report["checks"].items() if outcome != "ok"]
    when = datetime.date.today().isoformat()
    state = FAILED if failed or checked.returncode != 0 else PASSED
    return cell(python, torch, kind, state, "; ".join(failed), **report, when=when)


def run(command: Sequence[str | Path], folder: Path, timeout_s: int = 120) -> subprocess.CompletedProcess[str]:
    """Run outside the source tree; a command that takes too long has failed."""
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    line = [str(word) for word in command]
    try:
        return subprocess.run(
            line, cwd=folder, env=environ, capture_output=True, text=True, check=False, timeout=timeout_s
        )
    except OSError as error:
        return subprocess.CompletedProcess(line, 127, "", str(error))
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(line, 124, "", f"took more than {timeout_s} s")


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    """Where tools say what went wrong."""
    lines = (result.stderr.strip() or result.stdout.strip()).splitlines()
    return lines[-1] if lines else f"exit status {result.returncode}"
