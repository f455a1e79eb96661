"""Compiles csrc/ into the two operator libraries, calling the C++ compiler and nvcc directly.

setuptools cannot compile one file under several instruction sets, and torch.utils.cpp_extension finds no nvcc
under a CPU-only torch. Nothing here knows setuptools or imports torch; setup.py calls `build`.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .cpu import build_cpu
from .cuda import build_cuda
from .errors import BuildError, CompileError, Unavailable
from .objects import copy_if_changed
from .settings import LIBRARIES, Job, Settings
from .toolchain import find_torch, say

__all__ = ["FACTS_FILE", "LIBRARIES", "BuildError", "Settings", "build"]

FACTS_FILE = "build.json"

Builder = Callable[[Job], tuple[Path, dict[str, Any]]]
BUILDERS: dict[str, Builder] = {"cpu": build_cpu, "cuda": build_cuda}


def build(root: Path, out_dir: Path, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Build what this machine can, into `out_dir`; return the facts that build.json there holds too."""
    settings = Settings.from_environment(environ)
    out_dir.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {"debug": settings.debug}
    if settings.use_cpp:
        torch_dir, facts["torch"] = find_torch()
        job = Job(root, settings, torch_dir, facts["torch"])
        with exclusive(job.objects):
            for name, builder in BUILDERS.items():
                facts[name] = build_library(name, builder, job, out_dir)
    else:
        for name in BUILDERS:
            facts[name] = absent(name, "USE_CPP=0 asked for pure Python", out_dir)
    report(facts, settings)
    (out_dir / FACTS_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return facts


def build_library(name: str, builder: Builder, job: Job, out_dir: Path) -> dict[str, Any]:
    """The facts of one library; the library itself in `out_dir`, or none there."""
    try:
        built, facts = builder(job)
    except Unavailable as reason:
        return absent(name, str(reason), out_dir)
    except CompileError as error:
        skip = {"cpu": "USE_CPP=0 installs without compiled libraries", "cuda": "ICM_FAST_CUDA=0 builds without it"}
        raise BuildError(f"the {name} library: {error}\n{skip[name]}.") from None
    copy_if_changed(built, out_dir / LIBRARIES[name])
    return {"built": True, **facts}


def absent(name: str, reason: str, out_dir: Path) -> dict[str, Any]:
    """The facts of a library that is not built; one from an earlier build must not survive beside them."""
    (out_dir / LIBRARIES[name]).unlink(missing_ok=True)
    return {"built": False, "reason": reason}


def report(facts: Mapping[str, Any], settings: Settings) -> None:
    """One warning without a CPU library, else one line on a CUDA library that was skipped."""
    cpu, cuda = facts["cpu"], facts["cuda"]
    if not cpu["built"] and settings.use_cpp:
        say(
            f"WARNING: the CPU library is not built: {cpu['reason']}. The package works on its reference backend, "
            "which is slow. For the fast one, install a C++20 compiler (g++ 10, clang++ 10 or newer), then icm_fast "
            "again."
        )
    elif not cuda["built"] and settings.use_cpp and settings.cuda == "auto":
        say(f"the CUDA library is not built: {cuda['reason']}")


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Two builds at once in one tree (make and pip, say) would write the same objects."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        with contextlib.suppress(ImportError):  # Windows has no fcntl, and builds nothing
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
