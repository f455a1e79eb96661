"""Fixtures of every test file."""

import pytest
import torch

# On a busy machine two threads wait for each other at the end of every call, which makes the suite ten times slower.
# What depends on the number of threads sets it in tests of its own.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
