"""The Infinite Class Mixup loss of a linear classifier, from features and weights."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from .. import reference
from .._validate import check_choice, check_floating, check_same_device, describe
from ..target import MixedTarget
from . import _dispatch, _linear_ways, _processes

_WHERE = "linear_icm_loss"


class _Options(_dispatch.Options, total=False):
    sparse_grad: bool


@overload
def linear_icm_loss(
    features: Tensor,
    weight: Tensor,
    target: MixedTarget | Tensor,
    bias: Tensor | None = None,
    *,
    return_terms: Literal[False] = False,
    **options: _dispatch.Unpack[_Options],
) -> Tensor: ...


@overload
def linear_icm_loss(
    features: Tensor,
    weight: Tensor,
    target: MixedTarget | Tensor,
    bias: Tensor | None = None,
    *,
    return_terms: Literal[True],
    **options: _dispatch.Unpack[_Options],
) -> _dispatch.Terms: ...


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
        Products in the type of the features, or in autocast's, as nn.Linear forms them, in float32 where a CPU has none
        of that type; the rest as `icm_loss`. The same bits from run to run where the products are.

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
    name = _dispatch.backend_for(_WHERE, backend, features, process_group)
    processes = None
    if process_group is not None and kind != "hard":
        same = _processes.Call(classes, axis, reduction, scale)
        processes, target = _processes.gather(_WHERE, process_group, features, target, same, name)
    if validate:  # what all processes have: a bad value on one raises on every one
        _dispatch.check_values(_WHERE, target, classes)
    if name == "reference" or _dispatch.functorch_active():
        options: dict[str, Any] = {"axis": axis, "reduction": reduction, "logit_scale": scale}
        loss, *terms = reference.linear_icm_loss(features, weight, target, bias, return_terms=True, **options)
    else:
        explicit = None if backend in (None, "auto") else backend
        call = _linear_ways.Call(explicit, features, weight, bias, scale, axis, reduction, sparse_grad, processes)
        loss, terms = _linear_ways.FORMS[kind](call, target)
    if _dispatch.reads_values(features):
        _dispatch.explain_nan(_WHERE, loss, classes, target)
    return (loss, terms[0], terms[1]) if return_terms else loss


def _check_classifier(features: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_floating(_WHERE, "features", features)
    check_floating(_WHERE, "weight", weight)
    if features.dim() != 2:
        raise ValueError(f"{_WHERE}: expected features of shape (B, D), got {describe(features)}")
    if weight.dim() != 2 or weight.shape[1] != features.shape[1]:
        raise ValueError(
            f"{_WHERE}: expected weight of shape (C, {features.shape[1]}) like nn.Linear's, got {describe(weight)}"
            + ("; were logits passed for features?" if features.shape[1] == weight.shape[0] else "")
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
