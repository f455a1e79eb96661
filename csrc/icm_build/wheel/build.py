"""Building the wheels that are given to others: one for CPUs, and where there is an nvcc one with the CUDA library too.

The second carries the toolkit's version as its local version (0.1.0+cu130), as torch's own do: the two have different
names, `pip list` tells them apart, and `icm-fast==0.1.0` is satisfied by either.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import FACTS_FILE, LIBRARIES, BuildError, Settings
from ..cpu import X86_INSTRUCTION_SETS
from ..errors import Unavailable
from ..toolchain import find_nvcc, run, say
from . import audit, elf

# They suit a build for one machine: -march=native, a debugger, no compiled library.
UNSUITABLE = ("CXXFLAGS", "LDFLAGS", "NVCC_FLAGS", "DEBUG", "USE_CPP")


@dataclass(frozen=True)
class Variant:
    """One wheel."""

    libraries: tuple[str, ...]
    local_version: str

    @property
    def cuda(self) -> str:
        """Of ICM_FAST_CUDA."""
        return "1" if "cuda" in self.libraries else "0"


def build_wheels(root: Path, out: Path, environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Build, audit and name the wheels; ICM_FAST_CUDA=0 leaves the CUDA one out, 1 demands it.

    Raises:
        BuildError: a variable that makes a build for one machine alone is set, a build failed, or the audit did.
    """
    if unsuitable := [name for name in UNSUITABLE if environ.get(name)]:
        raise BuildError(f"a wheel for others is built without {', '.join(unsuitable)}; unset what is set")
    out.mkdir(parents=True, exist_ok=True)
    return [build_wheel(root, out, variant, environ) for variant in variants(environ)]


def variants(environ: Mapping[str, str]) -> list[Variant]:
    """Those that this machine can build."""
    found = [Variant(("cpu",), "")]
    wanted = Settings.from_environment(environ).cuda
    if wanted == "0":
        return found
    try:
        _, version = find_nvcc(environ)
    except Unavailable as reason:
        if wanted == "1":
            raise BuildError(f"ICM_FAST_CUDA=1, but {reason}") from None
        say(f"no wheel with the CUDA library: {reason}")
        return found
    return [*found, Variant(("cpu", "cuda"), f"+cu{''.join(version.split('.')[:2])}")]


def build_wheel(root: Path, out: Path, variant: Variant, environ: Mapping[str, str]) -> Path:
    """One wheel in `out`."""
    with tempfile.TemporaryDirectory(prefix="icm_fast_wheel_") as folder:
        # All of setuptools' own files go there: the tree's may be those of an editable install. Objects are shared.
        command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", folder]
        command += ["--tag-build", variant.local_version] if variant.local_version else []
        command += ["build", "--build-base", f"{folder}/build"]
        command += ["bdist_wheel", "--bdist-dir", f"{folder}/bdist", "--dist-dir", folder]
        build = subprocess.run(
            command, cwd=root, env={**environ, "ICM_FAST_CUDA": variant.cuda, "PYTHONWARNINGS": "ignore"}, check=False
        )
        if build.returncode != 0:
            raise BuildError("the build of a wheel failed, for the reason above")
        (wheel,) = Path(folder).glob("*.whl")
        tag, found = audit_wheel(wheel, variant.libraries)
        if found:
            raise BuildError("the wheel would not run for others:\n  " + "\n  ".join(found))
        result = run([sys.executable, "-m", "wheel", "tags", "--platform-tag", tag, "--remove", str(wheel)])
        if result.returncode != 0:
            raise BuildError(f"the wheel's platform could not be set:\n{result.stdout}{result.stderr}")
        (wheel,) = Path(folder).glob("*.whl")
        return Path(shutil.move(wheel, out / wheel.name))


def audit_wheel(wheel: Path, libraries: Iterable[str] = ()) -> tuple[str, list[str]]:
    """The platform that a wheel runs on, and what is wrong with it; `libraries` must be in it."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
        lib = Path(folder, "icm_fast", "lib")
        facts = json.loads((lib / FACTS_FILE).read_text(encoding="utf-8"))
        found = [f"the {name} library is not in it" for name in libraries if not (lib / LIBRARIES[name]).exists()]
        read = {path.name: elf.read(path) for path in sorted(lib.glob("*.so"))}
    for name, library in read.items():
        found += [f"{name} {problem}" for problem in audit.problems(library, audit.torch_symbols())]
    if not read:
        return "any", found
    tag = audit.platform_tag(read.values())
    found += missing_instruction_sets(facts, tag)
    claimed = wheel.stem.rpartition("-")[2]
    if claimed.startswith("manylinux") and claimed != tag:
        found.append(f"its name says {claimed}, its libraries {tag}")
    return tag, found


def missing_instruction_sets(facts: Mapping[str, Any], tag: str) -> list[str]:
    """An old compiler leaves some out, which is right on the machine that builds and slow elsewhere."""
    if not tag.endswith("x86_64"):
        return []
    missing = sorted(X86_INSTRUCTION_SETS.keys() - facts["cpu"].get("instruction_sets", {}).keys())
    return [f"the compiler made no kernels for {', '.join(missing)}"] if missing else []
