"""What the public functions share: kinds of target, and what happens to a NaN."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor
from torch.autograd import forward_ad as _forward_ad

from .._backends import choose
from .._validate import (
    FLOATING,
    INTEGERS,
    as_scalar,
    check_floating,
    check_label_values,
    check_same_device,
    check_target_values,
    check_tensor,
    describe,
)
from ..operators._library import accumulation_type
from ..reference._common import Axis as Axis
from ..reference._common import Reduction as Reduction
from ..target import MixedTarget

if TYPE_CHECKING:
    from typing_extensions import Unpack as Unpack

AXIS_NAMES = ("both", "class", "pair")
REDUCTION_NAMES = ("none", "mean", "sum")

# What a loss returns with return_terms.
Terms = tuple[Tensor, Tensor, Tensor]


class ScoreOptions(TypedDict, total=False):
    """Keywords of every loss over scores, for type checkers: return_terms alone decides what is returned."""

    axis: Axis
    reduction: Reduction
    backend: str | None


class Options(ScoreOptions, total=False):
    """Those of the losses with a target."""

    logit_scale: float | Tensor | None
    process_group: Any
    validate: bool


def check_logits(where: str, logits: Any) -> Tensor:
    """(B, C), floating."""
    # In a few words of Python: this is a part of the time of every call. Subclasses of Tensor are looked at.
    if type(logits) is not Tensor or logits.dtype not in FLOATING or logits.layout != torch.strided:
        check_floating(where, "logits", logits)
    if logits.dim() != 2:
        raise ValueError(f"{where}: expected logits of shape (B, C), got {describe(logits)}")
    return logits


def check_mixed_target(where: str, logits: Tensor, target: MixedTarget, name: str = "logits") -> None:
    """Rows and device of the target fit the logits."""
    y_a = target.y_a
    if y_a.shape[0] != logits.shape[0]:
        doubled = y_a.shape[0] * 2 == logits.shape[0]
        hint = " With keep_clean=True use RegMixupLoss, or pass only the mixed half." if doubled else ""
        raise ValueError(f"{where}: {name} has {logits.shape[0]} rows but target has {y_a.shape[0]}.{hint}")
    if y_a.device != logits.device:
        check_same_device(where, **{name: logits}, target=y_a)


def target_kind(where: str, logits: Tensor, target: Any, classes: int | None = None, name: str = "logits") -> str:
    """ "mixed", "dense" or "hard": by type, never by length. Checks its shape too.

    Instead of logits their rows alone, the features, with the number of classes.

    Raises:
        TypeError: a tuple (named: MixedTarget.from_tuple), or anything else.
        ValueError: rows or classes that do not fit the logits.
    """
    if isinstance(target, MixedTarget):
        check_mixed_target(where, logits, target, name)
        return "mixed"
    if not isinstance(target, Tensor):
        fix = " Write MixedTarget.from_tuple(target)." if isinstance(target, (tuple, list)) else ""
        raise TypeError(
            f"{where}: expected target to be a MixedTarget, a float tensor (B, C) or an integer tensor (B,), "
            f"got {describe(target)}.{fix}"
        )
    check_tensor(where, "target", target)
    check_same_device(where, **{name: logits}, target=target)
    if target.dtype in FLOATING:
        if target.requires_grad:
            raise TypeError(f"{where}: target requires grad, but targets carry no gradient; pass target.detach()")
        shape = (logits.shape[0], logits.shape[1] if classes is None else classes)
        if target.shape != shape:
            raise ValueError(
                f"{where}: expected a dense target of shape {shape} like the logits, got {describe(target)}"
            )
        return "dense"
    if target.dtype not in INTEGERS:
        raise TypeError(f"{where}: expected integer labels or a dense float target, got {describe(target)}")
    if target.shape != logits.shape[:1]:
        raise ValueError(
            f"{where}: expected integer labels of shape ({logits.shape[0]},), got {describe(target)}; "
            "of one-hot labels pass labels.argmax(1) for plain cross-entropy (as .float() they are a dense target)"
        )
    return "hard"


def reads_values(logits: Tensor) -> bool:
    """Whether looking at a result is free: plain eager mode on the CPU."""
    if logits.device.type != "cpu" or torch.compiler.is_compiling() or functorch_active():
        return False
    # A dispatch mode (FakeTensorMode, make_fx) or a tensor subclass may hold no values.
    return _dispatch_modes() == 0 and type(logits) in (Tensor, torch.nn.Parameter)


_dispatch_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
_functorch_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)


def functorch_active() -> bool:
    """Whether torch.func transforms or forward-mode derivatives are at work, for which the operators have no rules.

    Without a look at the latter, a tangent would be lost in silence where no gradient is asked for.
    """
    return bool(_functorch_active()) or _forward_ad._current_level >= 0


def check_values(where: str, target: Any, num_classes: int) -> None:
    """Labels and lam in range. Reads them; a dense target may hold anything."""
    if isinstance(target, MixedTarget):
        check_target_values(where, target, num_classes)
    elif not target.is_floating_point():
        check_label_values(where, "target", target, num_classes)


def any_nan(loss: Tensor) -> bool:
    """Whether a loss holds a NaN."""
    if loss.dim() == 0:
        value = loss.item()
        return bool(value != value)
    return bool(loss.isnan().any())


def explain_nan(where: str, loss: Tensor, classes: int, target: Any) -> None:
    """Raise if a NaN loss comes from the target; a NaN or infinite logit is the caller's and passes."""
    if any_nan(loss):
        check_values(where, target, classes)


def check_scale(where: str, of: Tensor, logit_scale: float | Tensor | None) -> Tensor | None:
    """A 0-d tensor in float32 or float64, on the device of the logits."""
    if logit_scale is None:
        return None
    if isinstance(logit_scale, Tensor):
        check_tensor(where, "logit_scale", logit_scale)
        if logit_scale.dim() != 0 or not logit_scale.is_floating_point():
            raise ValueError(
                f"{where}: expected logit_scale to be a number or a 0-d tensor, got {describe(logit_scale)}"
            )
        if logit_scale.device != of.device:
            raise ValueError(f"{where}: the input is on {of.device} but logit_scale is on {logit_scale.device}")
        return logit_scale if logit_scale.dtype in (torch.float32, torch.float64) else logit_scale.float()
    if isinstance(logit_scale, bool) or not isinstance(logit_scale, (int, float)):
        raise TypeError(f"{where}: expected logit_scale to be a number or a 0-d tensor, got {describe(logit_scale)}")
    return as_scalar(logit_scale, accumulation_type(of.dtype), of.device)


def backend_for(operation: str, backend: str | None, of: Tensor, process_group: Any = None) -> str:
    """The backend of a call. Its size counts in eager mode alone, where calls cost time, and for one process."""
    rows = None if process_group is not None or torch.compiler.is_compiling() else of.shape[0]
    return choose(operation, backend, of.device.type, rows, of.dtype)


def autocast_type(of: Tensor) -> torch.dtype:
    """The type in which a matrix product of this tensor is formed: autocast's, where that is at work."""
    kind = of.device.type
    known = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # not the meta device
    narrows = known and of.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return torch.get_autocast_dtype(kind) if narrows else of.dtype


def product_type(of: Tensor) -> torch.dtype:
    """The type in which products of this tensor are formed: autocast's, but float32 where the CPU has none for it."""
    dtype = autocast_type(of)
    return torch.float32 if of.device.type == "cpu" and _lacks_products(dtype) else dtype


def _lacks_products(dtype: torch.dtype) -> bool:
    """Whether torch multiplies matrices of this type number by number: up to 25 times the time of float32's."""
    return dtype in _NARROW and _asked(dtype)


_lacks_products._dynamo_marked_constant = True  # type: ignore[attr-defined]  # as choose in _backends.py
_NARROW = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


@functools.cache
def _asked(dtype: torch.dtype) -> bool:
    has_products = getattr(torch.ops.mkldnn, _NARROW[dtype], None)
    return has_products is not None and not has_products()
