"""process_group: real processes on the CPU, whose batch is that of one process to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import processes
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import icm_fast as icm
from icm_fast import functional as F_icm

CLASSES, DEPTH = 12, 6
# Rows of each process, unequal and none; 70 is more than a block of rows.
SIZES = {2: [(7, 5), (70, 3), (4, 0)], 3: [(5, 9, 2), (0, 70, 1)]}


def whole_batch(sizes: tuple[int, ...], per_sample: bool) -> tuple[Tensor, icm.MixedTarget]:
    """Features and target of all; partners stay on their process."""
    generator = torch.Generator().manual_seed(sum(sizes))
    features = torch.randn(sum(sizes), DEPTH, dtype=torch.float64, generator=generator)
    y_a = torch.randint(CLASSES, (sum(sizes),), generator=generator)
    y_b = torch.cat([part.roll(1) for part in y_a.split(list(sizes))])
    lam = torch.rand(sum(sizes), generator=generator) if per_sample else torch.full((sum(sizes),), 0.3)
    return features, icm.MixedTarget(y_a, y_b, lam, clean=y_a)


def share(
    sizes: tuple[int, ...], rank: int, features: Tensor, target: icm.MixedTarget
) -> tuple[Tensor, icm.MixedTarget]:
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    lam = target.lam[own] if len(set(target.lam.tolist())) > 1 else target.lam.new_tensor(0.3)
    return features[own], icm.MixedTarget(target.y_a[own], target.y_b[own], lam, clean=target.y_a[own])


def loss_of(kind: str, head: nn.Linear, features: Tensor, target: icm.MixedTarget, group: object) -> Tensor:
    options = {"process_group": group, "logit_scale": 0.8}
    if kind == "linear":
        return F_icm.linear_icm_loss(features, head.weight, target, head.bias, **options)
    if kind == "dense":
        return F_icm.icm_loss(head(features), target.dense(CLASSES, torch.float64), **options)
    if kind == "linear dense":
        dense = target.dense(CLASSES, torch.float64)
        return F_icm.linear_icm_loss(features, head.weight, dense, head.bias, **options)
    if kind == "regmixup":
        clean, mixed = head(features.flip(1)), head(features)
        return icm.RegMixupLoss(icm.ICMLoss(**options), gamma=0.7)((clean, mixed), target)
    axis = kind if kind in ("class", "pair") else "both"
    return F_icm.icm_loss(head(features), target, axis=axis, **options)


KINDS = ("logits", "class", "pair", "linear", "dense", "linear dense", "regmixup")


def new_head(classes: int = CLASSES) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(DEPTH, classes).double()


def train(kind: str, model: nn.Module, batches: list[tuple[Tensor, icm.MixedTarget]], group: object) -> list[float]:
    """Losses of some steps."""
    head = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for features, target in batches:
        optimiser.zero_grad()
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model(features[:0])  # arms the averaging of gradients
        loss = loss_of(kind, head, features, target, group)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def worker(rank: int, world: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for kind in KINDS:
        model = nn.parallel.DistributedDataParallel(new_head())
        batches = [share(sizes, rank, *whole_batch(sizes, k != 1)) for k, sizes in enumerate(SIZES[world])]
        results[kind] = train(kind, model, batches, dist.group.WORLD), list(model.module.parameters())
    group = dist.group.WORLD
    results["none"] = terms_of_own_rows(rank, world)
    results["extreme"] = {name: of_logits(*own, group) for name, own in extremes(world, rank).items()}
    results["clean"] = {reduction: of_clean_half(reduction, world, rank, group) for reduction in ("sum", "none")}
    cases = [(99, False), (99, True), ((1 << 32) + 1, False)]
    results["bad"] = [message_for_a_bad_label(label, rank, world, validate) for label, validate in cases]
    return results


def terms_of_own_rows(rank: int, world: int) -> tuple[Tensor, Tensor]:
    """reduction="none" with an incoming gradient of its own for every row of all."""
    sizes = SIZES[world][0]
    features, target = share(sizes, rank, *whole_batch(sizes, True))
    leaf = features @ torch.eye(DEPTH, CLASSES, dtype=torch.float64)
    leaf.requires_grad_()
    terms = F_icm.icm_loss(leaf, target, reduction="none", process_group=dist.group.WORLD)
    (gradient,) = torch.autograd.grad(terms, leaf, own_gradients(sizes)[sum(sizes[:rank]) :][: sizes[rank]])
    return terms.detach(), gradient


def own_gradients(sizes: tuple[int, ...]) -> Tensor:
    return torch.linspace(0.5, 2, sum(sizes), dtype=torch.float64)


def extremes(world: int, rank: int | None = None) -> dict[str, tuple[Tensor, icm.MixedTarget]]:
    """Logits of ranges that sums must be formed around exact maxima for, on one process, and classes that are masked
    for all rows of the first process but those of that class.
    """
    sizes = SIZES[world][0]
    features, target = whole_batch(sizes, True)
    logits = features @ torch.eye(DEPTH, CLASSES, dtype=torch.float64)
    own = torch.zeros_like(logits).scatter_(1, torch.stack((target.y_a, target.y_b), 1), 1.0).bool()
    first = (torch.arange(sum(sizes)) < sizes[0])[:, None]
    cases = {
        "wide": logits * 1e5,
        "far apart": logits + 1e6 * first,
        "masked": logits.masked_fill(first & ~own, -torch.inf),
    }
    return {name: (each, target) if rank is None else share(sizes, rank, each, target) for name, each in cases.items()}


def of_logits(logits: Tensor, target: icm.MixedTarget, group: object = None) -> tuple[Tensor, Tensor]:
    """Loss and gradient."""
    leaf = logits.clone().requires_grad_()
    loss = F_icm.icm_loss(leaf, target, process_group=group)
    return loss.detach(), *torch.autograd.grad(loss, leaf)


def of_clean_half(reduction: str, world: int, rank: int | None = None, group: object = None) -> tuple[Tensor, Tensor]:
    """RegMixup's loss and its gradient with respect to the clean logits."""
    sizes = SIZES[world][0]
    batch = whole_batch(sizes, True)
    features, target = batch if rank is None else share(sizes, rank, *batch)
    leaf = (features @ torch.eye(DEPTH, CLASSES, dtype=torch.float64)).requires_grad_()
    criterion = icm.RegMixupLoss(icm.ICMLoss(reduction=reduction, process_group=group))
    loss = criterion((leaf, leaf.detach().flip(1)), target)
    return loss.detach(), *torch.autograd.grad(loss.sum(), leaf)


def message_for_a_bad_label(label: int, rank: int, world: int, validate: bool = False) -> str:
    """The last process has a bad label: all are told, so that none waits for another."""
    target = icm.MixedTarget(*(torch.tensor([label if rank == world - 1 else 1]),) * 2, torch.tensor(0.5))
    rows = torch.arange(1 if rank > 0 else 0)  # one has none, and no entry of the loss to be NaN
    target = icm.MixedTarget(target.y_a[rows], target.y_b[rows], target.lam)
    try:
        F_icm.icm_loss(
            torch.zeros(len(rows), CLASSES), target, reduction="none", process_group=dist.group.WORLD, validate=validate
        )
    except ValueError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize("world", SIZES)
def test_processes_are_one_batch(world: int, tmp_path: Path) -> None:
    of_ranks = processes.run(worker, world, tmp_path)
    for kind in KINDS:
        model = new_head()
        batches = [whole_batch(sizes, k != 1) for k, sizes in enumerate(SIZES[world])]
        losses = train(kind, model, batches, None)
        for results in of_ranks:
            assert results[kind][0] == pytest.approx(losses, rel=1e-13), kind
            for ours, expected in zip(results[kind][1], model.parameters(), strict=True):
                torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)
    check_terms(world, of_ranks)
    for name, whole in extremes(world).items():
        loss, gradient = of_logits(*whole)
        losses, gradients = zip(*(each["extreme"][name] for each in of_ranks), strict=True)
        assert loss.isfinite() and torch.stack(losses).tolist() == pytest.approx([loss.item()] * world, rel=1e-13), name
        assert torch.allclose(torch.cat(gradients), world * gradient, rtol=1e-10, atol=1e-14), name
    for reduction in ("sum", "none"):
        loss, gradient = of_clean_half(reduction, world)
        losses, gradients = zip(*(each["clean"][reduction] for each in of_ranks), strict=True)
        torch.testing.assert_close(torch.cat(losses) if reduction == "none" else losses[-1], loss)
        torch.testing.assert_close(torch.cat(gradients), world * gradient)
    for results in of_ranks:
        assert all(f"y_a[{world - 2}] = 99" in message for message in results["bad"][:2])
        assert f"y_a[{world - 2}] = {2**31 - 1}" in results["bad"][2]  # sent as 32 bits it does not become 1


def check_terms(world: int, of_ranks: list[dict[str, tuple[Tensor, Tensor]]]) -> None:
    sizes = SIZES[world][0]
    features, target = whole_batch(sizes, True)
    leaf = (features @ torch.eye(DEPTH, CLASSES, dtype=torch.float64)).requires_grad_()
    terms = F_icm.icm_loss(leaf, target, reduction="none")
    (gradient,) = torch.autograd.grad(terms, leaf, own_gradients(sizes))
    torch.testing.assert_close(torch.cat([each["none"][0] for each in of_ranks]), terms.detach())
    # Each process's gradient is multiplied by their number, for the mean over processes.
    torch.testing.assert_close(torch.cat([each["none"][1] for each in of_ranks]), world * gradient)


def test_without_processes() -> None:
    target = icm.MixedTarget(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor(0.5))
    with pytest.raises(RuntimeError, match=r"torch\.distributed is not initialised"):
        F_icm.icm_loss(torch.zeros(2, 3), target, process_group="world")
    with pytest.raises(RuntimeError, match="needs a fused backend"):
        F_icm.icm_loss(torch.zeros(2, 3), target, process_group="world", backend="reference")
