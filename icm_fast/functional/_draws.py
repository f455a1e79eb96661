"""Random numbers on a generator's device, or from torch's global generator on a given one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operators.draws import integers as integers
from ..operators.draws import permutation as permutation
from ..operators.draws import uniform as uniform
from ..operators.draws import weights


def lam(
    alpha: float,
    n: int | None,
    generator: torch.Generator | None,
    device: torch.device,
    after: Tensor | None = None,
) -> Tensor:
    """Weights ~ Beta(alpha, alpha), () or (n,) float32, rounded once."""
    shape = (2,) if n is None else (n, 2)
    return weights(float(alpha), shape, generator, device, after)[..., 0].float()
