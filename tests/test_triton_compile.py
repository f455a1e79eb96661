"""Every Triton kernel compiled for NVIDIA GPUs ahead of time, without one: does it compile, and does it fit?

The operators run on the CPU with a driver that claims to be a GPU; where they would launch, the kernel is compiled from
the very arguments of the launch.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="Triton is for Linux")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

import icm_fast.triton.am_mixup_loss
import icm_fast.triton.icm_loss
import icm_fast.triton.mixup
import icm_fast.triton.mixup_cross_entropy
from icm_fast import triton as backend

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Limits(NamedTuple):
    """What a kernel may use: registers a thread, bytes of shared memory a program; no thread may spill.

    64 Ki registers and 100 KiB of shared memory (sm_86, the smallest) are shared by the programs of a multiprocessor:
    what is below gives each kernel 16 warps on one at least, which hide its loads from each other.
    """

    registers: int
    shared_bytes: int = 16 << 10


# Kernels of 8 and 4 warps that do the work; anything else is over before it counts.
LIMITS = {
    "sums_kernel": Limits(128),
    "repair_kernel": Limits(128),
    "gradient_kernel": Limits(128),
}
OTHERS = Limits(128, 32 << 10)


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
    registers: int
    spilled_bytes: int
    shared_bytes: int
    ptx: str


@pytest.fixture
def compiled(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[list[Compiled]]:
    """Compiles instead of launching; what was compiled."""
    found: list[Compiled] = []

    def launcher(kernel: Any, grid: tuple[int, ...]) -> Callable[..., None]:
        assert len(grid) == 1 and 0 < grid[0] < 2**31
        return lambda *arguments, **options: found.append(
            measured(kernel.warmup(*arguments, grid=grid, **options), tmp_path / "kernel.cubin")
        )

    monkeypatch.setattr(triton.runtime.jit.JITFunction, "__getitem__", launcher)
    triton.runtime.driver.set_active(FakeDriver(request.param))
    yield found
    triton.runtime.driver.reset_active()


def measured(kernel: Any, file: Path) -> Compiled:
    file.write_bytes(kernel.asm["cubin"])
    printed = subprocess.run(
        [CUOBJDUMP, "--dump-resource-usage", file], capture_output=True, text=True, check=True
    ).stdout
    used = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", printed)}
    spilled = used["STACK"] + used["LOCAL"]
    return Compiled(kernel.metadata.name, used["REG"], spilled, kernel.metadata.shared, kernel.asm["ptx"])


def icm_loss(rows: int, classes: int, dtype: torch.dtype) -> None:
    of = icm_fast.triton.icm_loss
    S, y, lam = torch.zeros(rows, classes, dtype=dtype), torch.zeros(rows, dtype=torch.int64), torch.zeros(rows)
    for scale in (None, torch.ones(())):
        for reduction in (0, 1):
            loss, _, *saved = of.forward(S, y, y, lam, scale, 0, True, True, reduction)
            of.backward(loss, loss, S, y, y, lam, scale, *saved, 0, True, True, reduction, scale is not None)


def mixup_cross_entropy(rows: int, classes: int, dtype: torch.dtype) -> None:
    of = icm_fast.triton.mixup_cross_entropy
    S, y, lam = torch.zeros(rows, classes, dtype=dtype), torch.zeros(rows, dtype=torch.int64), torch.zeros(rows)
    weights = torch.ones(classes, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    for weight, smoothing in ((None, 0.0), (weights, 0.1)):
        loss, stats = of.forward(S, y, y, lam, weight, smoothing, 1)
        of.backward(loss, S, y, y, lam, weight, stats, smoothing, 1)


def am_mixup_loss(rows: int, classes: int, dtype: torch.dtype) -> None:
    of = icm_fast.triton.am_mixup_loss
    S, y = torch.zeros(rows, classes, dtype=dtype), torch.zeros(rows, dtype=torch.int64)
    loss, stats = of.forward(S, y, torch.ones(()), y, 0)
    of.backward(loss, S, y, torch.ones(()), y, stats, 0)


def mixup(rows: int, width: int, dtype: torch.dtype) -> None:
    of = icm_fast.triton.mixup
    x, index, lam = torch.zeros(rows, 3, 8, width, dtype=dtype), torch.arange(rows), torch.zeros(rows)
    boxes, ones = torch.zeros(rows, 4, dtype=torch.int64), torch.ones(3)
    for box, keep_clean in ((None, False), (boxes, True)):
        out = of.forward(x, index, lam, box, None, None, keep_clean, None)
        of.backward(out, index, lam, box, keep_clean)
        of.forward(x.to(torch.uint8), index, lam, box, ones, ones, keep_clean, dtype)


OPERATIONS = {
    "icm_loss": icm_loss,
    "mixup": mixup,
    "mixup_cross_entropy": mixup_cross_entropy,
    "am_mixup_loss": am_mixup_loss,
}
# Rows: either set of tiles. Columns: rows of logits narrower and wider than a tile.
SIZES = ((100, 10), (2048, 5000))


def check(found: list[Compiled]) -> None:
    assert found
    for kernel in found:
        limits = LIMITS.get(kernel.name, OTHERS)
        assert kernel.spilled_bytes == 0, kernel._replace(ptx="")
        assert kernel.registers <= limits.registers, kernel._replace(ptx="")
        assert kernel.shared_bytes <= limits.shared_bytes, kernel._replace(ptx="")


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("compiled", [90], indirect=True, ids=["sm_90"])
def test_kernels_compile_and_fit(operation: str, compiled: list[Compiled]) -> None:
    OPERATIONS[operation](2048, 1000, torch.float32)
    check(compiled)


@pytest.mark.long
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("compiled", [80, 90, 100], indirect=True, ids=["sm_80", "sm_90", "sm_100"])
def test_kernels_compile_and_fit_everywhere(operation: str, dtype: torch.dtype, compiled: list[Compiled]) -> None:
    for sizes in SIZES:
        OPERATIONS[operation](*sizes, dtype)
    check(compiled)
