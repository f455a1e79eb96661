"""The loss of Asymptotic Midpoint Mixup."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from .. import reference
from .._validate import as_scalar, check_choice, check_label_values, check_labels, check_same_device, describe
from ..operators import am_mixup_loss as operator
from ..operators._library import accumulation_type
from . import _dispatch

_WHERE = "am_mixup_loss"


def am_mixup_loss(
    logits: Tensor,
    index: Tensor,
    rate: float | Tensor,
    labels: Tensor,
    *,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    """Cross-entropy of logits mixed by ONE rate against ONE hard label a row, fused: mixed rows are never stored.

    `rate` is the weight of the sample ITSELF. With S the logits of the unmixed features and r the rate
    (Asymptotic Midpoint Mixup, arXiv 2401.14696)::

        M_i     = r * S_i + (1 - r) * S_index(i)
        label_i = y_i if r >= 0.5 else y_index(i)
        loss_i  = CE(M_i, label_i)

    The method mixes the features before a linear head; the head is linear, so mixing its logits is the same.

    Args:
        logits: (B, C) float32, float64, bfloat16 or float16, any strides, differentiable. -inf masks a class.
        index: (B,) integers, the partner of each sample; a permutation or not.
        rate: in [0, 1], a number or a 0-d floating-point tensor, not differentiable; see `AMMixup.rate`.
        labels: (B,) integer labels of the unmixed samples.
        reduction: "mean", "sum" or "none" (B,).
        backend: None or "auto", "reference", "cpu", "triton", "cuda"; see `icm_fast.backends()`.

    Returns:
        The loss in nats, float32 (float64 for float64 logits), shape () or (B,).

    Raises:
        TypeError: logits, index, rate or labels of a wrong type, a rate that requires grad.
        ValueError: shapes or devices that do not fit; a rate given as a number outside [0, 1]; on the CPU in eager
            mode also a label outside [0, C), an index outside [0, B) or a rate outside [0, 1] or NaN. Elsewhere bad
            values give NaN loss and NaN gradient, never a bad access.
        RuntimeError: an explicit backend that is not available; differentiating a fused loss twice.

    Cost:
        Every row of logits is read twice per pass, as itself and as a partner; 3*B*C exponentials. Extra memory: the
        gradient (B*C) and O(B + threads * C). Plain PyTorch: some eight (B, C) arrays.

    Numerics:
        Mixing and sums in float32 (float64 for float64), gradient rounded once to the logits' type; where several
        samples share a partner their parts are added in ascending order. A row of weight exactly 0 takes no part.
        The same bits from run to run and for any number of threads.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]], requires_grad=True)
        >>> loss = am_mixup_loss(logits, torch.tensor([1, 0]), 0.5, torch.tensor([0, 1]))
        >>> round(loss.item(), 4)                        # equal mixed logits: ln 2
        0.6931
        >>> loss.backward()
        >>> logits.grad.shape
        torch.Size([2, 2])
    """
    _dispatch.check_logits(_WHERE, logits)
    index = _one_per_row("index", index, logits)
    rate = _rate(rate, logits)
    labels = _one_per_row("labels", labels, logits)
    check_choice(_WHERE, "reduction", reduction, _dispatch.REDUCTION_NAMES)
    name = _dispatch.backend_for(_WHERE, backend, logits)
    if name == "reference" or _dispatch.functorch_active():
        loss = reference.am_mixup_loss(logits, index, rate, labels, reduction=cast(Any, reduction))
    else:
        loss = operator.am_mixup_loss(name, logits, index, rate, labels, reduction)
    if _dispatch.reads_values(logits) and _dispatch.any_nan(loss):
        _check_values(logits, index, rate, labels)
    return loss


def _one_per_row(name: str, value: Any, logits: Tensor) -> Tensor:
    value = check_labels(_WHERE, name, value)
    if value.shape[0] != logits.shape[0]:
        raise ValueError(f"{_WHERE}: logits has {logits.shape[0]} rows but {name} has {value.shape[0]}")
    check_same_device(_WHERE, logits=logits, **{name: value})
    return value


def _rate(rate: Any, logits: Tensor) -> Tensor:
    """A 0-d tensor, float32 or float64."""
    if isinstance(rate, Tensor):
        if rate.dim() != 0 or not rate.is_floating_point():
            raise TypeError(f"{_WHERE}: expected rate to be a number or a 0-d float tensor, got {describe(rate)}")
        if rate.requires_grad:
            raise TypeError(f"{_WHERE}: rate requires grad, but it carries no gradient; pass rate.detach()")
        check_same_device(_WHERE, logits=logits, rate=rate)
        return rate if rate.dtype in (torch.float32, torch.float64) else rate.float()
    if isinstance(rate, bool) or not isinstance(rate, (int, float)):
        raise TypeError(f"{_WHERE}: expected rate to be a number or a 0-d float tensor, got {describe(rate)}")
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"{_WHERE}: expected rate in [0, 1], got {rate!r}")
    return as_scalar(rate, accumulation_type(logits.dtype), logits.device)


def _check_values(logits: Tensor, index: Tensor, rate: Tensor, labels: Tensor) -> None:
    """A NaN logit is the caller's and passes."""
    batch_size = logits.shape[0]
    bad = (index < 0) | (index >= batch_size)
    if bool(bad.any()):
        at = int(bad.nonzero()[0])
        raise ValueError(f"{_WHERE}: expected index in [0, {batch_size}), got index[{at}] = {int(index[at])}")
    if not 0.0 <= float(rate) <= 1.0:
        raise ValueError(f"{_WHERE}: expected rate in [0, 1], got {float(rate)}")
    check_label_values(_WHERE, "labels", labels, logits.shape[1])
