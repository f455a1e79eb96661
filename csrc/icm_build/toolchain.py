"""Finding torch, the C++ compiler and nvcc, and asking them what they can do."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import BuildError, Unavailable

OLDEST_TORCH = (2, 10)
DEFAULT_CUDA_HOME = Path("/usr/local/cuda")
PROBES = {
    ".cpp": "#include <concepts>\nstatic_assert(std::integral<int>);\n",
    ".cu": "#include <concepts>\nstatic_assert(std::integral<int>);\n__global__ void probe() {}\n",
}


def say(message: str) -> None:
    """To the person who builds."""
    print(f"icm_fast: {message}", file=sys.stderr, flush=True)


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a tool and keep what it says; one that cannot be started returns 127, as in a shell."""
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def probe(command: Sequence[str], suffix: str) -> str | None:
    """None if `command` compiles a C++20 file of this kind, else its complaint in one line."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, f"probe{suffix}")
        source.write_text(PROBES[suffix], encoding="utf-8")
        result = run([*command, str(source), "-o", str(Path(folder, "probe.o"))])
    if result.returncode == 0:
        return None
    lines = (result.stderr or result.stdout).strip().splitlines()
    return next((line for line in lines if "error" in line), lines[0] if lines else f"exit status {result.returncode}")


def find_torch() -> tuple[Path, str]:
    """Folder and version of the torch to build against, without the seconds that importing it takes."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError(
            "torch is needed to build icm_fast and is not installed here. Install torch >= 2.10 first and pass "
            "--no-build-isolation to pip (USE_CPP=0 builds without it)."
        )
    folder = Path(spec.submodule_search_locations[0])
    match = re.search(r"^__version__ = '((\d+)\.(\d+)[^']*)'", (folder / "version.py").read_text(), re.MULTILINE)
    if match is None:
        raise BuildError(f"no version in {folder / 'version.py'}: is torch installed completely?")
    if (int(match[2]), int(match[3])) < OLDEST_TORCH:
        raise BuildError(f"icm_fast needs torch >= 2.10 to build, got {match[1]} (USE_CPP=0 builds without it)")
    return folder, match[1]


def find_cxx(environ: Mapping[str, str]) -> tuple[tuple[str, ...], str]:
    """The C++ compiler's command (CXX may name a launcher too, such as ccache) and its version line."""
    if sys.platform == "win32":
        raise Unavailable("the compiled libraries are for Linux and macOS, not for Windows")
    if chosen := tuple(shlex.split(environ.get("CXX", ""))):
        return chosen, first_line(chosen)
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name, path=environ.get("PATH")):
            return (name,), first_line((name,))
    raise Unavailable("no C++ compiler found (looked for c++, g++ and clang++)")


def first_line(command: Sequence[str]) -> str:
    """First line of what a compiler says of its version."""
    result = run([*command, "--version"])
    if result.returncode != 0 or not result.stdout:
        raise Unavailable(f"{shlex.join(command)} --version failed: {result.stderr.strip()}")
    return result.stdout.splitlines()[0].strip()


def find_nvcc(environ: Mapping[str, str]) -> tuple[str, str]:
    """Path and version of nvcc: in CUDA_HOME and nowhere else where that is set, else in CUDA_PATH, on PATH, or in
    the usual place."""
    if home := environ.get("CUDA_HOME"):
        candidates = [str(Path(home, "bin", "nvcc"))]
    else:
        hint = [str(Path(environ["CUDA_PATH"], "bin", "nvcc"))] if environ.get("CUDA_PATH") else []
        candidates = [*hint, "nvcc", str(DEFAULT_CUDA_HOME / "bin" / "nvcc")]
    for candidate in candidates:
        if nvcc := shutil.which(candidate, path=environ.get("PATH")):
            text = run([nvcc, "--version"]).stdout
            match = re.search(r"release [\d.]+, V([\d.]+)", text)
            if match is None:
                raise Unavailable(f"{nvcc} --version names no release")
            return nvcc, match[1]
    looked = f"in CUDA_HOME={home}" if home else f"in CUDA_PATH, on PATH, in {DEFAULT_CUDA_HOME}"
    raise Unavailable(f"nvcc not found ({looked})")
