"""The CPU library: operators compiled once, kernels once per instruction set."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import CompileError, Unavailable
from .objects import compile_units, link
from .settings import LIBRARIES, STANDARD, WARNINGS, Job
from .toolchain import find_cxx, probe, run

X86_INSTRUCTION_SETS = {
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": "-mavx512f -mavx512dq -mavx512bw -mavx512vl -mavx2 -mfma -mf16c -mprefer-vector-width=512",
}

# Where a multiplication and an addition are fused is written in the kernels, so that no compiler changes their bits.
NO_CONTRACTION = "-ffp-contract=off"


def build_cpu(job: Job) -> tuple[Path, dict[str, Any]]:
    """The library and the facts about it."""
    cxx, version = find_cxx(job.settings.environ)
    operators = sorted((job.csrc / "cpu").glob("*.cpp"))
    kernels = sorted((job.csrc / "cpu" / "kernels").glob("*.cpp"))
    if not operators:
        raise Unavailable("this source tree has no csrc/cpu/*.cpp")
    base = (*job.settings.optimisation(), STANDARD, "-fPIC", "-fvisibility=hidden", *WARNINGS)
    user_flags = job.settings.flags("CXXFLAGS")
    sets = instruction_sets(cxx)
    have = tuple(f"-DICM_HAVE_{name.upper()}" for name in sets if name != "portable")
    include = ("-I", str(job.csrc))
    command = (*cxx, "-c", *base, *have, *include, *job.torch_flags(), *user_flags)
    units = [job.unit(source, command) for source in operators]
    for name, flags in sets.items():
        # No torch on the include path: kernels know no torch.
        command = (*cxx, "-c", *base, NO_CONTRACTION, f"-DICM_ISA={name}", *flags, *include, *user_flags)
        units += [job.unit(source, command, variant=name) for source in kernels]
    salt = f"{version}\n{job.torch_version}"
    try:
        compile_units(units, job.csrc, salt, job.settings.jobs)
    except CompileError:
        if problem := probe((*cxx, "-c", STANDARD), ".cpp"):
            raise Unavailable(f"{shlex.join(cxx)} cannot compile C++20: {problem}") from None
        raise
    # -z defs: a symbol that torch lacks, or that only a CUDA torch has, fails here and not when the library is loaded.
    elf = ("-Wl,-z,defs",) if sys.platform == "linux" else ()
    link_flags = (*elf, *job.link_flags(), *user_flags, *job.settings.flags("LDFLAGS"))
    library = link(job.objects / LIBRARIES["cpu"], units, cxx, link_flags, salt)
    facts = {
        "compiler": version,
        "flags": [*base, *have, *user_flags],
        "kernel_flags": [*base, NO_CONTRACTION, *user_flags],
        "instruction_sets": {name: list(flags) for name, flags in sets.items()},
    }
    return library, facts


def instruction_sets(cxx: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Name -> flags, of those that the compiler's target has and its version accepts."""
    sets: dict[str, tuple[str, ...]] = {"portable": ()}
    if run([*cxx, "-dumpmachine"]).stdout.startswith(("x86_64", "amd64")):
        for name, words in X86_INSTRUCTION_SETS.items():
            flags = tuple(words.split())
            if probe((*cxx, "-c", STANDARD, *flags), ".cpp") is None:
                sets[name] = flags
    return sets
