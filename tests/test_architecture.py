"""The house rules that a machine can check: who may import whom, what importing does, that the examples run."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, run_python
from peers import peer

import icm_fast
from benchmarks import readme
from icm_fast.operators import IMPLEMENTED

PACKAGE = ROOT / "icm_fast"

# Part of the package -> the parts that it may import. Data flows from the top of this table to the bottom.
MAY_IMPORT = {
    "integrations": {"integrations", "losses", "metrics", "mixing", "functional", "target", "_validate"},
    "metrics": {"functional", "target", "_validate"},
    "mixing": {"mixing", "functional", "target", "_validate"},
    "losses": {"losses", "functional", "target", "_validate"},
    "functional": {"functional", "operators", "reference", "target", "_backends", "_validate"},
    "_backends": {"operators", "triton", "_native"},
    "triton": {"triton", "operators"},
    "operators": {"operators"},
    "target": {"_validate"},
    "testing": {"testing", "reference"},
    "reference": {"reference"},
    "_native": set(),
    "_validate": set(),
}
# What else a part may need of the outside: the standard library and torch for all.
LIBRARIES = {"torch"}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports, its own package's included."""
    package = ["icm_fast", *path.relative_to(PACKAGE).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from . import icm_loss` names a module, `from .target import MixedTarget` a thing in one.
            found |= {f"{module}.{alias.name}" for alias in node.names} if module.startswith("icm_fast") else {module}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    if part in ("__init__", "__main__", "_selfcheck"):
        return
    for name in imports_of(path):
        if name.startswith("icm_fast"):
            imported = name.split(".")[1] if "." in name else "icm_fast"
            assert imported in MAY_IMPORT[part], f"{part} must not import {name}"
        elif part == "reference":
            top = name.split(".")[0]
            standard = {"__future__", "collections", "contextlib", "math", "typing"}
            assert top in LIBRARIES | standard, f"reference imports {name}"


def test_reference_runs_without_the_rest() -> None:
    run_python(
        "import sys, icm_fast.reference as reference, torch\n"
        "others = [name for name in sys.modules if name.startswith('icm_fast.') and 'reference' not in name]\n"
        "for name in others: del sys.modules[name]\n"
        "target = reference.TwoHot(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor(0.5))\n"
        "reference.icm_loss(torch.zeros(2, 3), target)\n"
    )


def test_importing_has_no_side_effects() -> None:
    printed = run_python(
        "import os, sys, logging, torch\n"
        "before = dict(os.environ); threads = torch.get_num_threads(); seed = torch.initial_seed()\n"
        "import icm_fast\n"
        "assert 'triton' not in sys.modules and 'numpy.testing' not in sys.modules\n"
        "assert not torch.cuda.is_initialized() and dict(os.environ) == before\n"
        "assert torch.get_num_threads() == threads and torch.initial_seed() == seed\n"
        "assert not any('libicm_fast' in line for line in open('/proc/self/maps'))\n"
        "assert logging.getLogger('icm_fast').handlers == []\n"
    )
    assert printed == ""


def test_registered_backends_are_tested_backends() -> None:
    """A backend with a kernel either works here or says why: `backends_of` skips nothing silently."""
    for operation, names in IMPLEMENTED.items():
        assert set(names) <= {"cpu", "triton", "cuda"} and "cpu" in names, operation
    status = icm_fast.backends()
    assert list(status) == ["reference", "cpu", "triton", "cuda"]
    assert status["reference"].available
    assert status["cpu"].available, f"the CPU library must be built where tests run: {status['cpu'].reason}"
    for name, (available, reason) in status.items():
        assert reason, name
        if name == "cuda" and not torch.cuda.is_available():
            assert not available


def test_public_names() -> None:
    assert all(hasattr(icm_fast, name) for name in icm_fast.__all__)
    assert all(hasattr(icm_fast.functional, name) for name in icm_fast.functional.__all__)
    # The reference holds the same functions under the same names.
    missing = {name for name in IMPLEMENTED if not hasattr(icm_fast.reference, name)}
    assert not missing


def modules() -> list[Any]:
    found = [module.name for module in pkgutil.walk_packages([str(PACKAGE)], "icm_fast.")]
    # Each integration needs the library of its name.
    return [
        pytest.param(name, marks=pytest.mark.long) if name.startswith("icm_fast.integrations.") else name
        for name in found
        if not name.endswith("__main__") and not name.startswith("icm_fast.integrations._")
    ]


@pytest.mark.parametrize("name", modules())
def test_docstring_examples(name: str) -> None:
    if name.startswith("icm_fast.triton."):
        pytest.importorskip("triton")  # absent outside Linux
    if name.startswith("icm_fast.integrations."):
        peer(name.rpartition(".")[2])
    names = {"torch": torch, "MixedTarget": icm_fast.MixedTarget}
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS, extraglobs=names)
    assert results.failed == 0


@pytest.mark.parametrize("name", icm_fast.functional.__all__)
def test_public_functions_have_an_example(name: str) -> None:
    text = getattr(icm_fast.functional, name).__doc__ or ""
    for section in ("Args:", "Returns:", "Raises:", "Example:"):
        assert section in text, f"{name} has no {section}"


def readme_snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(readme_snippets())))
def test_readme_snippets_run(number: int) -> None:
    # Each is run after the ones before it, as a reader would.
    code = "\n".join(readme_snippets()[: number + 1])
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def test_readme_names_only_what_exists() -> None:
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / path).exists(), f"README links to {path}"
    for command in re.findall(r"`make ([a-z-]+)`", text):
        assert re.search(rf"^{command}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), command


def test_readme_says_what_was_measured() -> None:
    assert readme.main(["--check"]) == 0


def test_files_are_short() -> None:
    sources = [path for folder in ("csrc", "icm_fast", "benchmarks", "tests") for path in (ROOT / folder).rglob("*")]
    long = {
        str(path.relative_to(ROOT)): lines
        for path in sources
        if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh") and (lines := len(path.read_text().splitlines())) > 320
    }
    assert not long
