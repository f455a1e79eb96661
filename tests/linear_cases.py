"""Cases of linear_icm_loss, and its three ways, for the test files about it."""

from __future__ import annotations

import torch
from torch import Tensor

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast.testing.linear import Inputs, Results

# Logits kept, logits a block of rows at a time, mixed classifiers: whether through logits, numbers that are kept.
WAYS = {"logits": (True, 1 << 60), "blocks": (True, -1), "classifiers": (False, 0)}


def random_case(
    shape: tuple[int, int, int],
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
    bias: bool = True,
    logit_scale: float | None = None,
) -> tuple[Inputs, icm.MixedTarget]:
    rows, depth, classes = shape
    features = torch.randn(rows, depth, generator=generator)
    weight = torch.randn(classes, depth, generator=generator) * 2 / depth**0.5
    offset = torch.randn(classes, generator=generator) if bias else None
    labels = torch.randint(classes, (rows,), generator=generator)
    partner = labels[torch.randperm(rows, generator=generator)]
    tensors = [None if each is None else each.to(dtype) for each in (features, weight, offset)]
    scale = (
        None
        if logit_scale is None
        else torch.tensor(logit_scale, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    )
    return Inputs(*tensors, scale), icm.MixedTarget(labels, partner, torch.rand(rows, generator=generator))


def run(given: Inputs, target: icm.MixedTarget | Tensor, grad: Tensor | None = None, **options: object) -> Results:
    leaves = [None if each is None else each.detach().requires_grad_() for each in given]
    features, weight, bias, scale = leaves
    loss = F_icm.linear_icm_loss(features, weight, target, bias, logit_scale=scale, **options)
    wanted = [each for each in leaves if each is not None]
    gradients = iter(torch.autograd.grad(loss, wanted, torch.ones_like(loss) if grad is None else grad))
    return Results(loss.detach(), *(None if each is None else next(gradients) for each in leaves))
