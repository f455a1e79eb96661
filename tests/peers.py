"""Other libraries, loaded for the tests that feed their objects to ours; `make check` installs them."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch


def peer(name: str) -> ModuleType:
    """A module of another library; without the library the test is skipped."""
    package = name.split(".")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install -r requirements-peers.txt")
    if importlib.util.find_spec("torchvision") is not None:
        _declare_operators_of_torchvision()  # most of the others import it if it is there
    return importlib.import_module(name)


def peer_file(package: str, file: str) -> ModuleType:
    """One file of a package that imports much more than is needed here."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{package} is not installed: pip install -r requirements-peers.txt")
    path = Path(found.submodule_search_locations[0]) / file
    spec = importlib.util.spec_from_file_location(f"{package}_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_kept: list[torch.library.Library] = []


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
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)
