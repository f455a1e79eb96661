"""The operators: schema, fake kernel and derivative, each declared once, with one overload per backend.

`torch.ops.icm_fast.icm_loss_fwd.cpu` is implemented by the C++ library (csrc/cpu), which may be loaded before or
after this package is imported, or not at all; `.cuda` likewise (csrc/cuda), `.triton` by icm_fast/triton.
"""

from . import am_mixup_loss, icm_loss, mixup, mixup_cross_entropy
from ._library import IMPLEMENTED, OPERATORS

__all__ = ["IMPLEMENTED", "OPERATORS", "am_mixup_loss", "icm_loss", "mixup", "mixup_cross_entropy"]
