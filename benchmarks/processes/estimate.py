"""What a step would cost W GPUs: an estimate on paper, from what the algorithms send. Nothing here is measured.

A collective of W processes takes alpha for every message that must wait for another, and its bytes over the bandwidth
of a GPU. Recursive doubling and halving, ceil(log2 W) messages one after another and as many bytes as a ring::

    all-gather of m bytes each          ceil(log2 W) alpha + (W - 1) m / beta
    reduce-scatter of W parts of m      the same
    all-reduce of n bytes               2 ceil(log2 W) alpha + 2 (W - 1) / W n / beta

A ring, which libraries take for long messages, has W - 1 messages one after another instead of ceil(log2 W).
"""

from __future__ import annotations

import math
from typing import NamedTuple

GPUS = 1000
# Assumptions: one network card of 400 Gbit/s for each GPU, and the delay of a message between machines.
BETA_BYTES_PER_S = 50e9
ALPHA_S = 15e-6
# Assumption: 132 multiprocessors, 16 exponentials a clock each, 1.7 GHz, three quarters of that.
EXPONENTIALS_PER_S = 2.7e12
FLOAT = 4
HEADER = 8 * 8  # number of rows, and what must be the same in all calls
TARGET = 12  # of a row: two labels and lam
PLAIN_TARGET = 20  # as int64, int64 and float32, in three collectives


class Collective(NamedTuple):
    """messages: one after another, in units of ceil(log2 W); bytes that a process sends."""

    messages: int
    sent: float


class Cost(NamedTuple):
    """Of the collectives of a step on one GPU."""

    sent: float
    latency_s: float
    transfer_s: float
    ring_latency_s: float

    @property
    def seconds(self) -> float:
        """Nothing overlaps."""
        return self.latency_s + self.transfer_s

    @property
    def ring_seconds(self) -> float:
        """If every collective were a ring."""
        return self.ring_latency_s + self.transfer_s


def all_gather(gpus: int, each: float) -> Collective:
    """Of so many bytes of each; a reduce-scatter to as many costs the same."""
    return Collective(1, (gpus - 1) * each)


def all_reduce(gpus: int, size: float) -> Collective:
    """Of so many bytes, on every one."""
    return Collective(2, 2 * (gpus - 1) / gpus * size)


def ours(gpus: int, rows: int) -> list[Collective]:
    """Header, target, largest and sums of the columns in float64, two terms. No size of a feature or class in it."""
    columns = gpus * rows
    return [
        all_gather(gpus, HEADER),
        all_gather(gpus, TARGET * rows),
        *(all_reduce(gpus, 8 * columns) for _ in range(2)),
        all_reduce(gpus, 2 * 8),
    ]


def gathered(gpus: int, rows: int, width: int) -> list[Collective]:
    """Rows of so many float32 and their gradients, and the target."""
    both_ways = [all_gather(gpus, FLOAT * rows * width) for _ in range(2)]
    return [*(all_gather(gpus, PLAIN_TARGET / 3 * rows) for _ in range(3)), *both_ways]


def cost(gpus: int, collectives: list[Collective]) -> Cost:
    """Of collectives one after another."""
    messages, sent = sum(each.messages for each in collectives), sum(each.sent for each in collectives)
    latencies = (messages * hops * ALPHA_S for hops in (math.ceil(math.log2(gpus)), gpus - 1))
    latency, of_ring = latencies
    return Cost(sent, latency, sent / BETA_BYTES_PER_S, of_ring)


def block_bytes(gpus: int, rows: int) -> int:
    """Of a process's scores in float32, own rows against all columns, which are never held."""
    return FLOAT * rows * gpus * rows


def exponentials_s(gpus: int, rows: int) -> float:
    """Two for every score of the own rows, forward and backward."""
    return 2 * rows * gpus * rows / EXPONENTIALS_PER_S
