"""The executable specification: every loss and mixing of the package in plain PyTorch.

Nothing is fused or clever here, and (B, B) scores do exist. Equation numbers are those of the Infinite
Class Mixup paper (arXiv 2305.10293), section numbers (spec §) those of the project's specification. Everything
is differentiable twice, runs on any device and reads nothing back to the host. A mixed target is any
object with y_a, y_b and lam; `lam` is always the weight of the sample itself.
"""

from ._common import TwoHot
from .am_mixup_loss import am_mixup_loss, am_mixup_rate
from .contrastive_loss import contrastive_loss
from .icm_loss import icm_loss, score_loss
from .linear_icm_loss import linear_icm_loss, mixed_classifiers
from .mixed_logits import mixed_logits
from .mixup import cutmix_box, mixup
from .mixup_cross_entropy import mixup_cross_entropy
from .remix import remix_lam

__all__ = [
    "TwoHot",
    "am_mixup_loss",
    "am_mixup_rate",
    "contrastive_loss",
    "cutmix_box",
    "icm_loss",
    "linear_icm_loss",
    "mixed_classifiers",
    "mixed_logits",
    "mixup",
    "mixup_cross_entropy",
    "remix_lam",
    "score_loss",
]
