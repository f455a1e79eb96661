"""Registers, stack and shared memory of the compiled CUDA kernels, read from the library: no GPU needed.

A kernel that spills registers has a stack, and one with an array that is not indexed by constants too; so a stack of 0
proves neither happens. Where a kernel may have one, the reason stands beside its limit.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import icm_fast
from icm_fast import _native

LIBRARY = Path(icm_fast.__file__).parent / "lib" / "libicm_fast_cuda.so"
REGISTERS = 65536  # of a multiprocessor

# Pattern of the kernel's mangled name -> (threads of its blocks, most bytes of stack); the first that fits counts.
LIMITS = {
    # The repair, some hundred instructions that an ordinary batch never reaches, holds the most values at once. In
    # float64 every value is two registers.
    r"icm_loss_forward_kernelINS_4TileId": (512, 64),
    r"icm_loss_forward_kernel": (512, 24),
    # The addresses of sums that only the gradient of a scale uses.
    r"icm_loss_gradient_kernel": (512, 16),
    r"icm_loss_factors_kernelId": (256, 24),  # float64 divisions are calls, around which registers are kept
    r"icm_loss_factors_kernel": (256, 16),
    r"icm_loss_plan_kernel": (1024, 8),  # the total that a prefix sum returns through a pointer
    r"icm_loss_dscale_kernel": (32, 0),
    r"": (256, 0),
}


class Kernel(NamedTuple):
    name: str
    registers: int
    stack: int
    shared: int


def cuobjdump() -> str | None:
    """The tool that reads GPU code: of a CUDA toolkit, or of the triton package."""
    try:
        import triton
    except ImportError:
        return shutil.which("cuobjdump")
    own = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(own) if own.exists() else shutil.which("cuobjdump")


def kernels_of(listing: str) -> Iterator[tuple[str, Kernel]]:
    """(architecture, kernel) of `cuobjdump --dump-resource-usage`."""
    arch = ""
    pattern = r"arch = (\w+)|Function (\S+):\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+)"
    for match in re.finditer(pattern, listing):
        if match[1]:
            arch = match[1]
        elif "_ZN3icm" in match[2]:
            yield arch, Kernel(match[2], int(match[3]), int(match[4]), int(match[5]))


def limits_of(name: str) -> tuple[int, int]:
    return next(limits for pattern, limits in LIMITS.items() if re.search(pattern, name))


@pytest.fixture(scope="module")
def kernels() -> dict[str, list[Kernel]]:
    if not (_native.build_info().get("cuda") or {}).get("built"):
        pytest.skip(
            "the CUDA library is not built here: " + str((_native.build_info().get("cuda") or {}).get("reason"))
        )
    tool = cuobjdump()
    if tool is None:
        pytest.skip("cuobjdump is neither in a CUDA toolkit on PATH nor in an installed triton")
    listing = subprocess.run([tool, "--dump-resource-usage", str(LIBRARY)], capture_output=True, text=True, check=True)
    found: dict[str, list[Kernel]] = {}
    for arch, kernel in kernels_of(listing.stdout):
        found.setdefault(arch, []).append(kernel)
    return found


def test_every_kernel_is_there_for_every_architecture(kernels: dict[str, list[Kernel]]) -> None:
    built = {arch for arch in _native.build_info()["cuda"]["archs"] if arch.startswith("sm_")}
    assert built <= set(kernels)
    names = {arch: sorted(re.sub(r"N__\w{8}_", "", k.name) for k in kernels[arch]) for arch in built}
    assert len({tuple(of) for of in names.values()}) == 1, "an architecture lacks a kernel"
    for operation in ("icm_loss_forward", "icm_loss_gradient", "mixup", "row_loss", "am_gradient"):
        assert any(operation in name for name in next(iter(names.values()))), operation


def test_registers_stack_and_shared_memory(kernels: dict[str, list[Kernel]]) -> None:
    beyond = []
    for arch, of in kernels.items():
        for kernel in of:
            threads, stack = limits_of(kernel.name)
            # Registers are given to a warp in units of 256.
            if kernel.registers * threads > REGISTERS or kernel.stack > stack or kernel.shared > 1024:
                beyond.append(f"{arch} {kernel}")
    assert not beyond, "\n".join(beyond)


def test_a_spill_would_be_seen() -> None:
    listing = "arch = sm_90\n Function _ZN3icm20icm_loss_plan_kernelIfEEvv:\n  REG:40 STACK:16 SHARED:0 LOCAL:0\n"
    ((arch, kernel),) = kernels_of(listing)
    assert arch == "sm_90" and kernel.stack == 16 > limits_of(kernel.name)[1]
