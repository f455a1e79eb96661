"""Mixing of a batch with itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..operators import mixup as operator
from . import _dispatch, _mixing

_WHERE = "mixup"
PerChannel = Tensor | Sequence[float]


def mixup(
    x: Tensor,
    index: Tensor,
    lam: float | Tensor,
    *,
    box: Tensor | None = None,
    mean: PerChannel | None = None,
    std: PerChannel | None = None,
    keep_clean: bool = False,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Mix every sample with its partner in one pass; `lam` weighs the sample ITSELF, the partner weighs 1 - lam.

    ::

        out[i] = lam[i] * x[i] + (1 - lam[i]) * x[index[i]]

    With a box, pixels inside it come from the partner and all others from the sample (CutMix); lam is then not applied
    to pixels. uint8 samples are normalised in the same pass: out = (mix / 255 - mean) / std. Exact laws: lam = 1, or
    index[i] = i, copies x[i] bit for bit and lam = 0 copies x[index[i]]; what takes no part is not read, so that its
    NaN shows neither in the output nor in the gradient.

    Args:
        x: (B, ...) images, features or anything else: float32, float64, bfloat16 or float16, then differentiable, any
            number of times; or uint8 (B, C, ...). Never modified. Any strides: samples that are dense in memory, in
            any order of their dimensions (channels_last too), keep their layout, others are copied once.
        index: (B,) integers of any width: the partner of each sample, a permutation or not.
        lam: in [0, 1]: a number, or a float tensor () for the batch or (B,) per sample. No gradient flows to it.
        box: (4,) or (B, 4) integers y1, y2, x1, x2, half-open, over the last two dimensions, clipped to the image.
        mean, std: one number per channel (dimension 1), in units of the 0..1 pixel scale; with uint8 only. A tensor
            on x's device saves a copy per call.
        keep_clean: return 2B samples: the (normalised) clean ones in front of the mixed ones, as RegMixup needs.
        dtype: floating-point type of the result for uint8 samples; float32 if not given.
        out: where to write the result: its shape, type and device; not overlapping x. Then nothing is differentiable.
        backend: None or "auto", "reference", "cpu", "triton", "cuda"; see `icm_fast.backends()`.

    Returns:
        (B, ...) or (2B, ...), in x's type, or `dtype` for uint8.

    Raises:
        TypeError: types that do not fit; uint8 without mean and std; a lam that requires grad.
        ValueError: shapes or devices that do not fit, an out that overlaps x; on the CPU in eager mode also an index
            outside [0, B) or a lam outside [0, 1] or NaN. Elsewhere such a sample of the result, and its gradient, is
            NaN, and nothing out of range is read.
        RuntimeError: an explicit backend that is not available; out with an x that requires grad.

    Cost:
        x is read once, and again from a core's own cache, as index leads from a sample to its partner; the result is
        written once. No other array. Plain PyTorch: four arrays of x's size, eight with keep_clean and uint8.

    Numerics:
        Mixed in float32 (float64 for float64 results) and rounded once; the gradient likewise, its terms added in
        ascending order of the samples that a partner is shared by. The same bits for any number of threads.

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> mixup(x, torch.tensor([1, 0]), 0.75)
        tensor([[0.2500],
                [0.7500]])
    """
    x = _mixing.check_samples(_WHERE, x)
    index = _mixing.check_index(_WHERE, x, index)
    out_dtype = _mixing.check_pixels(_WHERE, x, mean, std, dtype)
    weight = _mixing.check_lam(_WHERE, x, lam, out_dtype)
    box = None if box is None else _mixing.check_box(_WHERE, x, box)
    if out is not None:
        _mixing.check_out(_WHERE, x, out, out_dtype, keep_clean)
    if _dispatch.reads_values(x):
        _mixing.check_values(_WHERE, index, weight)
    return mix_samples(
        x,
        index,
        weight if box is None else None,
        box,
        mean=mean,
        std=std,
        keep_clean=keep_clean,
        dtype=out_dtype,
        out=out,
        backend=backend,
    )


def mix_samples(
    x: Tensor,
    index: Tensor,
    lam: Tensor | None,
    box: Tensor | None,
    *,
    mean: PerChannel | None,
    std: PerChannel | None,
    keep_clean: bool,
    dtype: torch.dtype,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """`mixup` of checked arguments, some samples with a box and some with a lam.

    lam must be 1 where a sample has a box, None if all have; a box without pixels is none.
    """
    name = _dispatch.backend_for(_WHERE, backend, x)
    if name == "reference" or _dispatch.functorch_active():
        result = _reference(x, index, lam, box, mean, std, keep_clean, dtype)
        return result if out is None else out.copy_(result)
    is_bytes = x.dtype == torch.uint8
    if lam is None:
        lam = torch.ones((), dtype=torch.float32, device=x.device)
    means, stds = (None if v is None else torch.as_tensor(v, device=x.device) for v in (mean, std))
    if out is not None and operator.fits(out, x, box is not None):
        operator.mixup_out(name, out, x, index, lam, box, means, stds, keep_clean)
        return out
    result = operator.mixup(name, x, index, lam, box, means, stds, keep_clean, dtype if is_bytes else None)
    return result if out is None else out.copy_(result)


def _reference(
    x: Tensor,
    index: Tensor,
    lam: Tensor | None,
    box: Tensor | None,
    mean: PerChannel | None,
    std: PerChannel | None,
    keep_clean: bool,
    dtype: torch.dtype,
) -> Tensor:
    pixels: dict[str, Any] = {} if x.dtype != torch.uint8 else {"mean": mean, "std": std, "dtype": dtype}
    if box is None or lam is None:
        weight = 1.0 if lam is None else lam
        return reference.mixup(x, index, weight, box=box, keep_clean=keep_clean, **pixels)
    blended = reference.mixup(x, index, lam, keep_clean=keep_clean, **pixels)
    boxed = reference.mixup(x, index, lam, box=box, keep_clean=keep_clean, **pixels)
    y1, y2, x1, x2 = box.expand(len(x), 4).unbind(-1)
    has_box = ((y1 < y2) & (x1 < x2)).reshape(-1, *(1,) * (x.dim() - 1))
    return torch.where(torch.cat([has_box, has_box]) if keep_clean else has_box, boxed, blended)
