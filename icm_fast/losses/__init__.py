"""The losses as modules, for use as a criterion in training and in evaluation."""

from .icm_loss import ICMLoss
from .linear_icm_loss import LinearICMLoss
from .mixup_cross_entropy import MixupCrossEntropyLoss
from .regmixup import RegMixupLoss

__all__ = ["ICMLoss", "LinearICMLoss", "MixupCrossEntropyLoss", "RegMixupLoss"]
