"""The two ways of linear_icm_loss, for each kind of target, and the choice between them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .._backends import choose
from ..operators import contrastive_loss as two_views
from ..operators import icm_loss as logits_loss
from ..operators import linear_cross_entropy
from ..operators import linear_icm_loss as blocked
from ..operators._classifiers import mixed_rows, rows_of
from ..operators._library import accumulation_type
from ..operators._processes import Processes
from ..operators._products import are_kept
from ..reference._common import columns, in_range, one
from ..target import MixedTarget
from . import _dispatch

# Through the logits of the classes that the batch uses, if these are at most so many of its size, else on the mixed
# classifiers. Either way has 3 products, 4 where what they give is too much to keep for the backward pass. Where the
# ways cross was measured on a CPU (python -m benchmarks.speed.crossover): at 1.1 with both kept (B = 1024), at 1.13
# with the logits alone (--batch-size 2048), at 0.97 with neither (--batch-size 4096).
_MOST_CLASSES = {"both": 1.05, "logits": 1.1, "neither": 0.95}
# Of more classes than so, present ones are not gathered, which would save little. A guess.
WORTH_GATHERING = 0.9
# Products of fewer multiplications than so cost less than looking which classes are present: somewhere between 7 and 65
# million, on a CPU.
_WORTH_LOOKING = 1 << 24
# Logits up to so many numbers are kept for the backward pass; more are formed a block of rows at a time, twice.
MOST_KEPT = 1 << 23


class Call(NamedTuple):
    """What is asked for; `explicit` is a backend that was named."""

    explicit: str | None
    features: Tensor
    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None
    axis: str
    reduction: str
    sparse: bool
    processes: Processes | None

    def backend_of(self, part: str) -> str:
        """The backend of an operation that this one consists of: another may be the best for each."""
        return self.explicit or choose(part, None, self.features.device.type)

    def narrowed(self, *tensors: Tensor | None) -> Any:
        """In the type of products."""
        dtype = _dispatch.product_type(self.features)
        return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


def most_classes(rows: int, used: int) -> float:
    """Classes, in parts of the rows, up to which the logits are the cheaper way."""
    if rows * used > MOST_KEPT:
        return _MOST_CLASSES["neither"]
    return _MOST_CLASSES["both" if are_kept(rows, rows) else "logits"]


def through_logits(rows: int, used: int) -> bool:
    """Whether the logits of so many classes are the cheaper way."""
    return used <= rows * most_classes(rows, used)


def _of_mixed(call: Call, target: MixedTarget) -> Any:
    rows, classes = target.shape[0], call.weight.shape[0]
    looks = _dispatch.reads_values(call.features) and (
        call.sparse or classes > rows or rows * call.weight.numel() > _WORTH_LOOKING
    )
    present = _present(target, classes) if looks else None
    # Without a look: what a batch can use at most. A sparse gradient needs the classes themselves.
    used = min(classes, 2 * rows) if present is None else len(present)
    if through_logits(rows, used) and not (call.sparse and present is None):
        return _through_logits(call, target, present)
    return _on_mixed_classifiers(call, target)


def _present(target: MixedTarget, classes: int) -> Tensor:
    """Classes that a target names, ascending; those out of range are left out."""
    is_used = torch.zeros(classes, dtype=torch.bool)
    for labels in (target.y_a, target.y_b):
        is_used[labels[in_range(labels, classes)]] = True
    return is_used.nonzero()[:, 0]


def _through_logits(call: Call, target: MixedTarget, present: Tensor | None) -> Any:
    weight, bias, labels = call.weight, call.bias, (target.y_a, target.y_b)
    if present is not None and (call.sparse or len(present) <= WORTH_GATHERING * weight.shape[0]):
        slots = torch.full((weight.shape[0],), -1)
        slots[present] = torch.arange(len(present))
        y_a, y_b = labels
        labels = _renamed(y_a, slots), _renamed(y_b, slots)
        weight = rows_of(weight, present, call.sparse)
        bias = None if bias is None else rows_of(bias, present)
    mixed = (*labels, target.lam)
    if call.processes is None and call.features.shape[0] * weight.shape[0] <= MOST_KEPT:
        logits = _logits(call, weight, bias)
        rest = (call.scale, call.axis, call.reduction)
        return logits_loss.icm_loss(call.backend_of("icm_loss"), logits, *mixed, *rest)
    features, weight, bias = call.narrowed(call.features, weight, bias)
    tail = (call.scale, *mixed, call.axis, call.reduction, call.processes)
    return blocked.linear_icm_loss(call.backend_of("icm_loss"), features, weight, bias, *tail)


def _logits(call: Call, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As nn.Linear forms them."""
    tensors = call.narrowed(call.features, weight, bias)
    if tensors[0].dtype == _dispatch.autocast_type(call.features):
        return F.linear(*tensors)
    with torch.autocast(call.features.device.type, enabled=False):
        return F.linear(*tensors)


def _renamed(labels: Tensor, slots: Tensor) -> Tensor:
    """Labels as slots; a bad one stays bad."""
    valid = in_range(labels, len(slots))
    return torch.where(valid, slots[labels.where(valid, 0)], -1)


def _on_mixed_classifiers(call: Call, target: MixedTarget) -> Any:
    cols = columns(target, call.weight.shape[0], accumulation_type(call.weight.dtype))
    # Looked at where that is free: on a GPU, and in a compiled graph, all is multiplied by 1 or NaN.
    is_known = _dispatch.reads_values(call.features) and bool(cols.valid)
    mixture = (
        *(cols.first, cols.second, torch.where(cols.pure, 1.0, cols.w_first)),
        *(torch.where(cols.pure, 0.0, cols.w_second), None if is_known else one(cols.valid)),
    )
    weight = mixed_rows(call.weight, *mixture, sparse=call.sparse)
    bias = None if call.bias is None else mixed_rows(call.bias[:, None], *mixture)[:, 0]
    return _of_views(call, weight, bias)


def _of_views(call: Call, weight: Tensor, bias: Tensor | None) -> Any:
    features, weight, bias = call.narrowed(call.features, weight, bias)
    return _of_scores(call, features, weight, bias)


def _of_scores(call: Call, x: Tensor, y: Tensor, bias: Tensor | None) -> Any:
    rest = (call.scale, call.axis, call.reduction, call.processes)
    return two_views.contrastive_loss(call.backend_of("contrastive_loss"), x, y, bias, *rest)


def _of_dense(call: Call, target: Tensor) -> Any:
    rows, depth, classes = target.shape[0], call.weight.shape[1], call.weight.shape[0]
    if classes * (depth + 3 * rows) < 4 * rows * depth:  # operations of the products, logits against classifiers
        logits = _logits(call, call.weight, call.bias)
        dtype = accumulation_type(logits.dtype)
        return _of_scores(call, logits.to(dtype), target.to(dtype), None)
    rows_of_target = target.to(call.weight.dtype)
    bias = None if call.bias is None else rows_of_target @ call.bias
    return _of_views(call, rows_of_target @ call.weight, bias)


def _of_hard(call: Call, target: Tensor) -> Any:
    features, weight, bias = call.narrowed(call.features, call.weight, call.bias)
    rest = (call.scale, target.long(), call.reduction)
    backend = call.backend_of("mixup_cross_entropy")
    return linear_cross_entropy.linear_cross_entropy(backend, features, weight, bias, *rest)


FORMS: dict[str, Any] = {"mixed": _of_mixed, "dense": _of_dense, "hard": _of_hard}
