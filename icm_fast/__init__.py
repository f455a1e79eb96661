"""Infinite Class Mixup, fused: the loss and its gradient in one operation, and the mixing that goes with it."""

from . import functional, metrics, reference
from ._backends import backends
from .losses import ICMLoss, LinearICMLoss, MixupCrossEntropyLoss, RegMixupLoss
from .mixing import AMMixup, Mixup, RemixRule
from .target import MixedTarget

__version__ = "0.1.0"  # a literal, the one source: a build reads it without importing torch

__all__ = [
    "AMMixup",
    "ICMLoss",
    "LinearICMLoss",
    "MixedTarget",
    "Mixup",
    "MixupCrossEntropyLoss",
    "RegMixupLoss",
    "RemixRule",
    "__version__",
    "backends",
    "functional",
    "metrics",
    "reference",
]
