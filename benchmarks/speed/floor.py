"""What a loss made of matrix products cannot go below: those products alone, with the passes between them.

Not a rival: it computes the loss of nothing. Its matrices have the sizes of the workload's, those of two views in the
blocks of icm_fast; nothing is gathered, merged or set to zero.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast.functional._linear_ways import MOST_KEPT, WORTH_GATHERING, through_logits
from icm_fast.operators._library import overload
from icm_fast.operators._products import are_kept, products

from .workloads import Workload

FLOOR = "floor: products and core alone"
COPY = "floor: one copy of the images"  # that mixing cannot go below: reads everything once, writes as much
MEASURED = ("linear_icm_loss", "contrastive_loss", "icm_loss_dense")


def floor(workload: Workload) -> Callable[[], None]:
    """Of one of those operations, for the way that icm_fast takes."""
    if workload.operation == "linear_icm_loss":
        rows, depth, classes = workload.size
        return _of_classifier(rows, depth, classes, workload.inputs["target"])
    rows, depth = workload.size
    return _of_views(rows, depth, wants_second=workload.operation == "contrastive_loss")


def _of_classifier(rows: int, depth: int, classes: int, target: icm.MixedTarget) -> Callable[[], None]:
    present, (y_a, y_b) = torch.stack((target.y_a, target.y_b)).unique(return_inverse=True)
    used = len(present)
    if not through_logits(rows, used):
        return _of_views(rows, depth)
    width = used if used <= WORTH_GATHERING * classes else classes
    features, weight = torch.randn(rows, depth), torch.randn(width, depth) / depth**0.5
    dfeatures, dweight = torch.empty_like(features), torch.empty_like(weight)
    scores = torch.empty(rows, width)
    logits = scores.detach().requires_grad_()  # in the same memory
    renamed = icm.MixedTarget(y_a, y_b, target.lam)

    def run() -> None:
        for _ in range(1 if rows * width <= MOST_KEPT else 2):
            torch.mm(features, weight.T, out=scores)
        (dlogits,) = torch.autograd.grad(F_icm.icm_loss(logits, renamed), logits)
        torch.mm(dlogits, weight, out=dfeatures)
        torch.mm(dlogits.T, features, out=dweight)

    return run


def _of_views(rows: int, depth: int, wants_second: bool = True) -> Callable[[], None]:
    icm.backends()  # loads the kernels, which a small batch of ours would not
    x, y = torch.randn(2, rows, depth) / depth**0.25
    dx, dy = torch.empty(2, rows, depth)
    grad = torch.tensor(1 / rows)
    sums, gradient = overload("score_sums", "cpu"), overload("score_gradient", "cpu")

    def run() -> None:
        formed = list(products(x, y, None)) if are_kept(rows, rows) else None
        statistics = [sums(block, None, begin) for begin, _, block in formed or products(x, y, None)]
        for (begin, end, block), of_block in zip(formed or products(x, y, None), statistics, strict=True):
            gradient(block, None, grad, grad, *of_block, begin, True, True, False)
            torch.mm(block, y, out=dx[begin:end])
            if wants_second:
                dy.addmm_(block.T, x[begin:end], beta=float(begin > 0))

    return run
