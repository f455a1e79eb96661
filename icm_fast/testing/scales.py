"""The floor of the budget, in units of eps, derived for each operation element by element from the truth.

For a softmax P over scores z <= m, where m bounds the logits that the scores are mixed from, X = m - z:

    exponents   a score's distance to m is formed by S - m, times log2(e) and the scale (themselves rounded), times
                its weight (1 - lam is rounded), and summed by a fused multiply-add; on the pair axis the distance
                of the row's m to the batch's is added. All parts have one sign, so nothing cancels: 10
                roundings, 10 u X = 5 eps X. To first order P changes by
                5 eps P ((1 - P) X + sum over the others of P X).
    sums        rounding n positive terms into a sum leaves less than 4 sqrt(n) u = 2 eps sqrt(n) of it with
                probability 1 - 2 exp(-8) (Higham and Mary, SIAM J. Sci. Comput. 41, 2019).
    operations  two exponentials of 2 ulp, their product, a division, a product with the weight: 10 u = 5 eps.
    flushing    one exponential may serve both axes as long as each sum of n terms loses less than its own
                rounding: every P may be off by a further share 1/n of the last two.

A truth in float64 is no more exact than what it is compared with, and it mixes before it subtracts: there the
magnitude of the scores joins X, and budget.check doubles the floor.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from icm_fast.reference import TwoHot, mixed_logits
from icm_fast.reference._common import Target

EXPONENTS, OPERATIONS, SUMS = 5.0, 5.0, 2.0


class Scales(NamedTuple):
    """Allowed errors in units of eps."""

    loss: Tensor  # () or (R,)
    dlogits: Tensor  # (R, C)
    dscale: Tensor  # (), of the gradient of logit_scale


def on_cpu(target: Target) -> Target:
    if isinstance(target, Tensor):
        return target.cpu()
    return TwoHot(target.y_a.cpu(), target.y_b.cpu(), target.lam.cpu())


def dense(target: Target, num_classes: int) -> Tensor:
    """Y (N, C) in float64."""
    if isinstance(target, Tensor):
        if target.is_floating_point():
            return target.double()
        return F.one_hot(target.long(), num_classes).double()
    w = target.lam.double().expand(target.y_a.shape)[:, None]
    Y: Tensor = w * F.one_hot(target.y_a.long(), num_classes) + (1 - w) * F.one_hot(target.y_b.long(), num_classes)
    return Y


def rounds(terms: int) -> float:
    """Relative error of a probability from the operations and a sum of so many terms."""
    return OPERATIONS + SUMS * terms**0.5


class _Softmax(NamedTuple):
    """A softmax over the last dimension of -X, and the errors of what is made of it."""

    P: Tensor  # (k, n)
    X: Tensor  # (k, n), 0 where the score is not finite
    probability: Tensor  # (k, n)
    lse: Tensor  # (k,)


def _softmax(distance: Tensor, extra: float) -> _Softmax:
    """`extra` joins every distance."""
    n = distance.shape[-1]
    X = torch.where(distance.isfinite(), distance, 0.0) + extra
    P = (-distance).softmax(-1).nan_to_num(0.0)
    mean = (P * X).sum(-1, keepdim=True)
    probability = EXPONENTS * P * ((1 - P) * X + mean - P * X) + rounds(n) * (P + 1 / max(n, 1))
    return _Softmax(P, X, probability, EXPONENTS * mean[:, 0] + rounds(n))


def _largest(values: Tensor) -> Tensor:
    """Largest finite value of each row (rows, 1), 0 if there is none."""
    if values.shape[1] == 0:
        return values.new_zeros(values.shape[0], 1)
    return torch.where(values.isfinite(), values, -torch.inf).amax(1, keepdim=True).nan_to_num(0.0, 0.0, 0.0)


def _extra(values: Tensor, target: Target, acc_dtype: torch.dtype) -> float:
    """What the magnitude of the scores adds to every distance: nothing, unless something mixes first."""
    magnitude = _largest(values.abs()).amax().item() if values.shape[0] else 0.0
    truth = magnitude if acc_dtype == torch.float64 else 0.0
    matmul = magnitude * values.shape[1] ** 0.5 if isinstance(target, Tensor) else 0.0  # a sum of C terms
    return truth + matmul


def incoming(grad_output: Tensor | None, rows: int, reduction: str) -> Tensor:
    """|dL/d(term of row i)| (rows,), whatever the reduction."""
    g = torch.ones(()) if grad_output is None else grad_output.detach()
    g = g.to("cpu", torch.float64).abs()
    return (g / max(rows, 1) if reduction == "mean" else g).expand(rows)


def reduced(errors: Tensor, terms: Tensor, reduction: str) -> Tensor:
    """Error of the reduced loss: that of its entries, and the rounding of the sum itself."""
    if reduction == "none":
        return errors
    n = errors.numel()
    total = errors.sum() + SUMS * n**0.5 * terms.abs().nan_to_num(0.0, 0.0, 0.0).sum()
    return total / max(n, 1) if reduction == "mean" else total


def icm_loss_scales(
    logits: Tensor,
    target: Target,
    terms: Tensor,
    *,
    axis: str,
    reduction: str,
    acc_dtype: torch.dtype,
    grad_output: Tensor | None = None,
    logit_scale: float = 1.0,
    diagonal: int = 0,
    score_error: float = 0.0,
) -> Scales:
    """For icm_loss on rows x all columns, everything on the CPU; `terms` (R,) is the true unreduced loss.

    `score_error` joins every distance: for scores that are themselves inexact.
    """
    S = logits.detach().to("cpu", torch.float64)
    Y = dense(target, S.shape[1])
    Z = mixed_logits(S, target) * logit_scale
    rows, cols = Z.shape
    used = S[:, (Y > 0).any(0)]
    M, extra = _largest(used * logit_scale), _extra(used * logit_scale, target, acc_dtype) + score_error
    own, square = torch.arange(rows), slice(diagonal, diagonal + rows)
    per_term = 1 + SUMS * cols**0.5  # of each entry of dZ in the sum over a class's columns

    g = incoming(grad_output, rows, reduction)
    errors, dz = terms.abs().nan_to_num(0.0, 0.0, 0.0), torch.zeros_like(Z)
    if axis != "pair":
        soft = _softmax(M - Z, extra)
        dz += g[:, None] * (soft.probability + per_term * soft.P)
        errors = errors + _term_errors(soft, diagonal)
    if axis != "class" and rows:
        soft = _softmax((M.max() - Z[:, square]).T, extra)
        dz[:, square] += (g[:, None] * (soft.probability + per_term * soft.P)).T
        errors = errors + _term_errors(soft, 0)
    dz[own, diagonal + own] += (2 if axis == "both" else 1) * per_term * g  # the ones subtracted
    return Scales(
        loss=reduced(errors, terms, reduction),
        dlogits=(dz @ Y) * abs(logit_scale),
        dscale=(dz.sum(1, keepdim=True) * _largest(used.abs())).sum(),
    )


def _term_errors(soft: _Softmax, diagonal: int) -> Tensor:
    """Of log(sum) - x_ii, where x_ii is in both, and the logarithm, up to X in size, is rounded."""
    X, P = soft.X.diagonal(diagonal), soft.P.diagonal(diagonal)
    return soft.lse + EXPONENTS * X * (1 - P) + X


def cross_entropy_scales(
    logits: Tensor,
    target: Target,
    terms: Tensor,
    *,
    reduction: str,
    acc_dtype: torch.dtype,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    grad_output: Tensor | None = None,
) -> Scales:
    """For mixup_cross_entropy, everything on the CPU; `terms` (B,) is the true unreduced loss. `dscale` is 0."""
    S = logits.detach().to("cpu", torch.float64)
    batch_size, num_classes = S.shape
    w = torch.ones(num_classes) if weight is None else weight
    wq = w.double() * ((1 - label_smoothing) * dense(target, num_classes) + label_smoothing / num_classes)
    extra = _largest(S.abs()).amax().item() if acc_dtype == torch.float64 and batch_size else 0.0
    soft = _softmax(_largest(S) - S, extra)
    total = wq.sum(1, keepdim=True)  # the weight of the softmax in the gradient of row i
    each = soft.lse[:, None] + (EXPONENTS + 1) * soft.X + rounds(num_classes)
    errors = (wq * each).sum(1) + terms.abs().nan_to_num(0.0, 0.0, 0.0)
    entry = total * soft.probability + rounds(num_classes) * (total * soft.P + wq)
    g = incoming(grad_output, batch_size, reduction)
    zero = torch.zeros((), dtype=torch.float64)
    return Scales(loss=reduced(errors, terms, reduction), dlogits=g[:, None] * entry, dscale=zero)
