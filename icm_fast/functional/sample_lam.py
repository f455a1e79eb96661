"""Random mixing weights."""

from __future__ import annotations

import torch
from torch import Tensor

from .._validate import check_number, describe
from . import _draws

_WHERE = "sample_lam"


def sample_lam(
    alpha: float,
    n: int | None = None,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw mixing weights lam ~ Beta(alpha, alpha), each the weight of the sample ITSELF.

    Args:
        alpha: positive. 1 is uniform; below 1 most weights are near 0 or 1, above 1 near 1/2.
        n: how many; None for a single one of shape ().
        generator: where the randomness comes from; default: torch's global generator of the device.
        device: of the result. Default: the generator's, else the CPU. A generator of another device draws there, and
            the result is copied.

    Returns:
        () or (n,) float32 in [0, 1].

    Raises:
        TypeError, ValueError: alpha or n that is not a positive number or a count.

    Cost:
        O(n), one small draw; from a generator of another device one copy, from a CPU one without waiting.

    Numerics:
        Drawn in float64, so that a small alpha does not underflow to 0/0 (float32 on devices without float64), rounded
        once: weights of exactly 0 and 1 occur.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> lam = sample_lam(0.2, 3, generator=generator)
        >>> lam.shape, bool(((lam >= 0) & (lam <= 1)).all())
        (torch.Size([3]), True)
    """
    check_number(_WHERE, "alpha", alpha, least=0, exclusive=True)
    if n is not None and (isinstance(n, bool) or not isinstance(n, int)):
        raise TypeError(f"{_WHERE}: expected n to be an integer or None, got {describe(n)}")
    if n is not None and n < 0:
        raise ValueError(f"{_WHERE}: expected n >= 0, got {n}")
    target = torch.device(device) if device is not None else generator.device if generator else torch.device("cpu")
    home = target if generator is None else generator.device
    lam = _draws.lam(alpha, n, generator, home)
    return lam if home == target else lam.to(target, non_blocking=home.type == "cpu")
