"""Checks of arguments. A message names the function and the argument, what was expected, what came, what to do.

Only shapes, types and devices are read here, never values: that would wait for a GPU. The exception is
`check_target_values`, which the losses call when a result is NaN, or when `validate=True` asks for it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
)


def describe(value: Any) -> str:
    """What came, in few words."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    return type(value).__name__


def check_tensor(where: str, name: str, value: Any, fix: str = "") -> Tensor:
    """A plain, strided tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{where}: expected {name} to be a tensor, got {describe(value)}. {fix}".rstrip())
    if value.layout != torch.strided:
        raise TypeError(f"{where}: expected a strided {name}, got layout {value.layout}; call {name}.to_dense()")
    if hasattr(value, "full_tensor"):
        # Told by its method: its class is in a module that takes long to import.
        raise TypeError(
            f"{where}: {name} is a DTensor; pass {name}.full_tensor(), or, where each process holds rows of its own, "
            f"{name}.to_local() (a loss then takes process_group)"
        )
    return value


def check_floating(where: str, name: str, value: Any, fix: str = "") -> Tensor:
    """float32, float64, bfloat16 or float16."""
    value = check_tensor(where, name, value, fix)
    if value.dtype not in FLOATING:
        raise TypeError(
            f"{where}: expected {name} in float32, float64, bfloat16 or float16, got {describe(value)}. {fix}".rstrip()
        )
    return value


def check_labels(where: str, name: str, value: Any, shape: torch.Size | None = None) -> Tensor:
    """(B,) integers, returned as int64."""
    value = check_tensor(where, name, value)
    if value.dtype not in INTEGERS:
        raise TypeError(f"{where}: expected {name} to hold integer labels, got {describe(value)}")
    if value.dim() != 1:
        hint = "; one-hot labels are given as floats" if value.dim() == 2 else ""
        raise ValueError(f"{where}: expected {name} of shape (B,), got {describe(value)}{hint}")
    if shape is not None and value.shape != shape:
        raise ValueError(f"{where}: expected {name} of shape {tuple(shape)} like y_a, got {tuple(value.shape)}")
    return value.long()


def check_same_device(where: str, **tensors: Tensor) -> None:
    """All on the device of the first."""
    names = list(tensors)
    first = tensors[names[0]].device
    for name in names[1:]:
        if tensors[name].device != first:
            raise ValueError(
                f"{where}: {names[0]} is on {first} but {name} is on {tensors[name].device}; "
                f"move it with {name}.to({names[0]}.device)"
            )


def check_choice(where: str, name: str, value: Any, choices: tuple[str, ...]) -> None:
    """One of a few words."""
    if value not in choices:
        raise ValueError(f"{where}: expected {name} to be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_number(
    where: str, name: str, value: Any, *, least: float = -math.inf, most: float = math.inf, exclusive: bool = False
) -> float:
    """A finite number in [least, most], or in (least, most] if exclusive."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{where}: expected {name} to be a number, got {describe(value)}")
    if not (math.isfinite(value) and least <= value <= most) or (exclusive and value == least):
        if most < math.inf:
            range_ = f"in {'(' if exclusive else '['}{least}, {most}]"
        else:
            range_ = f"{'>' if exclusive else '>='} {least}"
        raise ValueError(f"{where}: expected {name} {range_}, got {value}")
    return value


def as_scalar(value: float, dtype: torch.dtype, device: torch.device | None) -> Tensor:
    """A number as a 0-d tensor."""
    if torch.compiler.is_compiling():  # torch.full would make a graph for each number
        return torch.ones((), dtype=dtype, device=device) * value
    return torch.full((), value, dtype=dtype, device=device)


def check_label_values(
    where: str, name: str, labels: Tensor, num_classes: int, of: str = "logits with {} classes"
) -> None:
    """Every label in [0, num_classes). Reads the labels."""
    bad = (labels < 0) | (labels >= num_classes)
    if bool(bad.any()):
        at = int(bad.nonzero()[0])
        raise ValueError(
            f"{where}: expected labels in [0, {num_classes}) for {of.format(num_classes)}, "
            f"got {name}[{at}] = {int(labels[at])}"
        )


def check_lam_values(where: str, lam: Tensor) -> None:
    """Every lam in [0, 1]. Reads lam."""
    bad = ~((lam >= 0) & (lam <= 1))
    if bool(bad.any()):
        at = int(bad.reshape(-1).nonzero()[0])
        name = "lam" if lam.dim() == 0 else f"lam[{at}]"
        raise ValueError(f"{where}: expected lam in [0, 1], got {name} = {float(lam.reshape(-1)[at])}")


def check_target_values(where: str, target: Any, num_classes: int) -> None:
    """Labels and lam of a mixed target in range. Reads them."""
    check_label_values(where, "y_a", target.y_a, num_classes)
    check_label_values(where, "y_b", target.y_b, num_classes)
    check_lam_values(where, target.lam)
