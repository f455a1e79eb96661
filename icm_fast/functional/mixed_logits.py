"""Scores of the mixed classes, to look at."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from ..target import MixedTarget
from . import _dispatch

_WHERE = "mixed_logits"


def mixed_logits(logits: Tensor, target: MixedTarget | Tensor) -> Tensor:
    """Score every mixed image by every mixed class of its batch: what `icm_loss` never stores, to look at.

    `lam` of the target is the weight of the sample ITSELF. With S the logits (Mensink & Mettes, BMVC 2023, eq. 3)::

        Z[i,j] = lam_j * S[i, y_a[j]] + (1 - lam_j) * S[i, y_b[j]]       image i, mixed classifier j

    Args:
        logits: (B, C) float32, float64, bfloat16 or float16, any strides, differentiable.
        target: `MixedTarget`, a float tensor (B, C) of dense targets, or an integer tensor (B,) of pure classes.

    Returns:
        Z (B, B): rows are images, columns are mixed classes; float32 (float64 for float64 logits).

    Raises:
        TypeError: logits or target of a wrong type, a tuple as target, a target that requires grad.
        ValueError: shapes or devices that do not fit; on the CPU in eager mode also a label outside [0, C) or a lam
            outside [0, 1] or NaN. Elsewhere bad values give NaN.

    Cost:
        O(B*B) memory by definition, a few arrays of that size: plain PyTorch on every device.

    Numerics:
        In float32 (float64 for float64). A class of weight exactly 0 takes no part; dense targets follow matmul.

    Example:
        >>> logits = torch.tensor([[0.0, 4.0, 8.0], [4.0, 0.0, 0.0]])
        >>> mixed_logits(logits, MixedTarget(torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor(0.75)))
        tensor([[1., 5.],
                [3., 0.]])
    """
    _dispatch.check_logits(_WHERE, logits)
    _dispatch.target_kind(_WHERE, logits, target)
    scores = reference.mixed_logits(logits, target)
    if isinstance(target, MixedTarget) and _dispatch.reads_values(logits):
        _dispatch.explain_nan(_WHERE, scores.detach(), logits.shape[1], target)
    return scores
