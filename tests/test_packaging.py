"""The build, the libraries that it leaves, the loader and the report; of wheels see test_wheel.py."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import icm_fast
from icm_fast import __main__ as report
from icm_fast import _native, _selfcheck

ROOT = Path(__file__).resolve().parent.parent
NO_COMPILER = {"CXX": "/nonexistent/c++"}
NO_NVCC = {"CUDA_HOME": "/nonexistent"}

needs_compiler = pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler on PATH")


@pytest.fixture
def icm_build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "csrc"))
    import icm_build
    import icm_build.cuda
    import icm_build.objects

    return icm_build


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what an install needs."""
    for name in ("csrc", "icm_fast"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "lib"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def run_setup(tree: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("USE_CPP", "ICM_FAST_CUDA")}
    return subprocess.run(
        [sys.executable, "setup.py", "-q", *command],
        cwd=tree,
        env={**inherited, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def facts_of(tree: Path) -> dict[str, Any]:
    facts = json.loads((tree / "icm_fast/lib/build.json").read_text())
    assert isinstance(facts, dict)
    return facts


# Settings and targets


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ICM_FAST_CUDA": "yes"}, "ICM_FAST_CUDA: expected 0, 1 or auto, got 'yes'"),
        ({"ICM_FAST_CUDA": "1", "USE_CPP": "0"}, "contradicts USE_CPP=0"),
        ({"MAX_JOBS": "many"}, "MAX_JOBS: expected a positive integer, got 'many'"),
        ({"MAX_JOBS": "0"}, "MAX_JOBS: expected a positive integer, got '0'"),
    ],
)
def test_impossible_settings_are_refused(icm_build: ModuleType, variables: dict[str, str], message: str) -> None:
    with pytest.raises(icm_build.BuildError, match=message):
        icm_build.Settings.from_environment(variables)


def test_cuda_targets(icm_build: ModuleType) -> None:
    targets_of = icm_build.cuda.targets_of
    cuda_12 = "compute_75\ncompute_80\ncompute_90\n"
    assert targets_of("", cuda_12)[0] == ["sm_80", "sm_90", "compute_90"]
    assert targets_of("", cuda_12 + "compute_100\n")[0] == ["sm_80", "sm_90", "sm_100", "compute_100"]
    # compute_103 must not be taken for compute_10.
    assert targets_of("", cuda_12 + "compute_103\n")[0] == ["sm_80", "sm_90", "compute_90"]
    names, flags = targets_of("8.0;9.0a+PTX, Ada", cuda_12)
    assert names == ["sm_80", "sm_90a", "compute_90a", "sm_89", "compute_89"]
    assert flags[1] == "-gencode=arch=compute_90a,code=sm_90a"
    with pytest.raises(icm_build.BuildError, match=r"TORCH_CUDA_ARCH_LIST: .* got 'sm_80'"):
        targets_of("sm_80", cuda_12)


@needs_compiler
def test_only_what_changed_is_compiled(icm_build: ModuleType, tmp_path: Path) -> None:
    objects = icm_build.objects
    source, header = tmp_path / "a.cpp", tmp_path / "a.h"
    source.write_text('#include "a.h"\n')
    header.write_text("inline int one() { return 1; }\n")
    compiled: list[Path] = []

    def compile_with(*flags: str) -> int:
        before = len(compiled)
        unit = objects.Unit(source, tmp_path / "out" / "a.o", ("c++", "-c", *flags))
        objects.compile_units([unit], tmp_path, "salt", jobs=2)
        return len(compiled) - before

    original = objects.make

    def counting_make(command: list[str], output: Path, key: str) -> None:
        compiled.append(output)
        original(command, output, key)

    objects.make = counting_make
    try:
        assert [compile_with(), compile_with(), compile_with("-O2"), compile_with("-O2")] == [1, 0, 1, 0]
        header.write_text("inline int one() { return 2; }\n")
        assert [compile_with("-O2"), compile_with("-O2")] == [1, 0]
        source.write_text("int broken(\n")
        with pytest.raises(Exception, match=r"a\.cpp"):
            compile_with("-O2")
        with pytest.raises(Exception, match=r"a\.cpp"):  # the failure is not remembered as done
            compile_with("-O2")
    finally:
        objects.make = original


# What setup.py leaves


def test_without_a_compiler_the_build_succeeds_and_says_why(tree: Path) -> None:
    result = run_setup(tree, "build_ext", "--inplace", **NO_COMPILER)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("WARNING") == 1
    assert "/nonexistent/c++" in facts_of(tree)["cpu"]["reason"]
    assert [path.name for path in (tree / "icm_fast/lib").iterdir()] == ["build.json"]


def test_pure_python_removes_an_earlier_build(tree: Path) -> None:
    stale = tree / "icm_fast/lib/libicm_fast_cpu.so"
    stale.parent.mkdir()
    stale.touch()
    result = run_setup(tree, "build_ext", "--inplace", USE_CPP="0")
    assert result.returncode == 0, result.stderr
    assert not stale.exists()
    assert facts_of(tree)["cpu"] == {"built": False, "reason": "USE_CPP=0 asked for pure Python"}


def test_pure_python_wheel_is_for_every_platform(tree: Path) -> None:
    result = run_setup(tree, "bdist_wheel", USE_CPP="0")
    assert result.returncode == 0, result.stderr
    assert [path.name for path in (tree / "dist").iterdir()] == [f"icm_fast-{icm_fast.__version__}-py3-none-any.whl"]


def test_forced_cuda_without_nvcc_is_an_error(tree: Path) -> None:
    result = run_setup(tree, "build_ext", "--inplace", ICM_FAST_CUDA="1", **NO_NVCC, **NO_COMPILER)
    assert result.returncode != 0
    assert re.search("ERROR: ICM_FAST_CUDA=1, but .* nvcc not found", result.stderr)


@pytest.mark.skipif(not shutil.which("nm"), reason="no nm on PATH")
@pytest.mark.parametrize("instruction_set", ["portable", "avx2", "avx512"])
def test_kernels_of_one_instruction_set_cannot_replace_another(instruction_set: str) -> None:
    """The linker keeps one copy of a weak symbol (an inline function of the standard library, say), whichever
    instruction set it was compiled for: older processors would then meet instructions that they lack."""
    objects = sorted((ROOT / "build/native/cpu/kernels").glob(f"*.{instruction_set}.o"))
    if not objects:
        pytest.skip("nothing was built in this tree for this instruction set")
    listing = subprocess.run(
        ["nm", "--defined-only", "--format=posix", *objects], capture_output=True, text=True, check=True
    ).stdout
    own = f"{len(instruction_set)}{instruction_set}"  # the namespace, mangled
    weak = [line.split()[0] for line in listing.splitlines() if re.match(r"\S+ [WVu] ", line)]
    assert [name for name in weak if own not in name and not name.startswith("DW.ref.")] == []


# Loading


@pytest.fixture
def fresh_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str | None]:
    """Loads the CPU library from an empty folder, past the cache."""
    monkeypatch.setattr(_native, "_LIB_DIR", tmp_path)
    uncached: Callable[[str], str | None] = _native.load.__wrapped__
    return lambda: uncached("cpu")


def test_absent_library_has_a_reason(fresh_load: Callable[[], str | None], tmp_path: Path) -> None:
    assert "no record of a build" in (fresh_load() or "")
    record = tmp_path / "build.json"
    for text in ("{", "[]", '{"cpu": 1}'):
        record.write_text(text)
        assert "no record of a build" in (fresh_load() or "")
    record.write_text('{"cpu": {"built": false, "reason": "no C++ compiler found"}}')
    assert fresh_load() == "not built: no C++ compiler found"
    record.write_text('{"cpu": {"built": true}}')
    assert "was built but is missing" in (fresh_load() or "")


@pytest.mark.parametrize(("size_bytes", "reason"), [(0, "is empty"), (20, "is truncated"), (20_000, "is truncated")])
def test_truncated_library_has_a_reason(
    fresh_load: Callable[[], str | None], tmp_path: Path, size_bytes: int, reason: str
) -> None:
    """The loader itself would kill the process: it maps the file and then reads beyond its end."""
    built = _native.__file__.replace("_native.py", "lib/libicm_fast_cpu.so")
    if not Path(built).exists():
        pytest.skip("the CPU library is not built")
    (tmp_path / "libicm_fast_cpu.so").write_bytes(Path(built).read_bytes()[:size_bytes])
    assert reason in (fresh_load() or "")


def test_foreign_file_has_the_loaders_reason(
    fresh_load: Callable[[], str | None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "libicm_fast_cpu.so").write_bytes(b"not a library" * 100)
    assert "failed to load" in (fresh_load() or "")
    assert "pip install" in caplog.text


def test_import_loads_no_library() -> None:
    code = "import icm_fast, torch; assert not [p for p in torch.ops.loaded_libraries if 'icm_fast' in p]"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# The report


def test_report_is_json_and_its_self_check_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["versions"]["icm_fast"] == icm_fast.__version__
    assert content["backends"].keys() == icm_fast.backends().keys()
    available = [name for name, backend in content["backends"].items() if backend["available"]]
    assert {result["backend"] for result in content["self_check"]} == set(available)


def test_failed_self_check_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def halved(api: Any, backend: str | None, *rest: Any) -> _selfcheck.Outputs:
        outputs = _selfcheck._icm_loss(api, backend, *rest)
        return outputs if backend is None else tuple(output * 0.5 for output in outputs)

    def not_a_number(api: Any, backend: str | None, *rest: Any) -> _selfcheck.Outputs:
        loss, gradient = _selfcheck._icm_loss(api, backend, *rest)
        return (loss, gradient) if backend is None else (loss, gradient * float("nan"))

    for fault in (halved, not_a_number):
        monkeypatch.setattr(_selfcheck, "CASES", {"icm_loss": fault})
        assert report.main([]) == 1
        assert "FAILED" in capsys.readouterr().out
        assert report.main(["--json"]) == 1
        json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
