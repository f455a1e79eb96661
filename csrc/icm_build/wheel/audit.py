"""Whether a compiled library runs wherever its wheel says: what it needs must be in torch 2.10 and in the system.

Torch's own symbols carry no versions, so those that its oldest supported release has are kept as a list in
torch-2.10-symbols.txt (`python -m icm_build.wheel symbols WHEEL` writes it). What the system must have follows from the
versions of its symbols, as PEP 600 and its policies define it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .elf import SharedLibrary

SYMBOLS_FILE = Path(__file__).with_name("torch-2.10-symbols.txt")

# Minor version of glibc -> the newest of each other family that a system of that age has, by the policies of
# manylinux. From 2.28, which torch's own wheels need; between two lines the later one holds.
POLICIES = {
    28: {"GLIBCXX": "3.4.24", "CXXABI": "1.3.11", "GCC": "7.0.0"},
    31: {"GLIBCXX": "3.4.28", "CXXABI": "1.3.12", "GCC": "7.0.0"},
    34: {"GLIBCXX": "3.4.29", "CXXABI": "1.3.13", "GCC": "7.0.0"},
    35: {"GLIBCXX": "3.4.30", "CXXABI": "1.3.13", "GCC": "12.0.0"},
    39: {"GLIBCXX": "3.4.33", "CXXABI": "1.3.15", "GCC": "14.0.0"},
}
FAMILIES = ("GLIBC", *POLICIES[28])

# Loaded with torch before any library of ours; no other library of torch is a part of its stable ABI.
TORCH = "libtorch_cpu.so"
SYSTEM = {
    *("libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "libdl.so.2", "libpthread.so.0", "librt.so.1"),
    *("ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"),
}
# The compiler's own, null where a program has no use for them.
OPTIONAL = {"__cxa_finalize", "__gmon_start__", "_ITM_registerTMCloneTable", "_ITM_deregisterTMCloneTable"}


class NoPlatform(ValueError):
    """No manylinux platform has what a library needs."""


def torch_symbols(path: Path = SYMBOLS_FILE) -> frozenset[str]:
    """The C functions that torch 2.10 exports."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if line and not line.startswith("#"))


def is_of_torch(name: str) -> bool:
    """Whether a symbol is one of torch's C functions, by its name."""
    return name.startswith(("torch_", "aoti_torch_"))


def problems(library: SharedLibrary, of_torch: frozenset[str]) -> list[str]:
    """Why the library would not load somewhere, or would disturb what else is loaded; none if it is fine."""
    found = [f"needs {name}, no part of torch's stable ABI or of a Linux system" for name in foreign(library)]
    for need in library.needed:
        if need.version:
            if number_of(need.version) is None:
                found.append(f"needs {need.name} of {need.version}, of which manylinux knows nothing")
        elif is_of_torch(need.name):
            if need.name not in of_torch:
                found.append(f"needs {need.name}, which torch 2.10 does not export")
        elif not (need.weak and need.name in OPTIONAL):
            found.append(f"needs {need.name}, which is no C function of torch")
    found += [f"offers {name}, which others would bind to" for name in sorted(library.exported) if is_of_cuda(name)]
    if library.search_path:
        found.append(f"looks for libraries in {library.search_path}, a path of the machine that built it")
    if library.executable_stack:
        found.append("asks for an executable stack, which newer systems refuse")
    return found


def foreign(library: SharedLibrary) -> list[str]:
    """The libraries that not everyone has."""
    return sorted(set(library.libraries) - SYSTEM - {TORCH})


def is_of_cuda(name: str) -> bool:
    """Whether a symbol is of the CUDA runtime: linked statically, it must stay inside."""
    return name.startswith(("cuda", "__cuda"))


def number_of(version: str) -> tuple[str, tuple[int, ...]] | None:
    """Family and number of "GLIBC_2.34"; None for what is none of the known families."""
    family, _, number = version.rpartition("_")
    if family not in FAMILIES or not number.replace(".", "").isdecimal():
        return None
    return family, as_numbers(number)


def as_numbers(version: str) -> tuple[int, ...]:
    """For comparisons: 3.4.9 is before 3.4.29."""
    return tuple(map(int, version.split(".")))


def newest(libraries: Iterable[SharedLibrary]) -> dict[str, tuple[int, ...]]:
    """Family -> the newest version of it that any of the libraries needs."""
    found: dict[str, tuple[int, ...]] = {}
    for library in libraries:
        for need in library.needed:
            if parsed := number_of(need.version):
                family, number = parsed
                found[family] = max(found.get(family, number), number)
    return found


def platform_tag(libraries: Iterable[SharedLibrary]) -> str:
    """The oldest platform that has what all of them need: "manylinux_2_34_x86_64".

    Raises:
        NoPlatform: there is none, or the libraries are for different processors.
    """
    libraries = list(libraries)
    machines = {library.machine for library in libraries}
    if len(machines) != 1:
        raise NoPlatform(f"expected libraries for one processor, got {sorted(machines)}")
    needs = newest(libraries)
    for minor, limits in POLICIES.items():
        has = {"GLIBC": (2, minor), **{family: as_numbers(limit) for family, limit in limits.items()}}
        if all(number <= has[family] for family, number in needs.items()):
            return f"manylinux_2_{minor}_{machines.pop()}"
    versions = ", ".join(f"{family} {'.'.join(map(str, number))}" for family, number in sorted(needs.items()))
    raise NoPlatform(f"the compiler or the system is too new for any platform known here: {versions}")
