"""What results are compared with before anything is timed: float64 on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from icm_fast import reference

from ..speed.workloads import Workload
from . import chunked
from .workloads import FROM_FEATURES, MIXING, RATE

# Relative to the largest value of the truth. float32 sums of up to 10^5 terms, and one rounding to the type of the
# result: a right formulation is far inside, a wrong one far outside.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}
WHOLE_BYTES = 2**31  # of a float64 gradient; beyond, the first and the last rows stand for all
SOME_ROWS = 512


@dataclass(frozen=True)
class Truth:
    """A result, and for each leaf pieces of its gradient: which rows, and their values."""

    result: Tensor
    gradients: tuple[tuple[tuple[slice, Tensor], ...], ...]

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
    target = inputs["target"]
    if name == "icm_loss":
        return _icm_loss(inputs["logits"].detach(), workload)
    leaves = [
        inputs[key].detach().double().requires_grad_() for key in ("features", "classifier", "logits") if key in inputs
    ]
    if name == FROM_FEATURES:
        loss = reference.icm_loss(leaves[0] @ leaves[1].T, target)
    elif name == "cross_entropy":
        loss = F.cross_entropy(leaves[0], target.y_a)
    elif name == "am_mixup_loss":
        loss = reference.am_mixup_loss(leaves[0], inputs["index"], RATE, target.y_a)
    else:
        loss = reference.mixup_cross_entropy(leaves[0], target)
    assert isinstance(loss, Tensor)
    gradients = torch.autograd.grad(loss, leaves)
    return Truth(loss.detach(), tuple(((slice(None), each),) for each in gradients))


def _icm_loss(logits: Tensor, workload: Workload) -> Truth:
    target, B = workload.inputs["target"], logits.shape[0]
    columns = chunked.first_pass(logits, target)
    if 8 * logits.numel() <= WHOLE_BYTES:
        wanted = list(chunked.blocks(B, max(logits.shape)))
    else:
        wanted = [slice(0, SOME_ROWS), slice(B - SOME_ROWS, B)]
    pieces = tuple((rows, chunked.gradient(logits, target, columns, rows).dlogits) for rows in wanted)
    return Truth(columns.loss(), (pieces,))
