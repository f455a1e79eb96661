"""`python tests/gpu/planted_fault.py TOOL`: a kernel with the fault that this tool of compute-sanitizer must find.

A tool that finds nothing here says nothing by finding nothing elsewhere.
"""

from __future__ import annotations

import os
import sys

import torch

CANNOT_PLANT = 66  # exit status
# Each is given two arrays of n floats, the second one never written, and runs with two warps.
FAULTS = {
    "memcheck": "x[n + threadIdx.x] = 1.0f;",
    "racecheck": "__shared__ float s[64]; s[threadIdx.x] = x[threadIdx.x]; x[threadIdx.x] = s[63 - threadIdx.x];",
    "initcheck": "x[threadIdx.x] = y[threadIdx.x];",
    "synccheck": "unsigned mask = __ballot_sync(0xffffffffu, threadIdx.x < 16);"
    " if (threadIdx.x < 20) __syncwarp(mask); x[threadIdx.x] = 1.0f;",
}


def main(tool: str) -> None:
    source = f'extern "C" __global__ void planted_fault(float* x, float* y, int n) {{ {FAULTS[tool]} }}'
    try:
        kernel = torch.cuda._compile_kernel(source, "planted_fault")
    except Exception as error:  # no compiler, or a torch without this function: nothing can be planted
        sys.stdout.write(f"the fault cannot be planted: {type(error).__name__}: {error}\n")
        sys.exit(CANNOT_PLANT)
    x, y = torch.zeros(1024).cuda(), torch.empty(1024, device="cuda")
    try:
        kernel(grid=(1, 1, 1), block=(64, 1, 1), args=[x, y, 1024])
        torch.cuda.synchronize()
    except RuntimeError as error:
        sys.stdout.write(f"the device noticed: {error}\n")
    sys.stdout.flush()
    os._exit(0)  # without freeing what the device has lost


if __name__ == "__main__":
    main(sys.argv[1])
