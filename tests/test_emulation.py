"""The emulation of CUDA in tests/emulation: that it computes what kernels say, that it reports planted mistakes, and
the ordinary tests of the operators with backend="cuda" under it, each time in a process of its own."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
from emulation import build, selftest
from helpers import ROOT, run_python
from torch import Tensor

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("c++"), reason="the emulation needs Linux and a C++ compiler"
)

SEEDS = 8
SUMS = {
    "row_sums": selftest.ROW_SUMS,
    "column_sums_on_chip": selftest.COLUMN_SUMS,
    "column_sums_in_grid": selftest.COLUMN_SUMS,
}
# What a planted mistake is called in the report.
FAULTS = {
    ("row_sums", "divergent barrier"): r"divergence: threads of a block .* of 64 at .*selftest\.cu:\d+ \(\w+\)",
    ("row_sums", "early exit"): r"(?s)deadlock.* 1 threads ended, such as thread 7 .* waiting for a warp at .*warp_sum",
    ("row_sums", "split warp"): r"(?s)deadlock.*32 threads waiting for a block.*32 threads waiting for a warp",
    ("column_sums_on_chip", "bad rank"): r"at\(\) of block 4 in a cluster of 4 at .*selftest\.cu",
    ("column_sums_on_chip", "bad pointer"): r"at\(\) of a pointer outside the block's shared memory at .*selftest\.cu",
}
# File of csrc/cuda -> its tests.
TESTS = {
    "icm_loss": ("test_icm_loss.py", "test_icm_loss_guard.py", "test_icm_loss_operator.py", "test_autograd.py"),
    "mixup": ("test_mixup.py", "test_mixup_operator.py"),
    "mixup_cross_entropy": (
        "test_mixup_cross_entropy.py",
        "test_mixup_cross_entropy_operator.py",
        "test_divisions.py",
    ),
    "am_mixup_loss": ("test_am_mixup_loss.py", "test_am_mixup_loss_operator.py"),
}
# Of these, what the device has no part in.
WITHIN_TORCH = {"test_autograd.py", *(file for files in TESTS.values() for file in files if "_operator" in file)}
FEWER_TYPES = "cuda and not float64 and not bfloat16"
# Tests of what only a change of the device shows; they choose their devices themselves.
ONLY_EMULATED = tuple(f"emulation/{path.name}" for path in sorted((ROOT / "tests" / "emulation").glob("test_*.py")))


def run_kernel(name: str, *, variant: str = "plain", env: dict[str, str] | None = None, **options: Any) -> list[Any]:
    """Error and result of a kernel under several seeds."""
    call = f"[kernels.{name}(seed=seed, **{options!r}) for seed in range({SEEDS})]"
    code = f"import json; from tests.emulation.selftest import Kernels; kernels = Kernels({variant!r}); "
    results: list[Any] = json.loads(run_python(f"{code}print(json.dumps({call}))", env=env))
    return results


@pytest.fixture(scope="module")
def sanitizer() -> dict[str, str]:
    try:
        return build.sanitizer_environment()
    except (FileNotFoundError, subprocess.CalledProcessError) as reason:
        pytest.skip(f"no AddressSanitizer: {reason}")


@pytest.mark.parametrize("variant", ["plain", "portable"])
@pytest.mark.parametrize("name", SUMS)
def test_right_kernels_are_right_in_every_order(name: str, variant: str) -> None:
    for threads in (32, 96):
        assert run_kernel(name, variant=variant, threads=threads) == [["", SUMS[name]]] * SEEDS


def test_warps_atomics_and_the_order_of_blocks() -> None:
    assert run_kernel("warp_talk") == [["", [0]]] * SEEDS
    assert run_kernel("last_blocks") == [["", [1]]] * SEEDS
    assert run_kernel("wait_for_others") == [["", [6]]] * SEEDS


@pytest.mark.parametrize(
    ("name", "mistake"),
    [*((x, "no barrier") for x in SUMS), ("row_sums", "no second barrier"), ("column_sums_on_chip", "early exit")],
)
def test_a_missing_barrier_shows_in_some_order(name: str, mistake: str) -> None:
    results = run_kernel(name, mistake=mistake)
    assert {error for error, _ in results} == {""}
    assert any(values != SUMS[name] for _, values in results)


@pytest.mark.parametrize(("name", "mistake"), FAULTS)
def test_threads_that_never_come_are_named(name: str, mistake: str) -> None:
    for error, _ in run_kernel(name, mistake=mistake):
        assert re.search(FAULTS[name, mistake], error) and f"::{name}" in error.splitlines()[0]


@pytest.mark.parametrize("mistake", ["overrun of shared memory", "overrun of global memory"])
def test_the_sanitizer_sees_an_element_too_many(mistake: str, sanitizer: dict[str, str]) -> None:
    with pytest.raises(AssertionError, match=r"heap-buffer-overflow(?s:.)*selftest\.cu:\d+"):
        run_kernel("row_sums", variant="sanitized", env=sanitizer, mistake=mistake)


@pytest.mark.parametrize("name", SUMS)
def test_the_sanitizer_accepts_what_is_right_even_after_a_fault(name: str, sanitizer: dict[str, str]) -> None:
    call = f"[kernels.row_sums(mistake='split warp'), kernels.{name}(seed=1)][1]"
    code = f"from tests.emulation.selftest import Kernels; kernels = Kernels('sanitized'); print({call})"
    assert run_python(code, env=sanitizer).strip() == str(("", [float(x) for x in SUMS[name]]))


def test_launches_that_the_device_refuses() -> None:
    kernels = selftest.Kernels()
    kernels.set_device(3, 100 * 1024, True)
    assert kernels.resident_blocks(256, 0) == 8 and kernels.resident_blocks(64, 0) == 32
    assert kernels.resident_blocks(64, 49 * 1024) == 2 and kernels.resident_blocks(64, 101 * 1024) == 0
    refused = {
        "shared memory": kernels.row_sums(shared_bytes=100 * 1024 + 1),
        "blocks, threads": kernels.row_sums(threads=1056),
        "numbers of blocks": kernels.row_sums(blocks=0),
        "invalid numbers": kernels.row_sums(threads=33),
        "clusters": kernels.column_sums_on_chip(cluster=17),
        "cooperative": kernels.column_sums_in_grid(blocks=7, threads=1024),
        "not cooperative": kernels.column_sums_in_grid(cooperative=False),
    }
    for words, (error, values) in refused.items():
        assert words in error and all(map(math.isnan, values)), (words, error)
    assert kernels.row_sums(shared_bytes=100 * 1024) == ("", SUMS["row_sums"])
    assert kernels.column_sums_in_grid(blocks=6, threads=1024) == ("", SUMS["column_sums_in_grid"])
    kernels.set_device(3, 100 * 1024, False)
    assert "clusters" in kernels.column_sums_on_chip()[0]


def convert(name: str, values: Tensor, dtype: torch.dtype) -> Tensor:
    result = torch.empty(values.shape, dtype=dtype)
    selftest.Kernels().convert(name, values.data_ptr(), result.data_ptr(), values.numel())
    return result


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_types_round_as_torch_does(dtype: torch.dtype) -> None:
    name = {torch.bfloat16: "bfloat16", torch.float16: "half"}[dtype]
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    same = partial(torch.testing.assert_close, rtol=0, atol=0, equal_nan=True)
    same(convert(f"from_{name}", every, torch.float32), every.float())
    # Every number, half-way to the next, and the neighbours of both.
    finite = every[every.isfinite()].double().sort().values
    values = torch.cat([finite, (finite[1:] + finite[:-1]) / 2]).float()
    bits = torch.cat([values.view(torch.int32) + step for step in (-1, 0, 1)])
    special = torch.tensor([math.inf, -math.inf, math.nan, 3.4e38, -3.4e38, 1e-45, 65519.996, 65520.0])
    anything = torch.randint(-(2**31), 2**31, (10**6,)).int()
    values = torch.cat([bits.view(torch.float32), special, anything.view(torch.float32)])
    same(convert(f"to_{name}", values, dtype), values.to(dtype))


def test_exp2_is_no_better_than_the_device_promises() -> None:
    x = torch.cat([torch.linspace(-125.99, 127.99, 10**5), torch.randn(10**5)])
    ours = convert("exp2_flushed", x, torch.float32).double()
    error = (ours / x.double().exp2() - 1).abs().max().item()
    assert 2**-23 < error < 1.6 * 2**-23
    powers = torch.arange(-126.0, 128.0)
    assert torch.equal(convert("exp2_flushed", powers, torch.float32), powers.exp2())
    special = torch.tensor([-126.1, -1e30, -math.inf, math.inf, 128.0, 1e-45])
    assert convert("exp2_flushed", special, torch.float32).tolist() == [0, 0, 0, math.inf, math.inf, 1]
    assert convert("exp2_flushed", torch.tensor([math.nan]), torch.float32).isnan().all()


def run_tests(files: tuple[str, ...], *, only: str = "cuda", **env: str) -> None:
    """The files' tests of backend="cuda" in a process where it is emulated; all must pass, and launch kernels."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.emulation.plugin"]
    result = subprocess.run(
        [*command, "-k", only, "-m", "not long", *(f"tests/{file}" for file in files)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-20000:] + result.stderr[-5000:]
    found = re.search(r"emulated: (\d+) kernel launches", result.stdout)
    assert found and int(found[1]) > 0 and " skipped" not in result.stdout, result.stdout


def test_every_operation_is_tested_here() -> None:
    assert set(TESTS) == {path.stem for path in (ROOT / "csrc" / "cuda").glob("*.cu")}


def test_operators() -> None:
    run_tests(tuple(files[0] for files in TESTS.values()), only=FEWER_TYPES)


# A seed of its own for each device: few multiprocessors and many, less shared memory, no clusters.
DEVICES = {
    1: {"ICM_SIMT_MULTIPROCESSORS": "1"},
    2: {"ICM_SIMT_MULTIPROCESSORS": "3", "ICM_SIMT_SHARED_BYTES": str(99 * 1024), "ICM_SIMT_CLUSTERS": "0"},
    3: {"ICM_SIMT_MULTIPROCESSORS": "20", "ICM_SIMT_SHARED_BYTES": str(163 * 1024), "ICM_SIMT_CLUSTERS": "0"},
    4: {"ICM_SIMT_MULTIPROCESSORS": "132"},
}


@pytest.mark.long
@pytest.mark.parametrize("seed", DEVICES)
def test_operators_on_several_devices(seed: int) -> None:
    values = tuple(file for files in TESTS.values() for file in files if file not in WITHIN_TORCH)
    # A grid of 132 multiprocessors is slow.
    run_tests(values, only="cuda" if seed < 4 else FEWER_TYPES, ICM_SIMT_SEED=str(seed), **DEVICES[seed])


@pytest.mark.long
@pytest.mark.parametrize("operation", TESTS)
def test_operators_with_the_sanitizer(operation: str, sanitizer: dict[str, str]) -> None:
    run_tests(TESTS[operation], **sanitizer)


@pytest.mark.long
def test_what_only_another_device_shows() -> None:
    run_tests(ONLY_EMULATED, only="test")
