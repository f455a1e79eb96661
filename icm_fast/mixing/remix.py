"""Remix: a label ratio that favours the rarer class."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from .._validate import check_number, describe
from ..functional import remix_lam


@dataclasses.dataclass(frozen=True, eq=False)
class RemixRule:
    """When the label of a mixed sample goes wholly to one of its two classes: to the rarer (Chou et al., 2020).

    For `Mixup(remix=...)`: images keep the lam they are mixed with, the weight of the sample ITSELF; labels get the
    lam of `functional.remix_lam`, per sample.

    Args:
        class_counts: (C,) training images of each class, positive.
        kappa: how many times larger the other class must be, at least 1.
        tau: in [0, 1]; below this weight the sample of the larger class gives its label up.

    Raises:
        TypeError, ValueError: counts that are not positive numbers in one dimension; kappa or tau out of range.

    Example:
        >>> rule = RemixRule([300, 100, 50])
        >>> rule.lam(torch.tensor(0.4), torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]))
        tensor([0.0000, 0.4000, 0.4000])
    """

    class_counts: Tensor | Sequence[int]
    kappa: float = 3.0
    tau: float = 0.5
    _on_device: dict[torch.device, Tensor] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        where = "RemixRule"
        if not isinstance(self.class_counts, (Tensor, list, tuple)):
            raise TypeError(
                f"{where}: expected class_counts to be a tensor or a list, got {describe(self.class_counts)}"
            )
        counts = torch.as_tensor(self.class_counts).detach()
        if counts.dim() != 1 or len(counts) == 0:
            raise ValueError(f"{where}: expected class_counts of shape (C,), got {describe(counts)}")
        bad = ~((counts > 0) & counts.isfinite())
        if bool(bad.any()):
            at = int(bad.nonzero()[0])
            raise ValueError(f"{where}: expected positive class_counts, got class_counts[{at}] = {counts[at].item()}")
        object.__setattr__(self, "class_counts", counts)
        check_number(where, "kappa", self.kappa, least=1)
        check_number(where, "tau", self.tau, least=0, most=1)
        self._on_device[counts.device] = counts

    def lam(self, lam: Tensor, y_a: Tensor, y_b: Tensor) -> Tensor:
        """(B,) label weights from pixel weights () or (B,); see `functional.remix_lam`."""
        device = y_a.device
        if device not in self._on_device:
            self._on_device[device] = torch.as_tensor(self.class_counts).to(device)
        return remix_lam(lam, y_a, y_b, self._on_device[device], self.kappa, self.tau)
