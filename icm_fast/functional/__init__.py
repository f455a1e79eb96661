"""The public functions: documentation, validation, dispatch."""

from .am_mixup_loss import am_mixup_loss
from .contrastive_loss import contrastive_loss
from .cutmix_box import cutmix_box
from .icm_loss import icm_loss
from .linear_icm_loss import linear_icm_loss
from .mixed_logits import mixed_logits
from .mixup import mixup
from .mixup_cross_entropy import mixup_cross_entropy
from .remix import remix_lam
from .sample_lam import sample_lam

__all__ = [
    "am_mixup_loss",
    "contrastive_loss",
    "cutmix_box",
    "icm_loss",
    "linear_icm_loss",
    "mixed_logits",
    "mixup",
    "mixup_cross_entropy",
    "remix_lam",
    "sample_lam",
]
