"""Fixtures of every test file."""

import pytest
import torch
from linear_cases import WAYS

from icm_fast.functional import _linear_ways
from icm_fast.operators import _products

# On a busy machine two threads wait for each other at the end of every call, which makes the suite ten times slower.
# What depends on the number of threads sets it in tests of its own.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way of linear_icm_loss, with blocks of few rows."""
    through_logits, kept = WAYS[request.param]
    monkeypatch.setattr(_linear_ways, "through_logits", lambda rows, used: through_logits)
    monkeypatch.setattr(_linear_ways, "MOST_KEPT", kept)
    monkeypatch.setitem(_products._BLOCKS, "cpu", (1 << 10, 16, 64))
    monkeypatch.setattr(_products, "_KEPT", 1000)  # of 31 rows or fewer
    return str(request.param)
