"""check_linear_icm_loss itself: plain torch passes, and planted faults are rejected."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from linear_cases import random_case

from icm_fast.testing import formulations
from icm_fast.testing.linear import Inputs, Results, check_linear_icm_loss

# What is wrong with a result: its place, and what it is multiplied by.
FAULTS = {
    "loss": ("loss", 1 + 1e-4),
    "a product of half the precision": ("dfeatures", "bfloat16"),
    "one element of the weight's gradient": ("dweight", "element"),
    "a row too many": ("dweight", "row"),
    "the bias's gradient": ("dbias", 1 + 1e-3),
    "the scale's gradient": ("dlogit_scale", 1 + 1e-2),
}


def plain(given: Inputs, target: object) -> Results:
    leaves = [None if each is None else each.detach().requires_grad_() for each in given]
    Z = formulations.gathered_scores(F.linear(*leaves[:3]), target.y_a, target.y_b, target.lam)
    loss = formulations.contrast(Z * leaves[3])
    return Results(loss.detach(), *torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("shape", [(61, 17, 10), (33, 40, 200)], ids=str)
def test_plain_torch_passes(shape: tuple[int, int, int], generator: torch.Generator) -> None:
    given, target = random_case(shape, generator, logit_scale=1.3)
    check_linear_icm_loss(plain(given, target), given, target)


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_rejected(name: str, generator: torch.Generator) -> None:
    given, target = random_case((61, 17, 10), generator, logit_scale=1.3)
    results = plain(given, target)
    field, change = FAULTS[name]
    wrong = getattr(results, field).clone()
    if change == "bfloat16":
        wrong = wrong.bfloat16().float()
    elif change == "element":
        wrong[3, 4] *= 1 + 1e-3
    elif change == "row":
        wrong[2] += wrong[5]
    else:
        wrong *= change
    with pytest.raises(AssertionError, match=field):
        check_linear_icm_loss(results._replace(**{field: wrong}), given, target)
