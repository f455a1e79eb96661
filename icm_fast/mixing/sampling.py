"""Random draws of mixing.

They are made on the generator's device, without one on the device of the images from torch's global generator, and
copied to the images' device if that is another: from the CPU without waiting. Nothing is read back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._validate import describe
from ..functional import _draws

PAIRINGS = ("perm", "flip", "roll")
# 2^32 over the golden ratio. Modulo 2^32, which is all that counts of a seed on the CPU, its multiples lie as far apart
# as can be: the workers of a rank, whose seeds follow each other, do not come to those of another.
_BETWEEN_RANKS = 0x9E3779B1


class Source:
    """The generator that draws in this process.

    Ranks and DataLoader workers begin with a copy of the one that was given, and would all draw the same. Rank 0, or a
    process alone, draws from it as it is. Any other draws from one of its own, seeded once from the next number of the
    copy, the rank, and the seed that DataLoader gave the worker; a new one for each epoch, unless workers persist.
    """

    def __init__(self, where: str, generator: torch.Generator | None, rank: int | None) -> None:
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"{where}: expected generator to be a torch.Generator, got {describe(generator)}")
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 0):
            raise ValueError(f"{where}: expected rank to be None or a number from 0, got {describe(rank)}")
        self.where, self.generator, self.rank = where, generator, rank
        self._sender: int | None = None  # the rank of the process that this object was sent from
        self._own: tuple[tuple[int, int], torch.Generator] | None = None  # and where it was seeded

    def here(self) -> torch.Generator | None:
        """None: torch's global one, which is the trainer's to seed, and DataLoader's in a worker."""
        if self.generator is None:
            return None
        if torch.compiler.is_compiling():
            raise RuntimeError(
                f"{self.where}: a graph of torch.compile(fullgraph=True) or torch.export cannot hold a generator; mix "
                "outside of it, or leave generator out and call torch.manual_seed(seed + rank)"
            )
        place = self._place()
        if self._own is None or self._own[0] != place:
            if place == (0, 0):
                return self.generator
            self._seed(place)
            assert self._own is not None
        return self._own[1]

    def _place(self) -> tuple[int, int]:
        """Rank and worker's seed."""
        worker = torch.utils.data.get_worker_info()
        return self._rank_here() or 0, 0 if worker is None else worker.seed

    def _rank_here(self) -> int | None:
        distributed = torch.distributed
        if self.rank is not None:
            return self.rank
        is_one_of_many = distributed.is_available() and distributed.is_initialized()
        return distributed.get_rank() if is_one_of_many else self._sender

    def _seed(self, place: tuple[int, int]) -> None:
        rank, worker_seed = place
        assert self.generator is not None
        device = self.generator.device
        drawn = int(torch.randint(1 << 62, (), generator=self.generator, device=device))
        seed = (drawn + worker_seed + rank * _BETWEEN_RANKS) % (1 << 63)
        self._own = place, torch.Generator(device).manual_seed(seed)

    def __getstate__(self) -> dict[str, Any]:
        # For workers that are no forks: they do not know their rank, and torch fails to send them a generator.
        own = self._own and (self._own[0], _packed(self._own[1]))
        return {**self.__dict__, "_sender": self._rank_here(), "generator": _packed(self.generator), "_own": own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        own = state["_own"] and (state["_own"][0], _unpacked(state["_own"][1]))
        self.__dict__.update({**state, "generator": _unpacked(state["generator"]), "_own": own})

    def state(self) -> dict[str, Any]:
        """Where the draws are, and on which rank."""
        generator = self.here()
        return {"generator": None if generator is None else generator.get_state(), "rank": self._place()[0]}

    def load(self, state: dict[str, Any]) -> None:
        """Continue at a state; at that of another rank, as a rank of its own from there."""
        saved = state["generator"]
        if (saved is None) != (self.generator is None):
            have, kept = ("has a generator", "none") if saved is None else ("has no generator", "one")
            raise ValueError(f"{self.where}: this object {have}, but the state was taken from one with {kept}")
        if self.generator is None:
            return
        place, self._own = self._place(), None
        if state.get("rank", 0) != place[0]:
            self.generator.set_state(saved)
            self._seed(place)
        elif place == (0, 0):
            self.generator.set_state(saved)
        else:
            self._own = place, torch.Generator(self.generator.device)
            self._own[1].set_state(saved)


def _packed(generator: torch.Generator | None) -> tuple[str, bytes] | None:
    return None if generator is None else (str(generator.device), bytes(generator.get_state().tolist()))


def _unpacked(packed: tuple[str, bytes] | None) -> torch.Generator | None:
    if packed is None:
        return None
    device, state = packed
    generator = torch.Generator(device)
    generator.set_state(torch.tensor(list(state), dtype=torch.uint8))
    return generator


class Draws:
    """Draws for tensors on `device`, from `generator` or torch's global one, one after the other."""

    def __init__(self, device: torch.device, generator: torch.Generator | None) -> None:
        self.device = device
        self._from = generator, device if generator is None else generator.device
        self._last: Tensor | None = None

    def _deliver(self, drawn: Tensor) -> Tensor:
        self._last, home = drawn, drawn.device
        return drawn if home == self.device else drawn.to(self.device, non_blocking=home.type == "cpu")

    def lam(self, alpha: float, n: int | None) -> Tensor:
        """Weights ~ Beta(alpha, alpha), () or (n,) float32."""
        return self._deliver(_draws.lam(alpha, n, *self._from, self._last))

    def uniform(self, n: int | None = None) -> Tensor:
        """() or (n,) float32 in [0, 1)."""
        return self._deliver(_draws.uniform(_shape(n), *self._from, self._last))

    def integers(self, size: int | Tensor, n: int | None = None) -> Tensor:
        """() or (n,) int64 uniform in [0, size), size at least 1."""
        if isinstance(size, Tensor):
            return torch.minimum((self.uniform(n) * size).long(), size - 1)
        return self._deliver(_draws.integers(size, _shape(n), *self._from, self._last))

    def partners(self, pairing: str, batch_size: int) -> Tensor:
        """(B,) the partner of each sample: "perm" a random permutation, "flip" B - 1 - i, "roll" i - 1 modulo B."""
        if pairing == "perm":
            return self._deliver(_draws.permutation(batch_size, *self._from, self._last))
        if pairing == "flip":
            return torch.arange(batch_size - 1, -1, -1, device=self.device)
        return torch.arange(batch_size, device=self.device).roll(1)


def _shape(n: int | None) -> tuple[int, ...]:
    return () if n is None else (n,)
