"""What the environment asks for, and what every part of a build needs to know."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import BuildError
from .objects import Unit

LIBRARIES = {"cpu": "libicm_fast_cpu.so", "cuda": "libicm_fast_cuda.so"}

STANDARD = "-std=c++20"

# torch 2.10, the first whose stable ABI holds what the operators use. A library built so loads in every later torch.
TORCH_TARGET_VERSION = "0x020a000000000000"

# Off: notes on how vectors wider than the enabled instruction set would be passed (psabi; ours only cross inlined
# calls), GCC 12's false alarms inside its own AVX-512 headers (maybe-uninitialized), and clang's on names of GCC's.
WARNINGS = ("-Wall", "-Wextra", "-Wno-unknown-warning-option", "-Wno-psabi", "-Wno-maybe-uninitialized")


@dataclass(frozen=True)
class Settings:
    """The build variables, checked."""

    use_cpp: bool
    cuda: str  # "0", "1" or "auto"
    debug: bool
    jobs: int
    environ: Mapping[str, str]

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings:
        """Read the variables; an impossible value or combination is an error."""
        cuda = environ.get("ICM_FAST_CUDA") or "auto"
        if cuda not in ("0", "1", "auto"):
            raise BuildError(f"ICM_FAST_CUDA: expected 0, 1 or auto, got {cuda!r}")
        use_cpp = environ.get("USE_CPP") != "0"
        if cuda == "1" and not use_cpp:
            raise BuildError("ICM_FAST_CUDA=1 contradicts USE_CPP=0 (pure Python)")
        jobs = environ.get("MAX_JOBS") or str(available_cores())
        if not jobs.isdecimal() or int(jobs) < 1:
            raise BuildError(f"MAX_JOBS: expected a positive integer, got {jobs!r}")
        return cls(use_cpp, cuda, environ.get("DEBUG") == "1", int(jobs), environ)

    def flags(self, variable: str) -> tuple[str, ...]:
        """The words of a variable that holds compiler flags."""
        try:
            return tuple(shlex.split(self.environ.get(variable, "")))
        except ValueError as error:
            raise BuildError(f"{variable}: {error} in {self.environ[variable]!r}") from None

    def optimisation(self) -> tuple[str, ...]:
        """Flags for speed, or for a debugger under DEBUG=1."""
        return ("-O0", "-g") if self.debug else ("-O3",)


@dataclass(frozen=True)
class Job:
    """One build: where things are, and what both libraries share."""

    root: Path
    settings: Settings
    torch: Path
    torch_version: str

    @property
    def csrc(self) -> Path:
        return self.root / "csrc"

    @property
    def objects(self) -> Path:
        return self.root / "build" / "native"

    def torch_flags(self) -> tuple[str, ...]:
        """Compiler flags of a file that includes torch's stable headers."""
        return (f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", "-isystem", str(self.torch / "include"))

    def link_flags(self) -> tuple[str, ...]:
        """libtorch_cpu must be named, because torch's libraries are not in the global symbol scope.

        No rpath: whoever loads a library of ours has imported torch, and so loaded libtorch_cpu, before.
        """
        return (f"-L{self.torch / 'lib'}", "-ltorch_cpu")

    def unit(self, source: Path, command: Sequence[str], *, variant: str = "") -> Unit:
        """A source, its object, and the command that makes one of the other."""
        name = source.relative_to(self.csrc)
        suffix = f"{source.suffix}.{variant}.o" if variant else f"{source.suffix}.o"
        return Unit(source, self.objects / name.with_suffix(suffix), tuple(command))


def available_cores() -> int:
    """Cores that this process may use: under taskset or in a container, fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
