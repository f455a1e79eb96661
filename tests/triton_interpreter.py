"""A pytest plugin for runs under TRITON_INTERPRET=1, where every operation on a tile costs a tenth of a millisecond.

`python -m pytest -p triton_interpreter` with tests/ on the path: test_triton.py starts it so.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

from icm_fast.triton import _rows, am_mixup_loss, icm_loss, mixup, mixup_cross_entropy


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shipped-tiles", action="store_true", help="the tiles of a GPU, and not larger ones")


def pytest_configure(config: pytest.Config) -> None:
    interpreter._patch_builtin = patch_builtins
    interpreter._convert_float = convert_float
    if not config.getoption("--shipped-tiles"):
        icm_loss.tiles_for = larger_tiles
        am_mixup_loss.row_tile = mixup_cross_entropy.row_tile = larger_row_tile
        mixup._BLOCK = 1 << 16


@functools.cache
def builtins_of(language: Any) -> list[str]:
    return [name for name, member in inspect.getmembers(language) if tl.core.is_builtin(member)]


def patch_builtins(language: Any, builder: Any, scope: Any) -> None:
    """The interpreter's own looks through the whole language at every device function: a third of the time."""
    for name in builtins_of(language):
        member = getattr(language, name)
        if tl.core.is_builtin(member):
            interpreter._patch_attr(language, name, member, builder, scope)


truncating = interpreter._convert_float


def convert_float(x: Any, of: Any, to: Any, rounding_mode: Any) -> Any:
    """The interpreter cuts bits off where a GPU rounds to nearest even (test_triton_compile.py looks for cvt.rn)."""
    if (of, to) != (tl.float32, tl.bfloat16):
        return truncating(x, of, to, rounding_mode)
    bits = np.ascontiguousarray(x).view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), (bits >> 16) | 0x40, nearest).astype(np.uint16)


shipped = icm_loss.tiles_for


def larger_tiles(rows: int, dtype: torch.dtype) -> Any:
    """Fewer and larger tiles than on a GPU; still several of each at most of the tests' sizes."""
    return dataclasses.replace(
        shipped(rows, dtype), rows=32, columns=64, classes=64, entries=64, gradient_classes=64, programs=4
    )


def larger_row_tile(classes: int, dtype: torch.dtype) -> Any:
    return _rows.row_tile(classes, dtype)._replace(rows=64)
