"""Other libraries, where they are installed."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import torch

_kept: list[torch.library.Library] = []


def missing(package: str) -> str | None:
    """Why a library takes no part; None if it does."""
    if importlib.util.find_spec(package) is None:
        return f"not run: {package} is not installed (requirements-peers.txt)"
    return None


def load(name: str) -> ModuleType:
    """A module of one of them."""
    if importlib.util.find_spec("torchvision") is not None:
        _declare_operators_of_torchvision()  # most of the others import it if it is there
    return importlib.import_module(name)


def load_file(package: str, file: str) -> ModuleType:
    """One file of a package that imports much more than is needed here, and may not be able to."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {package!r}")
    path = Path(found.submodule_search_locations[0]) / file
    spec = importlib.util.spec_from_file_location(f"{package}_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def _declare_operators_of_torchvision() -> None:
    """What it asks for as it is imported, where its own library, built for CUDA, is beside a torch without."""
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None and spec.submodule_search_locations
    try:
        torch.ops.load_library(Path(spec.submodule_search_locations[0]) / "_C.so")
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)
