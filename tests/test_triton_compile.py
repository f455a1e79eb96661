"""Every Triton kernel compiled for NVIDIA GPUs ahead of time, without one: does it compile, and does it fit?

The operators run on the CPU with a driver that claims to be a GPU; where they would launch, the kernel is compiled from
the very arguments of the launch.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is for Linux")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


# Limits of every kernel. A multiprocessor has 65536 registers and at least 100 KiB of shared memory (sm_86), shared by
# the programs that run on it: these leave room for 16 warps, which hide their loads from each other.
LEAST_WARPS = 16
REGISTERS = 65536
SHARED_BYTES = 100 << 10
# Bytes of a thread's registers that are kept in memory: none in a loop that counts, a few around one.
SPILLED_BYTES = 16


class FakeDriver:
    """Enough of a GPU to compile for."""

    def __init__(self, capability: int) -> None:
        self.target = triton.backends.compiler.GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # the caches are per device: one for each architecture

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


class Compiled(NamedTuple):
    """A kernel and what it uses."""

    name: str
    warps: int
    registers: int  # of a thread
    spilled_bytes: int  # likewise
    shared_bytes: int
    ptx: str


@pytest.fixture
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Compiled]:
    """Compiles instead of launching; what was compiled."""
    found: list[Compiled] = []

    def launcher(kernel: Any, grid: tuple[int, ...]) -> Callable[..., None]:
        assert len(grid) == 1 and 0 < grid[0] < 2**31
        return lambda *arguments, **options: found.append(
            measured(kernel.warmup(*arguments, grid=grid, **options), tmp_path / "kernel.cubin")
        )

    monkeypatch.setattr(triton.runtime.jit.JITFunction, "__getitem__", launcher)
    monkeypatch.setattr(triton.runtime.driver, "_active", FakeDriver(request.param))
    return found


def measured(kernel: Any, file: Path) -> Compiled:
    file.write_bytes(kernel.asm["cubin"])
    printed = subprocess.run(
        [CUOBJDUMP, "--dump-resource-usage", file], capture_output=True, text=True, check=True
    ).stdout
    used = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", printed)}
    spilled = used["STACK"] + used["LOCAL"]
    metadata = kernel.metadata
    return Compiled(metadata.name, metadata.num_warps, used["REG"], spilled, metadata.shared, kernel.asm["ptx"])


def module(name: str) -> Any:
    return importlib.import_module(f"icm_fast.triton.{name}")


def target(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    labels = torch.zeros(rows, dtype=torch.int64)
    return labels, labels, torch.zeros(rows)


# An operation is run with all that makes other kernels of it, or with one choice.
def icm_loss(rows: int, classes: int, dtype: torch.dtype, whole: bool) -> None:
    of, inputs = module("icm_loss"), (torch.zeros(rows, classes, dtype=dtype), *target(rows))
    choices = ((None, 1), (torch.ones(()), 1), (None, 0))
    for scale, reduction in choices if whole else choices[:1]:
        loss, _, *saved = of.forward(*inputs, scale, 0, True, True, reduction)
        of.backward(loss, loss, *inputs, scale, *saved, 0, True, True, reduction, scale is not None)


def mixup_cross_entropy(rows: int, classes: int, dtype: torch.dtype, whole: bool) -> None:
    of, inputs = module("mixup_cross_entropy"), (torch.zeros(rows, classes, dtype=dtype), *target(rows))
    weights = torch.ones(classes, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    choices = ((weights, 0.1), (None, 0.0), (None, 0.1))
    for weight, smoothing in choices if whole else choices[:1]:
        loss, stats = of.forward(*inputs, weight, smoothing, 1)
        of.backward(loss, *inputs, weight, stats, smoothing, 1)


def am_mixup_loss(rows: int, classes: int, dtype: torch.dtype, whole: bool) -> None:
    of, labels = module("am_mixup_loss"), torch.zeros(rows, dtype=torch.int64)
    inputs = (torch.zeros(rows, classes, dtype=dtype), labels, torch.ones(()), labels)
    loss, stats = of.forward(*inputs, 0)
    of.backward(loss, *inputs, stats, 0)


def mixup(rows: int, width: int, dtype: torch.dtype, whole: bool) -> None:
    of = module("mixup")
    x, index, lam = torch.zeros(rows, 3, 8, width, dtype=dtype), torch.arange(rows), torch.zeros(rows)
    boxes, ones = torch.zeros(rows, 4, dtype=torch.int64), torch.ones(3)
    choices = ((boxes, True), (None, False))
    for box, keep_clean in choices if whole else choices[:1]:
        out = of.forward(x, index, lam, box, None, None, keep_clean, None)
        of.backward(out, index, lam, box, keep_clean)
        of.forward(x.to(torch.uint8), index, lam, box, ones, ones, keep_clean, dtype)


def contrastive_loss(rows: int, columns: int, dtype: torch.dtype, whole: bool) -> None:
    of, scores = module("contrastive_loss"), torch.zeros(min(rows, columns), columns, dtype=dtype)
    choices = ((torch.ones(()), True, True), (None, True, False), (None, False, True))
    for scale, *axes in choices if whole else choices[:1]:
        stats = of.sums(scores, scale, 0)
        grad = torch.ones((), dtype=stats[0].dtype)
        of.gradient(scores, scale, grad, grad, *stats, 0, *axes, scale is not None)


OPERATIONS = {each.__name__: each for each in (icm_loss, mixup, mixup_cross_entropy, am_mixup_loss, contrastive_loss)}
# Rows: either set of tiles. Columns: rows of logits narrower and wider than a tile. Triton makes a literal of a 1, and
# has a kernel of its own for multiples of 16.
SIZES = ((1, 1), (100, 10), (2048, 5000))


def check(found: list[Compiled]) -> None:
    assert found
    for kernel in found:
        programs = max(1, LEAST_WARPS // kernel.warps)
        fits = (
            programs * kernel.warps * 32 * kernel.registers <= REGISTERS
            and programs * kernel.shared_bytes <= SHARED_BYTES
            and kernel.spilled_bytes <= SPILLED_BYTES
        )
        assert fits, kernel._replace(ptx="")


def test_limits_can_fail() -> None:
    fits = Compiled("kernel", warps=8, registers=128, spilled_bytes=0, shared_bytes=50 << 10, ptx="")
    check([fits])
    for change in ({"registers": 129}, {"spilled_bytes": 17}, {"shared_bytes": 51 << 10}):
        with pytest.raises(AssertionError, match="kernel"):
            check([fits, fits._replace(**change)])


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("compiled", [90], indirect=True, ids=["sm_90"])
def test_kernels_compile_and_fit(operation: str, compiled: list[Compiled]) -> None:
    OPERATIONS[operation](2048, 1000, torch.float32, False)
    check(compiled)


@pytest.mark.long
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("compiled", [80, 90, 100], indirect=True, ids=["sm_80", "sm_90", "sm_100"])
def test_kernels_compile_and_fit_everywhere(operation: str, dtype: torch.dtype, compiled: list[Compiled]) -> None:
    for sizes in SIZES:
        OPERATIONS[operation](*sizes, dtype, True)
    check(compiled)


@pytest.mark.parametrize("compiled", [90], indirect=True, ids=["sm_90"])
def test_types_of_the_arithmetic(compiled: list[Compiled]) -> None:
    icm_loss(100, 10, torch.bfloat16, False)
    contrastive_loss(100, 200, torch.bfloat16, False)
    kernels = {kernel.name: kernel.ptx for kernel in compiled}
    # Rounded to nearest: what triton_interpreter.py assumes of a GPU.
    for name in ("gradient_kernel", "_gradient_kernel"):
        assert "cvt.rn.bf16" in kernels[name], name
    # No constant may turn float32 arithmetic into float64, which is 64 times slower on most GPUs.
    for name in ("sums_kernel", "repair_kernel", "_sums_kernel", "_merge_kernel"):
        assert ".f64" not in kernels[name], name
