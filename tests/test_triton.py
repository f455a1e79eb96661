"""The Triton backend without a GPU: its place among the backends, and its kernels run by Triton's interpreter.

The tests of the operations run on every backend that works; under TRITON_INTERPRET=1 that includes this one, on CPU
tensors. The interpreter must be chosen before Triton is imported, so they run in a process of their own. What the
interpreter does not show: a missing barrier, memory out of bounds, the arithmetic of a GPU, time.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, run_python

import icm_fast
from icm_fast import _backends, operators

needs_triton = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="Triton is for Linux")
INTERPRETED = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")}

# Its place among the backends


def test_what_auto_takes_on_a_gpu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def choose(works: set[str]) -> str:
        monkeypatch.setattr(_backends, "_lacks", lambda _, name: None if name in works else f"no {name} today")
        for cached in (_backends._warn_once, _backends._inform_once):
            cached.cache_clear()
        caplog.clear()
        return _backends._choose.__wrapped__("icm_loss", None, "cuda", -1)

    caplog.set_level(logging.INFO, "icm_fast")
    assert choose({"cuda", "triton"}) == "cuda"
    assert "have not been run on a GPU" in caplog.text
    assert choose({"triton"}) == "triton"
    assert "no cuda today" in caplog.text
    assert choose(set()) == "reference"
    assert "no cuda today; triton: no triton today" in caplog.text and "O(B*B) memory" in caplog.text


def test_a_build_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library may lack operations: the overload is there, its kernel is not."""
    if _backends.has_kernel("icm_loss", "cuda"):
        pytest.skip("the CUDA library is loaded here")
    monkeypatch.setattr(_backends, "_unavailable", lambda name: None)
    with pytest.raises(RuntimeError, match=r"backend='cuda' .* this build has no kernel for it. Available: reference"):
        _backends._choose.__wrapped__("icm_loss", "cuda", "cuda", -1)


def test_no_gpu_is_a_reason() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    available, reason = icm_fast.backends()["triton"]
    assert not available and ("no GPU here" in reason or "not installed" in reason)
    with pytest.raises(RuntimeError, match="backend='triton' was requested but is not available"):
        icm_fast.functional.icm_loss(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64), backend="triton")


@needs_triton
def test_every_operator_has_a_kernel() -> None:
    for operation in operators.IMPLEMENTED:
        if "triton" in operators.IMPLEMENTED[operation] and operation not in operators.COMPOSED:
            module = importlib.import_module(f"icm_fast.triton.{operation}")
            assert set(module.OPERATORS) == set(operators.OPERATORS[operation])


@needs_triton
def test_report_of_an_interpreted_backend() -> None:
    run_python(
        "import torch, icm_fast\n"
        "available, reason = icm_fast.backends()['triton']\n"
        "assert available and 'interpreted' in reason, reason\n"
        "target = icm_fast.MixedTarget(torch.tensor([0]), torch.tensor([1]), torch.tensor(0.5))\n"
        "assert icm_fast._backends.choose('icm_loss', None, 'cpu') == 'cpu'\n"
        "assert icm_fast.functional.icm_loss(torch.zeros(1, 2), target, backend='triton') == 0\n",
        env=INTERPRETED,
    )


# Its kernels, interpreted


def run_tests(*arguments: str) -> set[str]:
    """The tests of the operations on this backend, in a process of their own; the files of which some passed."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "triton_interpreter", *arguments],
        cwd=ROOT,
        env={**os.environ, **INTERPRETED},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr
    summary = result.stdout.strip().splitlines()[-1]
    assert "skipped" not in summary, summary
    return set(re.findall(r"^(\S+\.py)::.* PASSED", result.stdout, re.MULTILINE))


# File -> what of it runs in `make test`; all of it runs in `make check`.
FILES = {
    "tests/test_icm_loss.py": "short and float32 or known_values",
    "tests/test_icm_loss_operator.py": "rectangles and (normal or masked) or bad_values and large",
    "tests/test_icm_loss_guard.py": "single_axis or maxima or lowest",
    "tests/test_score_operators.py": "float32 and (normal or masked or nan) and sums or no_rows or refused",
    "tests/test_contrastive_loss.py": "random and dtype0 or every_regime and normal",
    "tests/test_linear_icm_loss.py": "random and dtype0 and 61",
    "tests/test_linear_icm_loss_use.py": "autocast",
    "tests/test_mixup_operator.py": "bad_values",
    "tests/test_mixup.py": "float32 and not uint8 and not boxes and not large",
    "tests/test_mixup_cross_entropy_operator.py": "bad_values and float32",
    "tests/test_mixup_cross_entropy.py": "float32 and normal",
    "tests/test_am_mixup_loss_operator.py": "bad_values and float32",
    "tests/test_am_mixup_loss.py": "float32 and normal",
}
# Not a derivative of every element by differences, nor sizes of which one takes a minute: the compiled backends have
# those. Not the errors: among them is that this backend is not available, which here it is.
MEANT = "triton and not gradcheck and not test_groups and not test_errors and not backend_that"


@needs_triton
def test_interpreted() -> None:
    for choice in sorted(set(FILES.values())):
        files = [file for file, own in FILES.items() if own == choice]
        assert run_tests(*files, "-m", "not long", "-k", f"{MEANT} and ({choice})") == set(files)


@needs_triton
@pytest.mark.long
@pytest.mark.parametrize("file", FILES)
def test_all_interpreted(file: str) -> None:
    assert run_tests(file, "-m", "not long", "-k", MEANT) == {file}


@needs_triton
@pytest.mark.long
def test_with_the_tiles_of_a_gpu() -> None:
    choice = "triton and short and float32 and (normal or masked or range_200)"
    assert run_tests("tests/test_icm_loss.py", "--shipped-tiles", "-m", "not long", "-k", choice)
