"""What the wheels promise: libraries that need nothing but torch 2.10 and an old Linux, one version, a light import."""

from __future__ import annotations

import importlib
import re
import shutil
import statistics
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from helpers import ROOT, run_python

import icm_fast

LIB = ROOT / "icm_fast" / "lib"

needs_compiler = pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler on PATH")


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The parts of icm_build.wheel."""
    monkeypatch.syspath_prepend(str(ROOT / "csrc"))
    return SimpleNamespace(
        **{name: importlib.import_module(f"icm_build.wheel.{name}") for name in ("audit", "build", "elf", "__main__")}
    )


def built(name: str) -> Path:
    path = LIB / f"libicm_fast_{name}.so"
    if not path.exists():
        pytest.skip(f"the {name} library is not built")
    return path


@pytest.fixture
def link(tmp_path: Path) -> Callable[..., Path]:
    """Links a library of its own from C++ text; what it names need not exist."""

    def library(source: str, *flags: str, name: str = "libplanted.so") -> Path:
        path = tmp_path / name
        command = ["c++", "-shared", "-fPIC", "-x", "c++", "-", "-x", "none", *flags, "-o", str(path)]
        subprocess.run(command, input=source, text=True, check=True)
        return path

    return library


# What the libraries need


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_libraries_need_only_torch_2_10_and_the_system(tool: SimpleNamespace, name: str) -> None:
    library = tool.elf.read(built(name))
    assert tool.audit.problems(library, tool.audit.torch_symbols()) == []
    of_torch = {need.name for need in library.needed if tool.audit.is_of_torch(need.name)}
    assert {"torch_library_impl", "aoti_torch_get_data_ptr"} <= of_torch, "the audit saw what it is for"


def test_cuda_runtime_is_inside_the_library(tool: SimpleNamespace) -> None:
    library = tool.elf.read(built("cuda"))
    of_cuda = [name for name in library.local if tool.audit.is_of_cuda(name)]
    assert "cudaGetLastError" in of_cuda and len(of_cuda) > 100
    assert not any(tool.audit.is_of_cuda(name) for name in library.exported)
    assert not any("cuda" in name for name in library.libraries)


PLANTS = {
    "a function of a later torch": ("void torch_from_blob(); void f() { torch_from_blob(); }", "torch 2.10 does not"),
    "a function of a CUDA torch": (
        "void aoti_torch_get_current_cuda_stream(); void f() { aoti_torch_get_current_cuda_stream(); }",
        "torch 2.10 does not",
    ),
    "a C++ function of torch": ("namespace c10 { void g(); } void f() { c10::g(); }", "no C function of torch"),
    "Python": ("void Py_Initialize(); void f() { Py_Initialize(); }", "no C function of torch"),
    "another CUDA runtime": ("void cudaMalloc(); void f() { cudaMalloc(); }", "no C function of torch"),
    "a CUDA runtime for others": ("void cudaMalloc() {}", "offers cudaMalloc"),
}


@needs_compiler
@pytest.mark.parametrize("plant", PLANTS)
def test_audit_finds_what_is_planted(tool: SimpleNamespace, link: Callable[..., Path], plant: str) -> None:
    source, message = PLANTS[plant]
    # C names, but for the C++ function of torch.
    text = source if "namespace" in source else f'extern "C" {{ {source} }}'
    found = tool.audit.problems(tool.elf.read(link(text)), tool.audit.torch_symbols())
    assert len(found) == 1 and message in found[0]
    assert tool.audit.problems(tool.elf.read(link("void f() {}")), frozenset()) == []


@needs_compiler
def test_audit_finds_what_linking_can_spoil(tool: SimpleNamespace, link: Callable[..., Path]) -> None:
    other = link("void g() {}", "-Wl,-soname,libother.so.1", name="libother.so")
    spoilt = link("void g(); void f() { g(); }", str(other), "-Wl,-rpath,/home/someone/lib", "-Wl,-z,execstack")
    found = " ".join(tool.audit.problems(tool.elf.read(spoilt), frozenset()))
    for message in ("needs libother.so.1", "_Z1gv", "/home/someone/lib", "executable stack"):
        assert message in found


@needs_compiler
def test_audit_of_a_wheel_looks_into_it(tool: SimpleNamespace, link: Callable[..., Path], tmp_path: Path) -> None:
    library = link('extern "C" { void Py_Initialize(); void f() { Py_Initialize(); } }')
    wheel = tmp_path / "icm_fast-0-py3-none-manylinux_2_99_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(library, "icm_fast/lib/libicm_fast_cpu.so")
        archive.writestr("icm_fast/lib/build.json", '{"cpu": {"instruction_sets": {"portable": [], "avx2": []}}}')
    tag, found = tool.build.audit_wheel(wheel, ("cpu", "cuda"))
    messages = ["the cuda library is not in it", "needs Py_Initialize", f"manylinux_2_99_x86_64, its libraries {tag}"]
    messages += ["no kernels for avx512"] if tag.endswith("x86_64") else []
    assert len(found) == len(messages)
    assert all(any(message in problem for problem in found) for message in messages)


def test_symbols_of_torch_2_10_are_in_this_torch(tool: SimpleNamespace) -> None:
    """The list was not made up: later releases kept what it holds, and one that it lacks is newer."""
    library = Path(torch.__file__).parent / "lib" / tool.audit.TORCH
    if not library.exists():
        pytest.skip("this torch has no libtorch_cpu.so")
    listed, exported = tool.audit.torch_symbols(), tool.elf.read(library).exported
    assert len(listed - exported) < 0.02 * len(listed)
    if torch.__version__ >= "2.12":
        assert "torch_from_blob" in exported - listed


@pytest.mark.skipif(not shutil.which("readelf"), reason="no readelf on PATH")
@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_reader_agrees_with_readelf(tool: SimpleNamespace, name: str) -> None:
    path = built(name)
    listing = subprocess.run(["readelf", "--dyn-syms", "--wide", path], capture_output=True, text=True, check=True)
    rows = [line.split() for line in listing.stdout.splitlines() if re.match(r"\s*\d+: ", line)]
    rows = [row for row in rows if len(row) >= 8 and row[4] != "LOCAL"]
    library = tool.elf.read(path)
    theirs = {tuple(row[7].split("@")) for row in rows if row[6] == "UND"}
    assert {(need.name, need.version) if need.version else (need.name,) for need in library.needed} == theirs
    assert library.exported == {row[7].split("@")[0] for row in rows if row[6] != "UND"}


def test_damaged_file_is_no_library(tool: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "lib.so"
    content = built("cpu").read_bytes()
    for damaged in (b"", b"text" * 100, content[:20], content[:5000], content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(tool.elf.NotALibrary, match=r"lib\.so"):
            tool.elf.read(path)


def test_platform_is_the_oldest_that_has_everything(tool: SimpleNamespace) -> None:
    def needing(*versions: str, machine: str = "x86_64") -> object:
        needed = tuple(tool.elf.Needed("f", version, False) for version in versions)
        return tool.elf.SharedLibrary(machine, (), "", needed, frozenset(), frozenset(), False)

    tag = tool.audit.platform_tag
    assert tag([needing("GLIBC_2.2.5", "GLIBC_2.17")]) == "manylinux_2_28_x86_64"
    assert tag([needing("GLIBC_2.17", machine="aarch64")]) == "manylinux_2_28_aarch64"
    assert tag([needing("GLIBC_2.29")]) == "manylinux_2_31_x86_64"
    assert tag([needing("GLIBC_2.17"), needing("GLIBCXX_3.4.9", "GLIBCXX_3.4.29")]) == "manylinux_2_34_x86_64"
    assert tag([needing("CXXABI_1.3.14")]) == "manylinux_2_39_x86_64"
    with pytest.raises(tool.audit.NoPlatform, match=r"GLIBC 2\.99"):
        tag([needing("GLIBC_2.99")])
    with pytest.raises(tool.audit.NoPlatform, match="one processor"):
        tag([needing("GLIBC_2.17"), needing("GLIBC_2.17", machine="aarch64")])
    unknown = tool.audit.problems(needing("libcudart.so.13", "GLIBC_PRIVATE"), frozenset())
    assert len(unknown) == 2


@pytest.mark.parametrize("variable", ["CXXFLAGS", "NVCC_FLAGS", "DEBUG", "USE_CPP"])
def test_wheels_are_not_built_for_one_machine(tool: SimpleNamespace, tmp_path: Path, variable: str) -> None:
    build: ModuleType = tool.build
    with pytest.raises(build.BuildError, match=f"without {variable}; unset"):
        build.build_wheels(ROOT, tmp_path, {variable: "-march=native"})


def test_variants_of_a_machine(tool: SimpleNamespace, tmp_path: Path) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.1, V13.1.80'\n")
    nvcc.chmod(0o755)
    variants = tool.build.variants
    names = [(each.local_version, each.cuda) for each in variants({"CUDA_HOME": str(tmp_path)})]
    assert names == [("", "0"), ("+cu131", "1")]
    assert len(variants({"CUDA_HOME": str(tmp_path), "ICM_FAST_CUDA": "0"})) == 1
    assert len(variants({"CUDA_HOME": "/nonexistent"})) == 1
    with pytest.raises(tool.build.BuildError, match="nvcc not found"):
        variants({"CUDA_HOME": "/nonexistent", "ICM_FAST_CUDA": "1"})


# One version


def test_version_has_one_source() -> None:
    """icm_fast.__version__, which a build reads without importing torch; what must repeat it is compared here."""
    code = (
        "import runpy, sys\n"
        "sys.modules['torch'] = None\n"
        "sys.argv = ['setup.py', '-q', '--version']\n"
        "runpy.run_path('setup.py', run_name='__main__')\n"
    )
    assert run_python(code).split()[-1] == icm_fast.__version__
    assert not re.search(r"^version *= *\"", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert f"\nversion: {icm_fast.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {icm_fast.__version__}" in (ROOT / "CHANGELOG.md").read_text()


# A light import


def test_import_adds_less_than_50_ms_to_torch(tmp_path: Path) -> None:
    """The median of fresh processes; of processor time, so that what else a machine does counts for little."""
    code = "import time, torch\nstart = time.process_time()\nimport icm_fast\nprint(time.process_time() - start)\n"
    # With bytecode, as an installed package has it; the first run writes it.
    env = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    _, *times = [float(run_python(code, env=env)) for _ in range(5)]
    assert statistics.median(times) < 0.050, times


def test_import_loads_torch_and_nothing_else() -> None:
    """No triton, no numpy that torch did not load, no library that only some users have."""
    code = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import icm_fast\n"
        "packages = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(packages - sys.stdlib_module_names - {'icm_fast', 'torch'}))\n"
        "assert not any('libicm_fast' in line or 'libcuda' in line for line in open('/proc/self/maps'))\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    assert run_python(code).split() == []
