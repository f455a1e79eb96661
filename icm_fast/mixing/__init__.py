"""Mixing of batches for training: which samples, how much, and what the labels become."""

from .am_mixup import AMMixup
from .mixup import Mixup
from .remix import RemixRule

__all__ = ["AMMixup", "Mixup", "RemixRule"]
