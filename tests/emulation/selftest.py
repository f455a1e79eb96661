"""The emulation's own kernels (selftest.cu), through ctypes and without torch, so that a process starts quickly.

Every call draws its orders from `seed`, and returns the error ("" for none) and what the kernel wrote.
"""

from __future__ import annotations

import array
import ctypes
import itertools

from . import build

MISTAKES = (
    *("none", "no barrier", "no second barrier", "overrun of shared memory", "overrun of global memory"),
    *("divergent barrier", "early exit", "split warp", "bad rank", "bad pointer"),
)
ROWS, COLUMNS = 13, 70
# Small integers, whose sums are exact in any order.
MATRIX = array.array("f", [(i * 7919) % 23 - 11 for i in range(ROWS * COLUMNS)])
ROW_SUMS = [sum(MATRIX[r * COLUMNS : (r + 1) * COLUMNS]) for r in range(ROWS)]
COLUMN_SUMS = [sum(MATRIX[c::COLUMNS]) for c in range(COLUMNS)]

Result = tuple[str, list[float]]


class Kernels:
    """Of one variant of the build."""

    def __init__(self, variant: str = "plain") -> None:
        self.library = ctypes.CDLL(str(build.selftest(variant)))

    def row_sums(
        self, *, mistake: str = "none", seed: int = 0, blocks: int = 5, threads: int = 64, shared_bytes: int = 0
    ) -> Result:
        """Shuffles within a warp, shared memory between warps: `shared_bytes`, or just what they need."""
        out = nans(ROWS)
        rows = ROWS + (mistake == "overrun of global memory")
        how = (
            blocks,
            threads,
            shared_bytes or threads // 32 * 4,
            address(MATRIX),
            rows,
            COLUMNS,
            address(out),
            MISTAKES.index(mistake),
        )
        return self._call("row_sums", seed, *how), list(out)

    def column_sums_on_chip(
        self, *, mistake: str = "none", seed: int = 0, cluster: int = 4, threads: int = 64
    ) -> Result:
        """A cluster, whose first block reads the shared memory of the others; without one, a single block."""
        out = nans(COLUMNS)
        how = (cluster, threads, address(MATRIX), ROWS, COLUMNS, address(out), MISTAKES.index(mistake))
        return self._call("column_sums_on_chip", seed, *how), list(out)

    def column_sums_in_grid(
        self, *, mistake: str = "none", seed: int = 0, blocks: int = 6, threads: int = 64, cooperative: bool = True
    ) -> Result:
        """All blocks of the grid, through global memory."""
        out, partial = nans(COLUMNS), nans(COLUMNS * blocks)
        matrix = (address(MATRIX), ROWS, COLUMNS)
        how = (blocks, threads, int(cooperative), *matrix, address(partial), address(out), MISTAKES.index(mistake))
        return self._call("column_sums_in_grid", seed, *how), list(out)

    def warp_talk(self, *, seed: int = 0, blocks: int = 3, threads: int = 128) -> Result:
        """How many answers of the warp's and the block's functions are wrong."""
        wrong = array.array("i", [0])
        return self._call("warp_talk", seed, blocks, threads, address(wrong)), list(wrong)

    def last_blocks(self, *, seed: int = 0, blocks: int = 40) -> Result:
        """How many blocks find that they are the last to arrive."""
        counts = array.array("i", [0, 0])
        return self._call("last_block", seed, blocks, address(counts), address(counts, 4)), [counts[1]]

    def wait_for_others(self, *, seed: int = 0, blocks: int = 6) -> Result:
        """How many blocks see, in a loop, that all have arrived."""
        counts = array.array("i", [0, 0])
        return self._call("wait_for_others", seed, blocks, address(counts), address(counts, 4)), [counts[1]]

    def set_device(self, multiprocessors: int, shared_bytes: int, has_clusters: bool) -> None:
        self.library.icm_simt_set_device(multiprocessors, shared_bytes, int(has_clusters))

    def resident_blocks(self, threads: int, shared_bytes: int) -> int:
        return int(self.library.resident_blocks(threads, shared_bytes))

    def convert(self, name: str, source: int, target: int, count: int) -> None:
        """to_half, from_half, to_bfloat16, from_bfloat16 or exp2_flushed of `count` values between two addresses."""
        self.library[name](ctypes.c_void_p(source), ctypes.c_void_p(target), ctypes.c_int64(count))

    def _call(self, name: str, seed: int, *arguments: object) -> str:
        self.library.icm_simt_set_seed(ctypes.c_uint64(seed))
        function = self.library[name]
        function.restype = ctypes.c_char_p
        return bytes(function(*arguments)).decode()


def nans(count: int) -> array.array[float]:
    return array.array("f", itertools.repeat(float("nan"), count))


def address(values: array.array[float] | array.array[int], offset_bytes: int = 0) -> ctypes.c_void_p:
    return ctypes.c_void_p(values.buffer_info()[0] + offset_bytes)
