"""The operators: schema, fake kernel and derivative, each declared once, with one overload per backend.

`torch.ops.icm_fast.icm_loss_fwd.cpu` is implemented by the C++ library (csrc/cpu), which may be loaded before or
after this package is imported, or not at all; `.cuda` likewise (csrc/cuda), `.triton` by icm_fast/triton.
"""

from . import (
    am_mixup_loss,
    contrastive_loss,
    draws,
    icm_loss,
    linear_cross_entropy,
    linear_icm_loss,
    mixup,
    mixup_cross_entropy,
)
from ._library import BACKENDS, IMPLEMENTED, OPERATORS

# Operations that consist of others: through logits, on mixed classifiers, and on hard labels.
COMPOSED = {"linear_icm_loss": ("icm_loss", "contrastive_loss", "mixup_cross_entropy")}
for _name, _parts in COMPOSED.items():
    IMPLEMENTED[_name] = BACKENDS
    OPERATORS[_name] = tuple(operator for part in _parts for operator in OPERATORS[part])

__all__ = [
    "COMPOSED",
    "IMPLEMENTED",
    "OPERATORS",
    "am_mixup_loss",
    "contrastive_loss",
    "draws",
    "icm_loss",
    "linear_cross_entropy",
    "linear_icm_loss",
    "mixup",
    "mixup_cross_entropy",
]
