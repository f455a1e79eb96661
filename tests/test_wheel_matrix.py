"""Wheels as others get them: built, installed beside torch alone, checked there, and used in a typed program."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT

import icm_fast
from benchmarks.wheel import __main__ as command
from benchmarks.wheel import matrix, table

SITE_PACKAGES = Path(torch.__file__).parent.parent

# A user's program. What a type checker must say of each line stands behind it; of lines without, nothing.
PROGRAM = """\
import torch
import icm_fast as icm
from icm_fast import functional as F_icm

mix = icm.Mixup(mixup_alpha=0.2)
images, _ = mix(torch.rand(4, 3, 8, 8), torch.arange(4))
target = icm.MixedTarget(torch.arange(4), torch.arange(4).flip(0), torch.tensor(0.7))
logits = torch.zeros(4, 10, requires_grad=True)
reveal_type(images)  # Revealed type is "torch._tensor.Tensor"
reveal_type(target.lam)  # Revealed type is "torch._tensor.Tensor"
reveal_type(icm.ICMLoss()(logits, target))  # Revealed type is "torch._tensor.Tensor"
reveal_type(F_icm.icm_loss(logits, target))  # Revealed type is "torch._tensor.Tensor"
reveal_type(icm.backends()["cpu"].available)  # Revealed type is "bool"
icm.ICMLoss(axis="rows")  # Argument "axis" to "ICMLoss" has incompatible type
F_icm.mixup_cross_entropy(logits, (1, 2, 0.7))  # Argument 2 to "mixup_cross_entropy" has incompatible type
icm.Mixup(alpha=0.2)  # Unexpected keyword argument "alpha"
"""


def outcome(wheel: str, python: str, torch: str, state: str, why: str = "") -> dict[str, Any]:
    return matrix.cell(python, torch, wheel, state, why)


# What is kept and printed


def test_table_says_what_nobody_tried() -> None:
    cells = [
        outcome("cpu", "3.11", "2.13", table.PASSED),
        outcome("cuda", "3.11", "2.13", table.PASSED),
        outcome("cpu", "3.12", "2.10", table.PASSED),
        outcome("cuda", "3.12", "2.10", table.FAILED, "loss: AssertionError"),
        outcome("cpu", "3.13", "2.15", table.PASSED),
        outcome("cpu", "3.14", "2.15", table.FAILED, "pip: no"),
    ]
    results = {"when": "today", "wheels": {"cpu": {}, "cuda": {}}, "cells": cells}
    head, _, *lines = table.markdown(results).splitlines()
    assert head.startswith("Both wheels") and "today, without a GPU" in head
    rows = {line.split("|")[1].strip(): line for line in lines}
    assert rows["Python 3.11"].split("|")[2:-1] == [" untested "] * 3 + [" passed "] + [" untested "] * 2
    assert rows["Python 3.12"].split("|")[2] == " FAILED "
    assert "passed" not in rows["Python 3.13"], "one wheel alone is not enough"
    assert "FAILED" in rows["Python 3.14"], "but to fail it is"
    assert "Python 3.12, torch 2.10, cuda wheel: FAILED: loss: AssertionError" in table.text(results)
    assert table.text(results).count("untested") == 1 + len(table.PYTHONS) * len(table.TORCHES) - 3


def test_outcomes_of_other_wheels_are_forgotten() -> None:
    wheels = {"cpu": {"sha256_of_RECORD": "a"}}
    cells = [outcome("cpu", "3.11", torch, table.PASSED) for torch in ("2.10", "2.11")]
    previous = {"wheels": wheels, "cells": cells}
    assert matrix.kept(previous, wheels, [("3.11", "2.11")]) == cells[:1]
    assert matrix.kept(previous, {"cpu": {"sha256_of_RECORD": "b"}}, []) == []
    assert matrix.kept({}, wheels, []) == []


def test_file_is_in_the_order_of_the_table(tmp_path: Path) -> None:
    pairs = [("3.9", "2.13"), ("3.10", "2.9"), ("3.10", "2.10")]
    cells = [outcome("cpu", *pair, table.PASSED) for pair in reversed(pairs)]
    command.write(tmp_path / "wheel.json", {"cpu": {}}, cells)
    assert [(cell["python"], cell["torch"]) for cell in command.read(tmp_path / "wheel.json")["cells"]] == pairs
    assert command.read(tmp_path / "none.json") == {}


def test_what_cannot_be_had_is_untested(tmp_path: Path) -> None:
    (result,) = matrix.try_pair("3.99", "2.13", {"cpu": tmp_path / "none.whl"}, lambda line: None)
    assert (result["state"], result["why"]) == (table.UNTESTED, "no Python 3.99 here")
    python = matrix.find_python(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert python == Path(sys.executable)


@pytest.mark.parametrize("text", ["3.12", "3:2.11", "3.12:torch", "3.12:2.11.0"])
def test_pairs_are_understood_or_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.as_pair("3.12:2.11") == ("3.12", "2.11")
    with pytest.raises(SystemExit):
        command.main(["x.whl", "--cells", text])
    assert "expected PYTHON:TORCH such as 3.12:2.11" in capsys.readouterr().err


# Built and installed


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of this tree, from the objects that its build has left; what belongs to an installation stays as it is."""
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.syspath_prepend(str(ROOT / "csrc"))
        build = importlib.import_module("icm_build.wheel.build")
        environ = {name: value for name, value in os.environ.items() if name not in build.UNSUITABLE}
        made = build.build_wheels(ROOT, tmp_path_factory.mktemp("dist"), environ)
    return {matrix.kind_of(wheel): wheel for wheel in made}


@pytest.fixture
def environment(tmp_path: Path) -> Callable[[Path], Path]:
    """Installs a wheel in a new environment that has nothing else but this torch and what lies beside it."""
    inside = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    (own,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (own / "torch.pth").write_text(f"{SITE_PACKAGES}\n")

    def install(wheel: Path) -> Path:
        with zipfile.ZipFile(wheel) as archive:  # all that pip does with a wheel of packages alone
            archive.extractall(own)
        return inside

    return install


@pytest.mark.long
def test_wheels_serve_every_python_and_say_what_is_in_them(wheels: dict[str, Path]) -> None:
    version = re.escape(icm_fast.__version__)
    for kind, wheel in wheels.items():
        local = r"\+cu\d+" if kind == "cuda" else ""
        assert re.fullmatch(rf"icm_fast-{version}{local}-py3-none-manylinux_2_\d+_\w+\.whl", wheel.name)
        archive = zipfile.ZipFile(wheel)
        names = set(archive.namelist())
        assert {"icm_fast/lib/build.json", "icm_fast/lib/libicm_fast_cpu.so", "icm_fast/py.typed"} <= names
        assert ("icm_fast/lib/libicm_fast_cuda.so" in names) == (kind == "cuda")
        assert {name.split("/")[0].split("-")[0] for name in names} == {"icm_fast"}
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("/METADATA"))
        assert re.search(rf"^Version: {version}{local}$", metadata, flags=re.MULTILINE)
        assert "Requires-Python: >=3.10\n" in metadata and "Requires-Dist: torch>=2.10\n" in metadata


@pytest.mark.long
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_installed_wheel_works(
    wheels: dict[str, Path], environment: Callable[[Path], Path], tmp_path: Path, kind: str
) -> None:
    if kind not in wheels:
        pytest.skip("no nvcc here, and so no such wheel")
    result = matrix.check("3", "2", kind, environment(wheels[kind]), tmp_path)
    assert result["state"] == table.PASSED, result
    assert result["checks"].keys() >= {"self-check", "loss", "mixing", "compile", "CUDA library"}


@pytest.mark.long
def test_broken_wheel_fails(wheels: dict[str, Path], environment: Callable[[Path], Path], tmp_path: Path) -> None:
    """What the checks are worth: without its library the package would still work, on its reference backend."""
    inside = environment(wheels["cpu"])
    (library,) = (tmp_path / "env").rglob("libicm_fast_cpu.so")
    library.write_bytes(library.read_bytes()[:4096])
    result = matrix.check("3", "2", "cpu", inside, tmp_path)
    assert result["state"] == table.FAILED
    assert "self-check" in result["why"] and "loss" in result["why"]


@pytest.mark.long
def test_types_reach_a_users_program(
    wheels: dict[str, Path], environment: Callable[[Path], Path], tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    options = ["--strict", "--no-error-summary", f"--cache-dir={tmp_path / 'cache'}"]
    where = [f"--python-executable={environment(wheels['cpu'])}"]
    mypy = [sys.executable, "-m", "mypy", *options, *where, str(program)]
    said = subprocess.run(mypy, cwd=tmp_path, capture_output=True, text=True, check=False).stdout.splitlines()
    for number, line in enumerate(PROGRAM.splitlines(), 1):
        here = [text for text in said if text.startswith(f"program.py:{number}: ")]
        wanted = line.partition("  # ")[2]
        assert any(wanted in text for text in here) if wanted else not here, "\n".join([line, *said])
