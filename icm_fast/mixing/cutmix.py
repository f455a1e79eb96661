"""Boxes of CutMix."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional.cutmix_box import cutmix_box
from .sampling import Draws


def draw_box(draws: Draws, alpha: float, height: int, width: int, n: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """One box or n: (4,) or (n, 4); the lam that was drawn, and the share that the clipped box leaves."""
    lam = draws.lam(alpha, n)
    centre_y, centre_x = draws.integers(height, n), draws.integers(width, n)
    box, share = cutmix_box(lam, height, width, centre_y, centre_x)
    return box, lam, share


def draw_box_between(
    draws: Draws, minmax: tuple[float, float], height: int, width: int, n: int | None
) -> tuple[Tensor, Tensor]:
    """Boxes whose sides are uniform between two shares of the image's, wholly inside it; and the share left."""
    edges, sides = [], []
    for size in (height, width):
        least, most = (int(share * size) for share in minmax)
        side = least + draws.integers(most - least + 1, n)
        start = draws.integers(size - side + 1, n)
        edges += [start, start + side]
        sides.append(side)
    area = (sides[0] * sides[1]).double() if draws.device.type != "mps" else (sides[0] * sides[1]).float()
    return torch.stack(edges, dim=-1), (1 - area / (height * width)).float()
