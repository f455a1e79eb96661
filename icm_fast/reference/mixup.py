"""Mixing of a batch with itself: Mixup, CutMix, RegMixup's pair of batches (spec §3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._common import accumulation_dtype, in_range, is_weight

PerChannel = Tensor | Sequence[float]


def cutmix_box(
    lam: Tensor, height: int, width: int, centre_y: Tensor | int, centre_x: Tensor | int
) -> tuple[Tensor, Tensor]:
    """The CutMix box and the corrected lam, the weight of the sample ITSELF: the box is the partner's.

    The box has sides sqrt(1 - lam) of the image's, lies around the centre and is clipped to the image:

        h = floor(height * sqrt(1 - lam) / 2)      y1 = max(centre_y - h, 0)    y2 = min(centre_y + h, height)

    and alike in x; afterwards lam = 1 - (y2 - y1)(x2 - x1) / (height * width)                   (spec §3)

    Args:
        lam: () or (B,), the wanted share of the sample's own pixels.
        height, width: of the images, in pixels.
        centre_y, centre_x: int or integer tensor, both () or both (B,): pixels, to be drawn uniformly from
            [0, height) and [0, width).

    Returns:
        box (4,) or (B, 4) int64: y1, y2, x1, x2, half-open; and lam () or (B,), in lam's type, NaN
        where the given one was not in [0, 1].

    Cost:
        O(B).

    Numerics:
        The sides in float64, so that the box does not depend on the device.

    Example:
        >>> import torch
        >>> from icm_fast.reference import cutmix_box
        >>> cutmix_box(torch.tensor(0.75), 8, 8, 4, 7)  # a 4 x 4 box, clipped to 4 x 3
        (tensor([2, 6, 5, 8]), tensor(0.8125))
    """
    side = (1 - lam.to(torch.float64)).clamp(0, 1).nan_to_num().sqrt()
    edges = []
    for size, centre in ((height, centre_y), (width, centre_x)):
        half = (side * size / 2).floor().long()
        edges += [(centre - half).clamp(0, size), (centre + half).clamp(0, size)]
    box = torch.stack(edges, dim=-1)
    y1, y2, x1, x2 = box.unbind(-1)
    share = 1 - ((y2 - y1) * (x2 - x1)).to(torch.float64) / (height * width)
    return box, torch.where(is_weight(lam), share, float("nan")).to(lam.dtype)


def mixup(
    x: Tensor,
    index: Tensor,
    lam: Tensor | float,
    *,
    box: Tensor | None = None,
    mean: PerChannel | None = None,
    std: PerChannel | None = None,
    keep_clean: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Mix every sample with its partner; lam weighs the sample ITSELF, the partner weighs 1 - lam.

        out_i = lam_i x_i + (1 - lam_i) x_index(i)                                        (spec §3, Mixup)

    With a box, pixels inside it come from the partner and all others from the sample (CutMix), and lam
    is not applied. uint8 input is normalised after mixing: out = (mix / 255 - mean) / std.

    Laws, exact: lam = 1, or index[i] = i, gives x_i bit for bit; lam = 0 gives x_index(i) bit for bit; and
    what takes no part is not read: its NaN does not show, in the output or the gradient.

    Args:
        x: (B, ...), floating-point, then differentiable also twice, or uint8 (B, C, ...).
        index: (B,) integers, a permutation or not.
        lam: () or (B,) in [0, 1], float32, or float64 for float64 samples; or a float.
        box: (4,) or (B, 4) int64 y1, y2, x1, x2, half-open, over the last two dimensions of x.
        mean, std: one number per channel (dimension 1), in units of the 0..1 pixel scale; uint8 only.
        keep_clean: return the (normalised) clean samples too, in front: RegMixup's 2B samples.
        dtype: type of the result for uint8 input; float32 if not given.

    Returns:
        (B, ...), or (2B, ...) with keep_clean: clean, then mixed; in x's type, or `dtype` for uint8. A
        sample whose lam is not in [0, 1], or whose index is not in [0, B), is NaN.

    Raises:
        TypeError: uint8 without mean and std, or mean, std or dtype with another type.

    Cost:
        About five arrays of x's size.

    Numerics:
        Mixed in float32, or float64 for float64 results, and rounded once.

    Example:
        >>> import torch
        >>> from icm_fast.reference import mixup
        >>> mixup(torch.tensor([[0.0], [1.0]]), torch.tensor([1, 0]), torch.tensor(0.75))
        tensor([[0.2500],
                [0.7500]])
    """
    is_bytes = x.dtype == torch.uint8
    if is_bytes and (mean is None or std is None):
        raise TypeError("mixup: uint8 input needs mean and std")
    if not is_bytes and not (mean is None and std is None and dtype is None):
        raise TypeError(f"mixup: mean, std and dtype go with uint8 input, got {x.dtype}")
    out_dtype = (dtype or torch.float32) if is_bytes else x.dtype
    acc = accumulation_dtype(out_dtype)

    # Widened before the gather, so that the gradient too is summed in the wider type and rounded once.
    own = x.to(acc)
    other = own.index_select(0, index.long().clamp(0, max(x.shape[0] - 1, 0)))
    w, is_own = _weights(x, index, lam, box, acc)
    out = torch.where(is_own, own, torch.where(w == 0, other, w * own + (1 - w) * other))

    if mean is not None and std is not None:
        shape = (-1, *(1,) * (x.ndim - 2))
        shift, divisor = (torch.as_tensor(v, dtype=acc, device=x.device).reshape(shape) for v in (mean, std))
        out, own = (out / 255 - shift) / divisor, (own / 255 - shift) / divisor
    return (torch.cat([own, out]) if keep_clean else out).to(out_dtype)


def _weights(
    x: Tensor, index: Tensor, lam: Tensor | float, box: Tensor | None, acc: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Own weight of every sample (with a box: of every pixel), NaN where bad, and where out is x itself."""
    batch_size, device = x.shape[0], x.device
    per_sample = (-1, *(1,) * (x.ndim - 1))
    if box is None:
        w = torch.as_tensor(lam, dtype=acc, device=device).reshape(per_sample)
    else:
        y1, y2, x1, x2 = box.reshape(-1, *(1,) * (x.ndim - 1), 4).unbind(-1)
        row = torch.arange(x.shape[-2], device=device)[:, None]
        col = torch.arange(x.shape[-1], device=device)
        inside = (row >= y1) & (row < y2) & (col >= x1) & (col < x2)
        w = 1 - inside.to(acc)
    valid = is_weight(w) & in_range(index, batch_size).reshape(per_sample)
    w = torch.where(valid, w, float("nan"))
    fixed = (index == torch.arange(batch_size, device=device)).reshape(per_sample)
    return w, (w == 1) | (fixed & valid)
