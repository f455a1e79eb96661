"""What each contender took: see conftest.py. A result outside the error budget has no time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from .contenders import OURSELVES, contenders
from .measure import Measurement
from .replay import Replay
from .workloads import Spec


def test_time(
    benchmark: Any, spec: Spec, contender: str, replay: Replay, results: Mapping[str, Measurement | str]
) -> None:
    result = results[contender]
    found = contenders(spec)[contender]
    if isinstance(result, str):
        if not isinstance(found, str) and found.role == OURSELVES:
            pytest.fail(f"{contender}: {result}", pytrace=False)
        pytest.skip(f"{contender}: {result}")
    assert not isinstance(found, str)
    benchmark.extra_info.update(
        contender=contender,
        role=found.role,
        error=result.error,
        p20=result.p20_us / 1e6,
        p80=result.p80_us / 1e6,
        peak_extra_bytes=result.peak_extra_bytes,
    )
    samples = [each / 1e6 for each in result.samples_us]
    replay.load(samples)
    benchmark.pedantic(lambda: None, rounds=len(samples), iterations=1)
