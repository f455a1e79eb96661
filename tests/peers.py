"""Other libraries, loaded for the tests that feed their objects to ours; `make check` installs them."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from benchmarks.speed.peers import load, load_file


def peer(name: str) -> ModuleType:
    """A module of another library; without the library the test is skipped."""
    _skip_without(name.split(".")[0])
    return load(name)


def peer_file(package: str, file: str) -> ModuleType:
    """One file of a package that imports much more than is needed here."""
    _skip_without(package)
    return load_file(package, file)


def _skip_without(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install -r requirements-peers.txt")
