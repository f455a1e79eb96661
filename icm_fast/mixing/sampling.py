"""Random draws of mixing.

They are made on the generator's device, without one on the device of the images from torch's global generator, and
copied to the images' device if that is another: from the CPU without waiting. Nothing is read back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..functional.sample_lam import draw_lam

PAIRINGS = ("perm", "flip", "roll")


@dataclass(frozen=True)
class Draws:
    """Draws for tensors on `device`, from `generator` or torch's global one."""

    device: torch.device
    generator: torch.Generator | None

    @property
    def _home(self) -> torch.device:
        return self.device if self.generator is None else self.generator.device

    def _deliver(self, drawn: Tensor) -> Tensor:
        home = drawn.device
        return drawn if home == self.device else drawn.to(self.device, non_blocking=home.type == "cpu")

    def lam(self, alpha: float, n: int | None) -> Tensor:
        """Weights ~ Beta(alpha, alpha), () or (n,) float32."""
        return self._deliver(draw_lam(alpha, n, self.generator, self._home))

    def uniform(self, n: int | None = None) -> Tensor:
        """() or (n,) float32 in [0, 1)."""
        shape = () if n is None else (n,)
        return self._deliver(torch.rand(shape, generator=self.generator, device=self._home))

    def integers(self, size: int | Tensor, n: int | None = None) -> Tensor:
        """() or (n,) int64 uniform in [0, size), size at least 1."""
        if isinstance(size, Tensor):
            return torch.minimum((self.uniform(n) * size).long(), size - 1)
        shape = () if n is None else (n,)
        return self._deliver(torch.randint(size, shape, generator=self.generator, device=self._home))

    def partners(self, pairing: str, batch_size: int) -> Tensor:
        """(B,) the partner of each sample: "perm" a random permutation, "flip" B - 1 - i, "roll" i - 1 modulo B."""
        if pairing == "perm":
            return self._deliver(torch.randperm(batch_size, generator=self.generator, device=self._home))
        if pairing == "flip":
            return torch.arange(batch_size - 1, -1, -1, device=self.device)
        return torch.arange(batch_size, device=self.device).roll(1)
