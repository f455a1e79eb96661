"""The CUDA library. It needs nvcc, but neither a GPU nor a torch with CUDA."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .errors import BuildError, CompileError, Unavailable
from .objects import SOURCE_SUFFIXES, compile_units, link
from .settings import LIBRARIES, STANDARD, WARNINGS, Job
from .toolchain import find_cxx, find_nvcc, probe, run

DEFAULT_ARCHS = ("80", "90", "100")
GENERATIONS = {  # names that torch accepts in TORCH_CUDA_ARCH_LIST
    "Turing": "7.5+PTX",
    "Ampere": "8.0;8.6+PTX",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell": "10.0;10.3;12.0;12.1+PTX",
}


def build_cuda(job: Job) -> tuple[Path, dict[str, Any]]:
    """The library and the facts about it."""
    try:
        return compile_cuda(job)
    except Unavailable as reason:
        if job.settings.cuda == "1":
            raise BuildError(f"ICM_FAST_CUDA=1, but the CUDA library cannot be built: {reason}") from None
        raise


def compile_cuda(job: Job) -> tuple[Path, dict[str, Any]]:
    """As build_cuda, with Unavailable for every reason."""
    environ = job.settings.environ
    if job.settings.cuda == "0":
        raise Unavailable("ICM_FAST_CUDA=0")
    nvcc, nvcc_version = find_nvcc(environ)
    sources = sorted(path for path in (job.csrc / "cuda").glob("*") if path.suffix in SOURCE_SUFFIXES)
    if not sources:
        raise Unavailable("this source tree has no csrc/cuda/*.cu")
    host, host_version = find_cxx(environ)
    # Only where the user chose the host compiler, and without its launcher, which nvcc does not take.
    ccbin = ("-ccbin", host[-1]) if environ.get("CXX") else ()
    targets, gencode = targets_of(environ.get("TORCH_CUDA_ARCH_LIST", ""), run([nvcc, "--list-gpu-arch"]).stdout)
    base = (
        *job.settings.optimisation(),
        *(("-G",) if job.settings.debug else ()),
        STANDARD,
        "--expt-relaxed-constexpr",
        *gencode,
        "-Xcompiler",
        ",".join(("-fPIC", "-fvisibility=hidden", *WARNINGS)),
    )
    user_flags = job.settings.flags("NVCC_FLAGS")
    command = (nvcc, "-c", *ccbin, *base, "-I", str(job.csrc), *job.torch_flags(), *user_flags)
    units = [job.unit(source, command) for source in sources]
    salt = f"{nvcc_version}\n{host_version}\n{job.torch_version}"
    try:
        compile_units(units, job.csrc, salt, job.settings.jobs)
    except CompileError:
        if problem := probe((nvcc, "-c", *ccbin, STANDARD), ".cu"):
            raise Unavailable(f"{nvcc} cannot compile C++20 here: {problem}") from None
        raise
    # -z defs as for the CPU library. exclude-libs hides the static CUDA runtime: its calls would otherwise bind to
    # the runtime, of another version, that a torch with CUDA puts into the global scope.
    elf = ("-Xlinker", "-z,defs", "-Xlinker", "--exclude-libs=ALL")
    link_flags = ("-cudart", "static", *elf, *job.link_flags())
    library = link(job.objects / LIBRARIES["cuda"], units, (nvcc, *ccbin), link_flags, salt)
    facts = {
        "compiler": f"nvcc {nvcc_version}",
        "host_compiler": host_version,
        "flags": [*base, *user_flags],
        "archs": targets,
    }
    return library, facts


def targets_of(arch_list: str, listed: str) -> tuple[list[str], list[str]]:
    """Names (sm_80: machine code, compute_90: PTX) and nvcc's flags for them.

    `arch_list` is TORCH_CUDA_ARCH_LIST ("8.0 9.0a+PTX", "Hopper"); empty: those of DEFAULT_ARCHS that nvcc has by its
    --list-gpu-arch (`listed`), with PTX of the newest.
    """
    targets: list[str] = []
    if arch_list.strip():
        for name, versions in GENERATIONS.items():
            arch_list = re.sub(rf"\b{name}\b", versions, arch_list)
        for item in re.split(r"[;,\s]+", arch_list.strip(";, \t\n")):
            match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", item)
            if match is None:
                raise BuildError(
                    'TORCH_CUDA_ARCH_LIST: expected items such as "8.0", "9.0a", "9.0+PTX" or one of '
                    f"{', '.join(GENERATIONS)}, got {item!r}"
                )
            arch = "".join(match.group(1, 2, 3))
            targets += [f"sm_{arch}", f"compute_{arch}"] if match[4] else [f"sm_{arch}"]
    else:
        known = [arch for arch in DEFAULT_ARCHS if f"compute_{arch}" in listed.split()]
        if not known:
            raise Unavailable(f"nvcc has none of {', '.join(f'sm_{arch}' for arch in DEFAULT_ARCHS)}")
        targets = [*(f"sm_{arch}" for arch in known), f"compute_{known[-1]}"]
    targets = list(dict.fromkeys(targets))
    gencode = [f"-gencode=arch=compute_{target.partition('_')[2]},code={target}" for target in targets]
    return targets, gencode
