"""What results are compared with before anything is timed: float64 on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import EllipsisType

import torch
import torch.nn.functional as F
from torch import Tensor

from icm_fast import reference

from ..speed.workloads import Workload
from . import chunked
from .workloads import LINEAR, MIXING, PRODUCTS, RATE, Spec

# Relative to the largest value of the truth. float32 sums of up to 10^5 terms, and one rounding to the type of the
# result: a right formulation is far inside, a wrong one far outside.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}
OF_PRODUCTS = 4  # times as much, for what products are made of has been rounded itself, mixed classifiers and dZ
WHOLE_BYTES = 2**31  # of a float64 gradient; beyond, the first and the last rows stand for all
SOME_ROWS = 512


def tolerance(spec: Spec) -> float:
    """For the results of a workload."""
    return TOLERANCES[spec.result_dtype] * (OF_PRODUCTS if spec.operation in PRODUCTS else 1)


@dataclass(frozen=True)
class Truth:
    """A result, and for each leaf pieces of its gradient: which rows, and their values."""

    result: Tensor
    gradients: tuple[tuple[tuple[slice | EllipsisType, Tensor], ...], ...]

    def error(self, result: Tensor, gradients: Sequence[Tensor]) -> float:
        """The largest distance, relative to the largest value of each; NaN counts as infinite."""
        pairs = [(result, self.result)]
        for ours, pieces in zip(gradients, self.gradients, strict=True):
            pairs += [(ours[rows], values) for rows, values in pieces]
        worst = 0.0
        for ours, exact in pairs:
            if ours.shape != exact.shape:
                return float("inf")
            error = float((ours.detach().double() - exact).abs().max() / exact.abs().max().clamp(min=1e-300))
            worst = max(worst, error if error == error else float("inf"))
        return worst


def truth(workload: Workload, name: str) -> Truth:
    """Of the workload's operation, or of "cross_entropy" with its hard labels."""
    inputs = workload.inputs
    if name == MIXING:
        x = inputs["x"] if inputs["x"].dtype == torch.uint8 else inputs["x"].double()
        pixels = {"mean": inputs["mean"], "std": inputs["std"], "dtype": torch.float64} if "mean" in inputs else {}
        return Truth(reference.mixup(x, inputs["index"], inputs["lam"], **pixels), ())
    if name in PRODUCTS:
        return _views(workload)
    target = inputs["target"]
    if name == "icm_loss":
        return _icm_loss(inputs["logits"].detach(), workload)
    leaf = inputs["logits"].detach().double().requires_grad_()
    if name == "cross_entropy":
        loss = F.cross_entropy(leaf, target.y_a)
    elif name == "am_mixup_loss":
        loss = reference.am_mixup_loss(leaf, inputs["index"], RATE, target.y_a)
    else:
        loss = reference.mixup_cross_entropy(leaf, target)
    assert isinstance(loss, Tensor)
    return _whole(loss.detach(), *torch.autograd.grad(loss, leaf))


def _whole(loss: Tensor, *gradients: Tensor) -> Truth:
    return Truth(loss, tuple(((..., each),) for each in gradients))


def _views(workload: Workload) -> Truth:
    """Of two views, one of which the mixed classifiers may be."""
    inputs = workload.inputs
    if workload.operation != LINEAR:
        x, y, scale = workload.leaves
        found = chunked.views(x.detach(), y.detach(), float(scale.detach()), x.dtype)
        return _whole(found.loss, found.dx, found.dy, found.dscale)
    weight = inputs["weight"].detach().double().requires_grad_()
    mixed = reference.mixed_classifiers(weight, inputs["target"])
    found = chunked.views(inputs["features"].detach(), mixed.detach(), 1.0, inputs["features"].dtype)
    return _whole(found.loss, found.dx, *torch.autograd.grad(mixed, weight, found.dy))


def _icm_loss(logits: Tensor, workload: Workload) -> Truth:
    target, B = workload.inputs["target"], logits.shape[0]
    columns = chunked.first_pass(logits, target)
    if 8 * logits.numel() <= WHOLE_BYTES:
        wanted = list(chunked.blocks(B, max(logits.shape)))
    else:
        wanted = [slice(0, SOME_ROWS), slice(B - SOME_ROWS, B)]
    pieces = tuple((rows, chunked.gradient(logits, target, columns, rows).dlogits) for rows in wanted)
    return Truth(columns.loss(), (pieces,))
