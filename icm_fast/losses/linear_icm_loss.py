"""The Infinite Class Mixup loss of a linear head as a module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import functional as F_icm
from .._validate import check_choice, check_floating, describe
from ..functional._dispatch import AXIS_NAMES, REDUCTION_NAMES, Axis, Reduction
from ..target import MixedTarget
from ._common import describe_options, describe_scale, is_single, keep_scale, warn_single


class LinearICMLoss(nn.Module):
    """Infinite Class Mixup loss of features and a linear head; `lam` of the target is the weight of the sample ITSELF.

    See `functional.linear_icm_loss`: scores, and for many classes the logits, exist a block of rows at a time. Integer
    labels mean plain cross-entropy, so one criterion serves training and validation.

    The head is only referred to: it stays a part of the model, `parameters()` and `state_dict()` of this module do not
    have it, and a copy of this module refers to the same head.

    Args:
        head: the model's last layer, an nn.Linear or any module with `weight` (C, D) and, perhaps, `bias` (C,); or the
            weight itself.
        bias: (C,), where head is a weight.
        axis: "both", "class" or "pair".
        reduction: "mean", "sum" or "none".
        logit_scale: multiplies the mixed scores: a number; a 0-d tensor, kept as a buffer; or an `nn.Parameter`, which
            becomes a parameter of the module and is trained.
        process_group: of processes that each hold some rows of one batch; see `functional.icm_loss`.
        sparse_grad: give the weight a sparse gradient, without the rows of classes that the batch does not use.
        validate: check the values of the target in every call. Waits for a GPU.
        backend: None or "auto", "reference", "cpu", "triton", "cuda".

    Raises:
        TypeError: a head without a weight, a bias beside a head that is a module, a logit_scale of a wrong type.
        ValueError: an unknown axis or reduction, a logit_scale that is not 0-d or is computed from other tensors.

    Example:
        >>> head = nn.Linear(16, 1000)
        >>> criterion = LinearICMLoss(head)
        >>> features, labels = torch.zeros(4, 16), torch.tensor([1, 2, 3, 4])
        >>> loss = criterion(features, MixedTarget(labels, labels.flip(0), torch.tensor(0.7)))
        >>> loss.backward()
        >>> head.weight.grad.shape, list(criterion.parameters())
        (torch.Size([1000, 16]), [])
    """

    logit_scale: float | Tensor | None

    def __init__(
        self,
        head: nn.Module | Tensor,
        bias: Tensor | None = None,
        axis: Axis = "both",
        reduction: Reduction = "mean",
        logit_scale: float | Tensor | None = None,
        process_group: Any = None,
        sparse_grad: bool = False,
        validate: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        where = "LinearICMLoss"
        if isinstance(head, Tensor):
            check_floating(where, "head", head)
        elif not isinstance(getattr(head, "weight", None), Tensor):
            raise TypeError(f"{where}: expected head to be an nn.Linear or a weight (C, D), got {describe(head)}")
        elif bias is not None:
            raise TypeError(f"{where}: a bias is for a head that is a weight; a module has its own")
        check_choice(where, "axis", axis, AXIS_NAMES)
        check_choice(where, "reduction", reduction, REDUCTION_NAMES)
        self._head = _Reference(head, bias)
        self.axis, self.reduction, self.sparse_grad = axis, reduction, sparse_grad
        self.validate, self.backend = validate, backend
        self.process_group = process_group
        keep_scale(self, where, logit_scale)

    if TYPE_CHECKING:  # nn.Module's returns Any

        def __call__(self, features: Tensor, target: MixedTarget | Tensor) -> Tensor: ...

    @property
    def classifier(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the head."""
        return self._head.tensors()

    def forward(self, features: Tensor, target: MixedTarget | Tensor) -> Tensor:
        """The loss in nats, () or (B,)."""
        alone = self.process_group is None and not torch.compiler.is_compiling()
        if self.training and alone and is_single(features, target):
            warn_single("LinearICMLoss")
        weight, bias = self.classifier
        # A sparse gradient is for mixed batches: evaluation has none.
        sparse = self.sparse_grad and isinstance(target, MixedTarget)
        loss: Tensor = F_icm.linear_icm_loss(
            features,
            weight,
            target,
            bias,
            axis=self.axis,
            reduction=self.reduction,
            logit_scale=self.logit_scale,
            process_group=self.process_group,
            sparse_grad=sparse,
            validate=self.validate,
            backend=self.backend,
        )
        return loss

    def extra_repr(self) -> str:
        weight, _ = self.classifier
        return describe_options(
            f"classes={weight.shape[0]}, axis={self.axis!r}, reduction={self.reduction!r}",
            logit_scale=describe_scale(self.logit_scale),
            sparse_grad=self.sparse_grad or None,
            validate=self.validate or None,
            backend=self.backend,
        )


class _Reference:
    """Keeps what belongs to the model out of this module's registers: nn.Module would take a Linear for a child."""

    def __init__(self, head: nn.Module | Tensor, bias: Tensor | None) -> None:
        self.head, self.bias = head, bias

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        """Looked up in every call: a trainer may have replaced or moved them."""
        if isinstance(self.head, Tensor):
            return self.head, self.bias
        return self.head.weight, getattr(self.head, "bias", None)  # type: ignore[return-value]

    def __deepcopy__(self, memo: dict[int, object]) -> _Reference:
        # The copy of a model that holds head and criterion refers to the copied head.
        head = memo.get(id(self.head), self.head)
        bias = memo.get(id(self.bias), self.bias) if self.bias is not None else None
        return _Reference(head, bias)  # type: ignore[arg-type]
