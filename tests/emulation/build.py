"""Compiles csrc/cuda/*.cu for the CPU, with the emulation in this folder in CUDA's place. For tests only.

    python -m tests.emulation.build [--sanitize]

prints where the operator library is. Only what changed is compiled, as in the build of the package.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.append(str(ROOT / "csrc"))

from icm_build import exclusive  # noqa: E402
from icm_build.objects import Unit, compile_units, headers_digest, link  # noqa: E402
from icm_build.settings import STANDARD, WARNINGS, Job, Settings  # noqa: E402
from icm_build.toolchain import find_cxx, find_torch  # noqa: E402

RUNTIME = ("device_model.cpp", "fibers.cpp", "report.cpp", "scheduler.cpp")

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all")
# How to build -> flags. Sanitized with line tables and frame pointers, so that reports name functions and lines;
# portable switches fibers with ucontext, as processors do for which there is no assembly.
VARIANTS = {
    "plain": ("-O2",),
    "sanitized": ("-O1", "-g1", "-fno-omit-frame-pointer", *SANITIZERS),
    "portable": ("-O2", "-DICM_SIMT_UCONTEXT"),
}


def variant_from_environment() -> str:
    return "sanitized" if os.environ.get("ICM_SIMT_SANITIZE") == "1" else "plain"


def operators(variant: str = "plain") -> Path:
    """The library that registers the `cuda` overloads for tensors on the CPU.

    ICM_SIMT_SOURCES="mixup.cu icm_loss.cu" leaves the other files out; ICM_SIMT_ROOT is the tree of another csrc.
    """
    root = Path(os.environ.get("ICM_SIMT_ROOT") or ROOT)
    chosen = os.environ.get("ICM_SIMT_SOURCES", "").split()
    sources = [path for path in sorted((root / "csrc" / "cuda").glob("*.cu")) if not chosen or path.name in chosen]
    name = ".".join(["libicm_fast_emulated", *(path.stem for path in sources if chosen), "so"])
    return build(name, sources, variant, root, uses_torch=True)


def selftest(variant: str = "plain") -> Path:
    """The library of the emulation's own kernels."""
    return build("libselftest.so", [HERE / "selftest.cu"], variant, ROOT, uses_torch=False)


def build(name: str, sources: list[Path], variant: str, root: Path, *, uses_torch: bool) -> Path:
    """Compile and link `sources` with the emulation, in root/build/emulation/<variant>."""
    settings = Settings.from_environment({"MAX_JOBS": os.environ.get("MAX_JOBS", "")})
    torch_dir, torch_version = find_torch()
    job = Job(root, settings, torch_dir, torch_version)
    folder = root / "build" / "emulation" / variant
    cxx, version = find_cxx(os.environ)
    command = (
        *(*cxx, "-c", STANDARD, "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", *VARIANTS[variant], *fast_fma()),
        *(*WARNINGS, "-Wno-unknown-pragmas", "-Wno-unused-function"),
        *("-DICM_SIMT_EMULATION", "-I", str(HERE), "-I", str(job.csrc)),
        *(job.torch_flags() if uses_torch else ()),
        *("-x", "c++"),
    )
    units = [Unit(path, folder / f"{path.name}.o", command) for path in (*sources, *(HERE / file for file in RUNTIME))]
    salt = f"{version}\n{torch_version}\n{headers_digest(HERE)}"
    flags = (*(job.link_flags() if uses_torch else ()), "-ldl", *(SANITIZERS if variant == "sanitized" else ()))
    with exclusive(folder):
        compile_units(units, job.csrc, salt, settings.jobs)
        return link(folder / name, units, cxx, flags, salt)


def fast_fma() -> tuple[str, ...]:
    """A fused multiply-add as one instruction, where this processor has it; else it is a slow call."""
    info = Path("/proc/cpuinfo")
    words = info.read_text().split() if platform.machine() == "x86_64" and info.exists() else ()
    return ("-mavx2", "-mfma") if "fma" in words and "avx2" in words else ()


def sanitizer_environment() -> dict[str, str]:
    """Variables under which an ordinary Python can load a sanitized library."""
    cxx, _ = find_cxx(os.environ)
    # libstdc++ too: the sanitizer looks for what throws exceptions when it starts, and Python does not link it.
    names = ("libasan.so", "libstdc++.so")
    paths = [Path(subprocess.check_output([*cxx, f"-print-file-name={name}"], text=True).strip()) for name in names]
    if missing := [path.name for path in paths if not path.is_absolute()]:
        raise FileNotFoundError(f"{shlex.join(cxx)} has no {', '.join(missing)}")
    return {
        "LD_PRELOAD": ":".join(str(path.resolve()) for path in paths),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own, by the thousand
        "ICM_SIMT_SANITIZE": "1",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sanitize", action="store_true", help="with AddressSanitizer and UBSan")
    parser.add_argument("--environment", action="store_true", help="print what a process needs that loads that one")
    options = parser.parse_args()
    if options.environment:
        sys.stdout.write(" ".join(f"{name}={value}" for name, value in sanitizer_environment().items()) + "\n")
    else:
        sys.stdout.write(f"{operators('sanitized' if options.sanitize else 'plain')}\n")


if __name__ == "__main__":
    main()
