"""The least time that a workload can take: bytes over the bandwidth of a copy, exponentials over the rate of the unit
that forms them. Nothing runs faster; launches and barriers, which decide at small sizes, are no part of it.

Matrix products are the framework's, launches of their own: what they take at the rate of a large square product comes
on top. A loss that formed its products itself could hide the exponentials behind them and be faster than that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from icm_fast.testing import byte_counts

from .workloads import LINEAR, MIXING, PRODUCTS, Spec

# ex2 instructions that a multiprocessor starts in a cycle: 16 from compute capability 7.0 to 10.0.
EX2_PER_CYCLE = 16


@dataclass(frozen=True)
class Rates:
    """What the device can do; None where it is not known."""

    bytes_per_s: float | None  # a copy on it, measured, counting reads and writes
    exponentials_per_s: float | None
    operations_per_s: float | None = None  # of a matrix product in the type of the workload, measured

    @classmethod
    def of(cls, device: Mapping[str, Any], bytes_per_s: float | None, operations_per_s: float | None = None) -> Rates:
        """From facts.facts and what was measured."""
        cycles_per_s = (device.get("multiprocessors") or 0) * (device.get("max_sm_clock_mhz") or 0) * 1e6
        return cls(bytes_per_s, cycles_per_s * EX2_PER_CYCLE or None, operations_per_s)


@dataclass(frozen=True)
class Work:
    """The least that a pass must do."""

    bytes: int
    exponentials: int
    operations: int = 0  # of matrix products

    def floor_us(self, rates: Rates) -> float | None:
        """The products, and the longer of the two other times; None where rates are not known."""
        pairs = ((self.bytes, rates.bytes_per_s), (self.exponentials, rates.exponentials_per_s))
        times = [amount / rate * 1e6 for amount, rate in pairs if rate]
        if not times or (self.operations and not rates.operations_per_s):
            return None
        return max(times) + self.operations / (rates.operations_per_s or 1.0) * 1e6


def work(spec: Spec) -> dict[str, Work]:
    """Pass -> its work.

    "both" reads each input once, for what forward reads may stay on the chip; it forms each exponential twice, for
    B * B of them do not.
    """
    if spec.operation in PRODUCTS:
        return _work_of_products(spec)
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


def _work_of_products(spec: Spec) -> dict[str, Work]:
    """Three products of the width of the classes, or four of the batch's, whose scores are not kept."""
    B, *classes, width = spec.size
    itemsize = getattr(torch, spec.dtype).itemsize
    others = classes[0] if spec.operation == LINEAR else B
    inputs = (B + others) * width * itemsize + (20 * B if spec.operation == LINEAR else 4)
    through_logits = 3 * others <= 4 * B and spec.operation == LINEAR
    each, again = (others, 0) if through_logits else (B, 1)
    product = 2 * B * each * width
    exponentials = min(B * B, 2 * B * others) if spec.one_lam else B * B
    gradients = (B + others) * width * itemsize
    return {
        "forward": Work(inputs, exponentials, product),
        "backward": Work(inputs + gradients, exponentials, (2 + again) * product),
        "both": Work(inputs + gradients, 2 * exponentials, (3 + again) * product),
    }


def described(spec: Spec, rates: Rates) -> dict[str, Any]:
    """For the JSON file: work and floor of each pass."""
    return {name: {**asdict(each), "floor_us": each.floor_us(rates)} for name, each in work(spec).items()}
