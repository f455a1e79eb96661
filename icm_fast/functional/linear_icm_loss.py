"""The Infinite Class Mixup loss of a linear classifier, from features and weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from .._backends import choose
from .._validate import check_choice, check_floating, check_same_device, describe
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

_WHERE = "linear_icm_loss"

# Through the logits of the classes that the batch uses, if these are at most so many of its size, else on the mixed
# classifiers. Either way has 3 products, 4 where what they give is too much to keep for the backward pass. Where the
# ways cross was measured on a CPU (python -m benchmarks.speed.crossover): at 1.1 with both kept (B = 1024), at 1.13
# with the logits alone (--batch-size 2048), at 0.97 with neither (--batch-size 4096).
_MOST_CLASSES = {"both": 1.05, "logits": 1.1, "neither": 0.95}
# Of more classes than so, present ones are not gathered, which would save little. A guess.
_WORTH_GATHERING = 0.9
# Products of fewer multiplications than so cost less than looking which classes are present: somewhere between 7 and 65
# million, on a CPU.
_WORTH_LOOKING = 1 << 24
# Logits up to so many numbers are kept for the backward pass; more are formed a block of rows at a time, twice.
_MOST_KEPT = 1 << 23


def linear_icm_loss(
    features: Tensor,
    weight: Tensor,
    target: MixedTarget | Tensor,
    bias: Tensor | None = None,
    *,
    axis: _dispatch.Axis = "both",
    reduction: _dispatch.Reduction = "mean",
    logit_scale: float | Tensor | None = None,
    process_group: Any = None,
    sparse_grad: bool = False,
    validate: bool = False,
    return_terms: bool = False,
    backend: str | None = None,
) -> Any:
    """Infinite Class Mixup loss of a linear classifier, from its features and weights, for up to a million classes.

    `lam` of the target is the weight of the sample ITSELF. The loss of `icm_loss(features @ weight.T + bias, target)`
    (Mensink & Mettes, BMVC 2023, eq. 2, 3, 5, 7, 9), computed in the cheaper of two ways::

        S = R W'^T + b'                      through the logits of the U classes that the batch uses: U <= B, about
        Z = R W~^T + b~,  w~_j = lam_j w_a + (1 - lam_j) w_b         on the mixed classifiers: otherwise

    Scores, and logits when there are many, exist a block of rows at a time: on a CPU of at most 8 MB or 128 rows, so
    only a batch of B <= 1448 has all its scores in one. Logits are kept up to 32 MB.

    Args:
        features: (B, D) float32, float64, bfloat16 or float16, any strides, differentiable.
        weight: (C, D) of the same type, as nn.Linear keeps it; differentiable.
        target: what the batch is mixed towards, told apart by type: `MixedTarget`; a float tensor (B, C) of dense
            targets of any support; an integer tensor (B,) of hard labels, for which the loss is plain cross-entropy
            (of the scaled logits), a block of rows at a time.
        bias: (C,) of the same type; differentiable. The pair axis gives it no gradient but rounding.
        axis: "both", "class" or "pair".
        reduction: "mean", "sum" (B times the mean) or "none": (B,), entry i = class term of image i + pair term of
            classifier i.
        logit_scale: multiplies Z; a number or a 0-d tensor, differentiable.
        process_group: processes that each hold some rows of one batch; see `icm_loss`. No features are sent.
        sparse_grad: give the weight's gradient as a sparse COO tensor, rows of classes that the batch does not use
            left out, as nn.Embedding(sparse=True) does; torch.optim.SGD, SparseAdam and Adagrad take it. Only for a
            `MixedTarget`.
        validate: check the values of the target first. Waits for a GPU.
        return_terms: also return the class and the pair term, detached.
        backend: None or "auto", "reference", "cpu", "triton", "cuda"; see `icm_fast.backends()`.

    Returns:
        The loss in nats, float32 (float64 for float64 features), shape () or (B,); with return_terms a tuple
        (loss, class term, pair term), the term of an axis that is not asked for being 0.

    Raises:
        TypeError: tensors or a target of a wrong type, a tuple as target, a target that requires grad.
        ValueError: shapes, types or devices that do not fit; on the CPU in eager mode also a label outside [0, C) or a
            lam outside [0, 1] or NaN. Elsewhere bad values give NaN loss and NaN gradient.
        RuntimeError: an explicit backend that is not available; differentiating a fused loss twice; sparse_grad under
            torch.compile.

    Cost:
        Through logits: products of 6*B*U*D operations for loss and all gradients, 8*B*U*D where the logits are more
        than 32 MB and formed twice, and the passes of `icm_loss`. On mixed classifiers: 8*B*B*D, or 6*B*B*D for
        B <= 1448, and 4*B*B exponentials. Only the gradients that are asked for are computed. Extra memory: the
        gradients, the logits or a block of scores, of at most 32 MB or 128 rows (64 MB with very many classes), and
        (B, D) or (U, D) classifiers. A dense gradient of the weight is C*D numbers, written once; a sparse one 2*B*D at
        most.

    Numerics:
        Products in the type of the features, or in autocast's, as nn.Linear forms them; the rest as `icm_loss`. The
        same bits from run to run where the products are.

    Example:
        >>> features, weight = torch.zeros(4, 16, requires_grad=True), torch.zeros(1000, 16, requires_grad=True)
        >>> labels = torch.tensor([1, 2, 3, 4])
        >>> loss = linear_icm_loss(features, weight, MixedTarget(labels, labels.flip(0), torch.tensor(0.7)))
        >>> round(loss.item(), 4)                        # 2 ln 4
        2.7726
        >>> loss.backward()
        >>> weight.grad.shape
        torch.Size([1000, 16])
    """
    _check_classifier(features, weight, bias)
    check_choice(_WHERE, "axis", axis, _dispatch.AXIS_NAMES)
    check_choice(_WHERE, "reduction", reduction, _dispatch.REDUCTION_NAMES)
    classes = weight.shape[0]
    kind = _dispatch.target_kind(_WHERE, features, target, classes, "features")
    if sparse_grad and kind != "mixed":
        raise ValueError(f"{_WHERE}: sparse_grad needs a MixedTarget, got {describe(target)}; pass sparse_grad=False")
    if sparse_grad and torch.compiler.is_compiling():
        raise RuntimeError(f"{_WHERE}: torch.compile has no sparse gradients; pass sparse_grad=False")
    scale = _dispatch.check_scale(_WHERE, features, logit_scale)
    if validate:
        _dispatch.check_values(_WHERE, target, classes)
    name = choose(_WHERE, backend, features.device.type)
    processes = None
    if process_group is not None and kind != "hard":
        processes, target = _dispatch.gather(_WHERE, process_group, features, target, name)
    if name == "reference" or _dispatch.functorch_active():
        options: dict[str, Any] = {"axis": axis, "reduction": reduction, "logit_scale": scale}
        loss, *terms = reference.linear_icm_loss(features, weight, target, bias, return_terms=True, **options)
    else:
        explicit = None if backend in (None, "auto") else backend
        call = _Call(explicit, features, weight, bias, scale, axis, reduction, sparse_grad, processes)
        loss, terms = _FORMS[kind](call, target)
    if _dispatch.reads_values(features):
        _dispatch.explain_nan(_WHERE, loss, classes, target)
    return (loss, terms[0], terms[1]) if return_terms else loss


class _Call(NamedTuple):
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
        """In the type of products, as autocast would have them."""
        dtype = _dispatch.autocast_type(self.features)
        return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


def most_classes(rows: int, used: int) -> float:
    """Classes, in parts of the rows, up to which the logits are the cheaper way."""
    if rows * used > _MOST_KEPT:
        return _MOST_CLASSES["neither"]
    return _MOST_CLASSES["both" if are_kept(rows, rows) else "logits"]


def through_logits(rows: int, used: int) -> bool:
    """Whether the logits of so many classes are the cheaper way."""
    return used <= rows * most_classes(rows, used)


def _of_mixed(call: _Call, target: MixedTarget) -> Any:
    rows, classes = len(target), call.weight.shape[0]
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


def _through_logits(call: _Call, target: MixedTarget, present: Tensor | None) -> Any:
    weight, bias, labels = call.weight, call.bias, (target.y_a, target.y_b)
    if present is not None and (call.sparse or len(present) <= _WORTH_GATHERING * weight.shape[0]):
        slots = torch.full((weight.shape[0],), -1)
        slots[present] = torch.arange(len(present))
        y_a, y_b = labels
        labels = _renamed(y_a, slots), _renamed(y_b, slots)
        weight = rows_of(weight, present, call.sparse)
        bias = None if bias is None else rows_of(bias, present)
    mixed = (*labels, target.lam)
    if call.processes is None and call.features.shape[0] * weight.shape[0] <= _MOST_KEPT:
        logits = F.linear(call.features, weight, bias)
        rest = (call.scale, call.axis, call.reduction)
        return logits_loss.icm_loss(call.backend_of("icm_loss"), logits, *mixed, *rest)
    features, weight, bias = call.narrowed(call.features, weight, bias)
    tail = (call.scale, *mixed, call.axis, call.reduction, call.processes)
    return blocked.linear_icm_loss(call.backend_of("icm_loss"), features, weight, bias, *tail)


def _renamed(labels: Tensor, slots: Tensor) -> Tensor:
    """Labels as slots; a bad one stays bad."""
    valid = in_range(labels, len(slots))
    return torch.where(valid, slots[labels.where(valid, 0)], -1)


def _on_mixed_classifiers(call: _Call, target: MixedTarget) -> Any:
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


def _of_views(call: _Call, weight: Tensor, bias: Tensor | None) -> Any:
    features, weight, bias = call.narrowed(call.features, weight, bias)
    return _of_scores(call, features, weight, bias)


def _of_scores(call: _Call, x: Tensor, y: Tensor, bias: Tensor | None) -> Any:
    rest = (call.scale, call.axis, call.reduction, call.processes)
    return two_views.contrastive_loss(call.backend_of("contrastive_loss"), x, y, bias, *rest)


def _of_dense(call: _Call, target: Tensor) -> Any:
    rows, depth, classes = len(target), call.weight.shape[1], call.weight.shape[0]
    if classes * (depth + 3 * rows) < 4 * rows * depth:  # operations of the products, logits against classifiers
        logits = F.linear(call.features, call.weight, call.bias)
        dtype = accumulation_type(logits.dtype)
        return _of_scores(call, logits.to(dtype), target.to(dtype), None)
    rows_of_target = target.to(call.weight.dtype)
    bias = None if call.bias is None else rows_of_target @ call.bias
    return _of_views(call, rows_of_target @ call.weight, bias)


def _of_hard(call: _Call, target: Tensor) -> Any:
    features, weight, bias = call.narrowed(call.features, call.weight, call.bias)
    rest = (call.scale, target.long(), call.reduction)
    backend = call.backend_of("mixup_cross_entropy")
    return linear_cross_entropy.linear_cross_entropy(backend, features, weight, bias, *rest)


_FORMS: dict[str, Any] = {"mixed": _of_mixed, "dense": _of_dense, "hard": _of_hard}


def _check_classifier(features: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_floating(_WHERE, "features", features)
    check_floating(_WHERE, "weight", weight)
    if features.dim() != 2:
        raise ValueError(f"{_WHERE}: expected features of shape (B, D), got {describe(features)}")
    if weight.dim() != 2 or weight.shape[1] != features.shape[1]:
        raise ValueError(
            f"{_WHERE}: expected weight of shape (C, {features.shape[1]}) like nn.Linear's, got {describe(weight)}"
        )
    check_same_device(_WHERE, features=features, weight=weight)
    narrows = _dispatch.autocast_type(features) == _dispatch.autocast_type(weight)
    if not narrows:
        raise ValueError(
            f"{_WHERE}: expected features and weight of one type, got {describe(features)} and {describe(weight)}; "
            "convert one, or use autocast"
        )
    if bias is None:
        return
    check_floating(_WHERE, "bias", bias)
    check_same_device(_WHERE, features=features, bias=bias)
    if bias.shape != weight.shape[:1] or _dispatch.autocast_type(bias) != _dispatch.autocast_type(weight):
        raise ValueError(
            f"{_WHERE}: expected bias of shape ({weight.shape[0]},) and the type of weight, got {describe(bias)}"
        )
