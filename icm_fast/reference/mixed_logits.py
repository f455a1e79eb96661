"""Scores of the mixed classes: equation 3."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import Target, TwoHot, accumulation_dtype, columns, dense_target, one, without_autocast


def mixed_logits(logits: Tensor, target: Target) -> Tensor:
    """Score every image by every mixed class of the batch; lam weighs the sample itself (y_a).

    The mixed class j is described by row j of Y, and its classifier is the same mixture of the
    original classifiers (paper, eq. 2), so its score is that mixture of the original scores:

        Z[i, j] = sum_c S[i, c] Y[j, c] = lam_j S[i, y_a[j]] + (1 - lam_j) S[i, y_b[j]]         (eq. 3)

    Args:
        logits: S (B, C), any floating type and strides; differentiable.
        target: a mixed target with y_a (N,), y_b (N,), lam () or (N,); or dense Y (N, C), of any
            support; or integer labels (N,), which are pure classes. N may differ from B. Labels and
            lam are not checked on the host: a bad one makes Z and its gradient NaN (spec §2.6).

    Returns:
        Z (B, N): rows are images, columns are mixed classes; float32, or float64 for float64 logits.

    Raises:
        TypeError: logits not floating-point, or a target of none of the three kinds.
        ValueError: a target that requires a gradient, or of a wrong shape.

    Cost:
        O(B N) memory by definition, a few arrays of that size.

    Numerics:
        A class of weight exactly 0 takes no part, whatever its logit (spec §2.4, §2.7). Dense targets
        follow matmul: there 0 * (-inf) is NaN.

    Example:
        >>> import torch
        >>> from icm_fast.reference import TwoHot, mixed_logits
        >>> S = torch.tensor([[0.0, 4.0, 8.0]])
        >>> mixed_logits(S, TwoHot(torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor(0.75)))
        tensor([[1., 5.]])
    """
    dtype = accumulation_dtype(logits.dtype)
    scores = logits.to(dtype)  # S
    if isinstance(target, Tensor):
        if target.is_floating_point():
            with without_autocast(scores.device):
                return scores @ dense_target(target, dtype).T
        target = TwoHot(target, target, torch.ones((), device=target.device))
    cols = columns(target, scores.shape[1], dtype)
    scores = scores * one(cols.valid)
    return cols.blend(scores.index_select(1, cols.first), scores.index_select(1, cols.second))
