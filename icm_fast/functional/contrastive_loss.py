"""The symmetric contrastive loss of two views, as CLIP uses it."""

from __future__ import annotations

from typing import Any, Literal, overload

from torch import Tensor

from .. import reference
from .._validate import check_choice, check_floating, check_same_device, describe
from ..operators import contrastive_loss as operator
from . import _dispatch

_WHERE = "contrastive_loss"


class _Options(_dispatch.ScoreOptions, total=False):
    bias: Tensor | None


@overload
def contrastive_loss(
    x: Tensor,
    y: Tensor,
    logit_scale: float | Tensor | None = None,
    *,
    return_terms: Literal[False] = False,
    **options: _dispatch.Unpack[_Options],
) -> Tensor: ...


@overload
def contrastive_loss(
    x: Tensor,
    y: Tensor,
    logit_scale: float | Tensor | None = None,
    *,
    return_terms: Literal[True],
    **options: _dispatch.Unpack[_Options],
) -> _dispatch.Terms: ...


def contrastive_loss(
    x: Tensor,
    y: Tensor,
    logit_scale: float | Tensor | None = None,
    *,
    bias: Tensor | None = None,
    axis: _dispatch.Axis = "both",
    reduction: _dispatch.Reduction = "mean",
    return_terms: bool = False,
    backend: str | None = None,
) -> Any:
    """Symmetric contrastive loss of two views: row i of `x` against every row of `y`, and the other way round.

    The two-axis cross-entropy of Infinite Class Mixup (Mensink & Mettes, BMVC 2023, eq. 5, 7, 9) on the scores of two
    views::

        Z[i,j] = s * (x_i . y_j + bias_j)                                s: logit_scale
        class  = mean_i(logsumexp_j Z[i,j] - Z[i,i])                     x_i among the rows of y
        pair   = mean_i(logsumexp_j Z[j,i] - Z[i,i])                     y_i among the rows of x
        both   = class + pair                                            the default: a sum, no half

    CLIP's loss (open_clip's ClipLoss) is half of "both", on normalised views. The (B, B) matrix is not held:
    blocks of its rows are matrix products of the framework, and formed again in the backward pass.

    Args:
        x: (B, K) float32, float64, bfloat16 or float16, any strides, differentiable.
        y: (B, K) of the same type and device, differentiable.
        logit_scale: multiplies the scores, bias included; a number or a 0-d tensor, differentiable: CLIP's is
            exp(parameter).
        bias: (B,) of the same type, one for each row of y; differentiable.
        axis: "both", "class" or "pair".
        reduction: "mean", "sum" (B times the mean) or "none": (B,), entry i = class term + pair term of row i.
        return_terms: also return the class and the pair term, detached.
        backend: None or "auto", "reference", "cpu", "triton", "cuda"; see `icm_fast.backends()`.

    Returns:
        The loss in nats, float32 (float64 for float64 views), shape () or (B,); with return_terms a tuple
        (loss, class term, pair term), the term of an axis that is not asked for being 0.

    Raises:
        TypeError: views that are not floating-point tensors.
        ValueError: shapes, types or devices that do not fit.
        RuntimeError: an explicit backend that is not available; differentiating a fused loss twice.

    Cost:
        Four products of 2*B*B*K operations for loss and both gradients (three for one of them), one fewer where the
        scores are kept, and 4*B*B exponentials. Extra memory: the gradients, and a block of scores, on a CPU of at most
        8 MB or 128 rows. All the scores, where they are one such block (B <= 1448), stay until the backward pass, which
        else forms them again.

    Numerics:
        The products are the framework's, in the type of the views or in autocast's, in float32 where a CPU has none of
        that type, and on one for up to 64 rows (96 of bfloat16), where `auto` takes the reference; sums in float32
        (float64 for float64), relative to exact maxima, so right for any range of scores. The same bits from run to run
        where the products are.

    Example:
        >>> x = torch.zeros(8, 3, requires_grad=True)
        >>> round(contrastive_loss(x, torch.zeros(8, 3), 10.0).item(), 4)        # 2 ln 8
        4.1589
    """
    _check_views(x, y, bias)
    check_choice(_WHERE, "axis", axis, _dispatch.AXIS_NAMES)
    check_choice(_WHERE, "reduction", reduction, _dispatch.REDUCTION_NAMES)
    scale = _dispatch.check_scale(_WHERE, x, logit_scale)
    name = _dispatch.backend_for(_WHERE, backend, x)
    if name == "reference" or _dispatch.functorch_active():
        return reference.contrastive_loss(
            x, y, scale, bias=bias, axis=axis, reduction=reduction, return_terms=return_terms
        )
    dtype = _dispatch.product_type(x)
    views = x.to(dtype), y.to(dtype), None if bias is None else bias.to(dtype)
    loss, terms = operator.contrastive_loss(name, *views, scale, axis, reduction)
    return (loss, terms[0], terms[1]) if return_terms else loss


def _check_views(x: Tensor, y: Tensor, bias: Tensor | None) -> None:
    check_floating(_WHERE, "x", x)
    check_floating(_WHERE, "y", y)
    if x.dim() != 2 or y.shape != x.shape:
        raise ValueError(f"{_WHERE}: expected x and y of one shape (B, K), got {describe(x)} and {describe(y)}")
    check_same_device(_WHERE, x=x, y=y)
    if y.dtype != x.dtype:
        raise ValueError(f"{_WHERE}: expected x and y of one type, got {describe(x)} and {describe(y)}")
    if bias is None:
        return
    check_floating(_WHERE, "bias", bias)
    if bias.shape != y.shape[:1] or bias.dtype != x.dtype:
        raise ValueError(f"{_WHERE}: expected bias of shape ({y.shape[0]},) and the type of y, got {describe(bias)}")
    check_same_device(_WHERE, x=x, bias=bias)
