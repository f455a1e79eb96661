"""Calls with process_group: that the processes make the same one, and what each gets to know of the others."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._validate import FLOATING, describe
from ..operators._processes import Processes, calls_of, gather_target
from ..operators._processes import over_all as over_all
from ..target import MixedTarget
from . import _dispatch

_FUNCTIONS = ("icm_loss", "linear_icm_loss")
_TYPES = tuple(str(dtype).removeprefix("torch.") for dtype in FLOATING)
_TARGETS = (
    *(f"a MixedTarget with lam in {name}" for name in _TYPES),
    *(f"a dense target in {name}" for name in _TYPES),
)


class Call(NamedTuple):
    """What must be the same in the calls of all processes."""

    classes: int
    axis: str
    reduction: str
    scale: Tensor | None


def gather(
    where: str, process_group: Any, rows: Tensor, target: MixedTarget | Tensor, call: Call, name: str
) -> tuple[Processes, MixedTarget | Tensor]:
    """The processes and the target of all; where they disagree, or a target is bad, every one of them raises."""
    _check_group(where, process_group, name)
    sizes = _agree(where, process_group, rows, target, call)
    rank = torch.distributed.get_rank(process_group)
    processes = Processes(process_group, rank, sizes, shares_columns=call.axis != "class")
    if not isinstance(target, MixedTarget):
        return processes, processes.gather(target)
    whole = MixedTarget(*gather_target(processes, target.y_a, target.y_b, target.lam))
    if _dispatch.reads_values(rows):  # not left to the loss, which is no number on a process without rows
        _dispatch.check_values(where, whole, call.classes)
    return processes, whole


def _agree(where: str, process_group: Any, rows: Tensor, target: MixedTarget | Tensor, call: Call) -> tuple[int, ...]:
    """The numbers of rows of all. Said together with what must be the same: without it, a process that waits for
    another number of bytes would wait for ever, or read nonsense.
    """
    weights, dense = (target.lam, False) if isinstance(target, MixedTarget) else (target, True)
    mine = [
        *(rows.shape[0], _FUNCTIONS.index(where), FLOATING.index(weights.dtype) + dense * len(FLOATING)),
        *(_dispatch.AXIS_NAMES.index(call.axis), _dispatch.REDUCTION_NAMES.index(call.reduction), call.classes),
        *(FLOATING.index(rows.dtype), *struct.unpack("<q", struct.pack("<d", 1.0))),
    ]
    header = torch.tensor(mine, device=rows.device)
    if call.scale is not None:
        header[-1:] = call.scale.detach().double().reshape(1).view(torch.int64)
    sizes, *fields = zip(*calls_of(process_group, header), strict=True)
    differing = [
        f"{what} is {_by_value(process_group, values, show)}"
        for (what, show), values in zip(_FIELDS.items(), fields, strict=True)
        if len(set(values)) > 1
    ]
    if differing:
        raise ValueError(
            f"{where}: the processes of process_group disagree, but must make the same call for their rows of one "
            f"batch: {'; '.join(differing)}"
        )
    return sizes


_FIELDS: dict[str, Any] = {
    "the function": lambda code: _FUNCTIONS[code],
    "target": lambda code: _TARGETS[code],
    "axis": lambda code: repr(_dispatch.AXIS_NAMES[code]),
    "reduction": lambda code: repr(_dispatch.REDUCTION_NAMES[code]),
    "the number of classes": str,
    "the type of the input": lambda code: _TYPES[code],
    "logit_scale": lambda bits: repr(struct.unpack("<d", struct.pack("<q", bits))[0]),
}


def _by_value(process_group: Any, values: tuple[int, ...], show: Any) -> str:
    """Which ranks, of all processes, have what."""
    ranks: dict[int, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(torch.distributed.get_global_rank(process_group, rank))
    return ", ".join(f"{show(value)} on {_listed(having)}" for value, having in ranks.items())


def _listed(ranks: list[int], most: int = 8) -> str:
    """A thousand ranks are not."""
    more = f" and {len(ranks) - most} more" if len(ranks) > most else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:most]))}{more}"


def _check_group(where: str, process_group: Any, name: str) -> None:
    """That several processes can be served."""
    if torch.compiler.is_compiling() or _dispatch.functorch_active():
        raise RuntimeError(
            f"{where}: process_group is for eager mode; call the loss outside torch.compile and torch.func"
        )
    if name == "reference":
        raise RuntimeError(f"{where}: process_group needs a fused backend; see icm_fast.backends()")
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise RuntimeError(
            f"{where}: process_group={describe(process_group)} was given, but torch.distributed is not initialised"
        )
    if not isinstance(process_group, torch.distributed.ProcessGroup):
        raise TypeError(
            f"{where}: expected process_group to be a group that this process belongs to, such as "
            f"torch.distributed.group.WORLD, got {describe(process_group)}"
        )
