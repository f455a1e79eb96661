"""The operators as Triton kernels, for GPUs without the compiled library. Loaded on first use: importing this package
imports no triton.

A file is an operation; each fills `OPERATORS` with what is registered as the `.triton` overload.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os

import torch

from ..operators._library import LIBRARY

_OPERATIONS = ("am_mixup_loss", "contrastive_loss", "icm_loss", "mixup", "mixup_cross_entropy")
_OLDEST = (3, 6)


def interpreted() -> bool:
    """Whether Triton runs its kernels in Python, on tensors of any device: its own variable, read at import."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def load() -> str | None:
    """Import the kernels and register them, once. None when that worked, else the reason why not."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not (torch.cuda.is_available() or interpreted()):
        return "no GPU here"
    try:
        version = importlib.import_module("triton").__version__
        if tuple(int(number) for number in version.split(".")[:2]) < _OLDEST:
            return f"triton {version} is installed, {'.'.join(map(str, _OLDEST))} or newer is needed"
        modules = [importlib.import_module(f".{name}", __package__) for name in _OPERATIONS]
    except Exception as error:  # a broken installation may raise anything
        return f"triton cannot be imported: {error}"
    for module in modules:
        for name, operator in module.OPERATORS.items():
            LIBRARY.impl(f"{name}.triton", operator, "CUDA")
            if interpreted():
                LIBRARY.impl(f"{name}.triton", operator, "CPU")
    return None
