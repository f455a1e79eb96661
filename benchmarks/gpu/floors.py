"""The least time that a workload can take: bytes over the bandwidth of a copy, exponentials over the rate of the unit
that forms them. Nothing runs faster; launches and barriers, which decide at small sizes, are no part of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from icm_fast.testing import byte_counts

from .workloads import FROM_FEATURES, MIXING, Spec

# ex2 instructions that a multiprocessor starts in a cycle: 16 from compute capability 7.0 to 10.0.
EX2_PER_CYCLE = 16


@dataclass(frozen=True)
class Rates:
    """What the device can do; None where it is not known."""

    bytes_per_s: float | None  # a copy on it, measured, counting reads and writes
    exponentials_per_s: float | None

    @classmethod
    def of(cls, device: Mapping[str, Any], bytes_per_s: float | None) -> Rates:
        """From facts.facts and a measured bandwidth."""
        cycles_per_s = (device.get("multiprocessors") or 0) * (device.get("max_sm_clock_mhz") or 0) * 1e6
        return cls(bytes_per_s, cycles_per_s * EX2_PER_CYCLE or None)


@dataclass(frozen=True)
class Work:
    """The least that a pass must do."""

    bytes: int
    exponentials: int

    def floor_us(self, rates: Rates) -> float | None:
        """The longer of the two times; None if neither rate is known."""
        pairs = ((self.bytes, rates.bytes_per_s), (self.exponentials, rates.exponentials_per_s))
        times = [amount / rate * 1e6 for amount, rate in pairs if rate]
        return max(times, default=None)


def work(spec: Spec) -> dict[str, Work]:
    """Pass -> its work; empty where products of matrices decide.

    "both" reads each input once, for what forward reads may stay on the chip; it forms each exponential twice, for
    B * B of them do not.
    """
    if spec.operation == FROM_FEATURES:
        return {}
    dtype = getattr(torch, spec.dtype)
    if spec.operation == MIXING:
        return {"forward": Work(byte_counts.mixup_bytes(math.prod(spec.size), dtype, spec.result_dtype), 0)}
    B, C = spec.size
    each = B * C
    if spec.operation == "icm_loss":
        forward, backward = (
            byte_counts.icm_loss_bytes(B, C, dtype, m, scalar_lam=spec.one_lam) for m in ("fwd", "bwd")
        )
        # With one lam a score's exponential is the product of two that depend on image and class alone.
        each = min(B * B, 2 * B * C) if spec.one_lam else B * B
    else:  # am_mixup_loss reads a partner and a label where the other reads two labels
        forward, backward = (byte_counts.mixup_cross_entropy_bytes(B, C, dtype, m) for m in ("fwd", "bwd"))
    return {"forward": Work(forward, each), "backward": Work(backward, each), "both": Work(backward, 2 * each)}


def described(spec: Spec, rates: Rates) -> dict[str, Any]:
    """For the JSON file: work and floor of each pass."""
    return {name: {**asdict(each), "floor_us": each.floor_us(rates)} for name, each in work(spec).items()}
