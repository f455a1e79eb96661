"""The Infinite Class Mixup loss."""

from __future__ import annotations

from typing import Any, Literal, cast, overload

from torch import Tensor

from .. import reference
from .._validate import check_choice
from ..operators import contrastive_loss as two_views
from ..operators import icm_loss as operator
from ..operators._library import accumulation_type
from ..operators.linear_icm_loss import linear_icm_loss
from ..target import MixedTarget
from . import _dispatch, _processes

_WHERE = "icm_loss"


@overload
def icm_loss(
    logits: Tensor,
    target: MixedTarget | Tensor,
    *,
    return_terms: Literal[False] = False,
    **options: _dispatch.Unpack[_dispatch.Options],
) -> Tensor: ...


@overload
def icm_loss(
    logits: Tensor,
    target: MixedTarget | Tensor,
    *,
    return_terms: Literal[True],
    **options: _dispatch.Unpack[_dispatch.Options],
) -> _dispatch.Terms: ...


def icm_loss(
    logits: Tensor,
    target: MixedTarget | Tensor,
    *,
    axis: _dispatch.Axis = "both",
    reduction: _dispatch.Reduction = "mean",
    logit_scale: float | Tensor | None = None,
    process_group: Any = None,
    validate: bool = False,
    return_terms: bool = False,
    backend: str | None = None,
) -> Any:
    """Infinite Class Mixup loss, fused: every mixed image against every mixed classifier, both ways.

    `lam` of the target is the weight of the sample ITSELF. With S the logits (Mensink & Mettes, BMVC 2023, eq. 3,
    5, 7, 9)::

        Z[i,j] = lam_j * S[i, y_a[j]] + (1 - lam_j) * S[i, y_b[j]]       image i, mixed classifier j
        class  = mean_i(logsumexp_j Z[i,j] - Z[i,i])                     over the classifiers of an image
        pair   = mean_i(logsumexp_j Z[j,i] - Z[i,i])                     over the images of a classifier
        both   = class + pair                                            the default: a sum, no half

    The (B, B) matrix Z is never built by the fused backends; of dense targets a block of rows at a time. The loss
    is NOT a sum over samples: each is compared with the whole batch, so gradient accumulation, a smaller last batch
    and splitting a batch over processes (without process_group) change it. Two samples of the same mixed class are
    negatives of each other, as in the authors' program: with few classes and one lam per batch the loss has a floor
    above zero. B = 1 gives 0.

    Args:
        logits: (B, C) float32, float64, bfloat16 or float16, any strides, differentiable: scores of the ORIGINAL
            classes, bias included. -inf masks a class.
        target: what the batch is mixed towards, told apart by type: `MixedTarget`; a float tensor (B, C) of dense
            targets of any support; an integer tensor (B,) of hard labels, for which the loss is plain cross-entropy
            (of the scaled logits) whatever the axis.
        axis: "both", "class" or "pair".
        reduction: "mean", "sum" (B times the mean) or "none": (B,), entry i = class term of image i + pair term of
            classifier i.
        logit_scale: multiplies Z; a number or a 0-d tensor, differentiable. Default: no scale, as in the paper.
        process_group: processes that each hold some rows of one batch: a group of torch.distributed (whose group.WORLD
            is None, and no group, before init_process_group). The loss is that of the whole batch, on every process;
            partners are on the own one, "none" gives its own entries. The gradient is multiplied by their number, for
            DistributedDataParallel to divide. Each sends its target (12 bytes a row; a dense one whole) and, but for
            the class axis alone, two numbers for every column. All must make the same call, rows or not: where they
            differ, all raise; one that does not call leaves the others to the timeout of the group. A GPU waits once,
            for the numbers of rows. Hard labels: the loss of the own rows, without a word to the others, who must have
            hard labels too or would wait.
        validate: check the values of the target first. Waits for a GPU.
        return_terms: also return the class and the pair term, detached.
        backend: None or "auto", "reference", "cpu", "triton", "cuda"; see `icm_fast.backends()`.

    Returns:
        The loss in nats, float32 (float64 for float64 logits), shape () or (B,); with return_terms a tuple
        (loss, class term, pair term), the term of an axis that is not asked for being 0.

    Raises:
        TypeError: logits or target of a wrong type, a tuple as target, a target that requires grad.
        ValueError: shapes or devices that do not fit; on the CPU in eager mode also a label outside [0, C) or a lam
            outside [0, 1] or NaN. Elsewhere bad values give NaN loss and NaN gradient, never a bad access. Processes
            whose calls differ.
        RuntimeError: an explicit backend that is not available; differentiating a fused loss twice.

    Cost:
        Two passes over logits and one write of the gradient; 2*B*B exponentials. Extra memory: the gradient
        (B*C), and in numbers 60*B for sums and the order of columns and 16*B + 256*C per thread at most (with two
        threads, 27 MiB beyond the gradient at B = 65536, C = 1000). Plain PyTorch: some 28 passes
        over (B, B). A batch whose sums underflow is computed again around exact maxima, 3 to 4 times the work.
        Dense targets: three matrix products with (B, C), Z a block of rows at a time of at most 8 MB or 128 rows; where
        that is all of it (B <= 1448) it stays for the backward pass, and there are two; logits and target are copied if
        they are not in the type of the sums. Targets of two non-zeros a row are far cheaper as
        MixedTarget.from_dense(target).

    Numerics:
        Sums in float32 (float64 for float64), gradient rounded once to the logits' type. Scores are differences to an
        offset of the row or of the batch, so their rounding is relative to the range of the logits and not to a
        common offset. Right for logits of any range up to 5e37 in magnitude; beyond, all count as about that.
        The same bits from run to run and for any number of threads; of dense targets, where the framework's products
        are.

    Example:
        >>> logits = torch.zeros(4, 10, requires_grad=True)
        >>> target = MixedTarget(torch.tensor([1, 2, 3, 4]), torch.tensor([4, 3, 2, 1]), torch.tensor(0.7))
        >>> loss = icm_loss(logits, target)
        >>> round(loss.item(), 4)                        # 2 ln 4
        2.7726
        >>> loss.backward()
        >>> logits.grad.shape
        torch.Size([4, 10])
    """
    _dispatch.check_logits(_WHERE, logits)
    check_choice(_WHERE, "axis", axis, _dispatch.AXIS_NAMES)
    check_choice(_WHERE, "reduction", reduction, _dispatch.REDUCTION_NAMES)
    kind = _dispatch.target_kind(_WHERE, logits, target)
    scale = _dispatch.check_scale(_WHERE, logits, logit_scale)
    form = f"{_WHERE}_dense" if kind == "dense" else _WHERE
    name = _dispatch.backend_for(form, backend, logits, process_group)
    processes = None
    if process_group is not None and kind != "hard":
        call = _processes.Call(logits.shape[1], axis, reduction, scale)
        processes, target = _processes.gather(_WHERE, process_group, logits, target, call, name)
    if validate:  # what all processes have: a bad value on one raises on every one
        _dispatch.check_values(_WHERE, target, logits.shape[1])
    if kind == "hard" or name == "reference" or _dispatch.functorch_active():
        loss, *terms = cast(
            Any,
            reference.icm_loss(logits, target, axis=axis, reduction=reduction, logit_scale=scale, return_terms=True),
        )
    elif kind == "dense":
        views = _views(logits, cast(Tensor, target))
        loss, terms = two_views.contrastive_loss(name, *views, None, scale, axis, reduction, processes)
    else:
        mixed = cast(MixedTarget, target)
        labels = (mixed.y_a, mixed.y_b, mixed.lam)
        if processes is None:
            loss, terms = operator.icm_loss(name, logits, *labels, scale, axis, reduction)
        else:
            loss, terms = linear_icm_loss(name, logits, None, None, scale, *labels, axis, reduction, processes)
    if _dispatch.reads_values(logits):
        _dispatch.explain_nan(_WHERE, loss, logits.shape[1], target)
    return (loss, terms[0], terms[1]) if return_terms else loss


def _views(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    dtype = accumulation_type(logits.dtype)
    return logits.to(dtype), target.to(dtype)
