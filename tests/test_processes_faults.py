"""process_group when processes fail or disagree: an error on every one that is left, soon, and nothing that hangs."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any

import processes
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import icm_fast as icm
from icm_fast import functional as F_icm

WORLD, ROWS, CLASSES = 3, 4, 5
TIMEOUT_S = 3.0
# What the last rank does otherwise than the others, and what all are told.
DISAGREEMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "axis": ({"axis": "class"}, "axis is 'both' on ranks 0, 1, 'class' on rank 2"),
    "reduction": ({"reduction": "sum"}, "reduction is 'mean' on ranks 0, 1, 'sum' on rank 2"),
    "scale": ({"logit_scale": 0.5}, "logit_scale is 1.0 on ranks 0, 1, 0.5 on rank 2"),
    "classes": ({"classes": CLASSES + 1}, "the number of classes is 5 on ranks 0, 1, 6 on rank 2"),
    "type": ({"dtype": torch.float64}, "the type of the input is float32 on ranks 0, 1, float64 on rank 2"),
    "lam": (
        {"lam": torch.tensor(0.3, dtype=torch.float64)},
        "target is a MixedTarget with lam in float32 on ranks 0, 1, a MixedTarget with lam in float64 on rank 2",
    ),
    "target": (
        {"dense": True},
        "target is a MixedTarget with lam in float32 on ranks 0, 1, a dense target in float32 on rank 2",
    ),
    "function": ({"linear": True}, "the function is icm_loss on ranks 0, 1, linear_icm_loss on rank 2"),
}


def loss_of(
    group: Any,
    *,
    classes: int = CLASSES,
    dtype: torch.dtype = torch.float32,
    lam: Tensor | None = None,
    dense: bool = False,
    linear: bool = False,
    labels: Tensor | None = None,
    **options: Any,
) -> Tensor:
    labels = torch.arange(ROWS) if labels is None else labels
    target: Any = icm.MixedTarget(labels, labels.roll(1), torch.tensor(0.3) if lam is None else lam)
    target = target.dense(classes) if dense else target
    logits = torch.zeros(ROWS, classes, dtype=dtype, requires_grad=True)
    if linear:
        return F_icm.linear_icm_loss(logits, torch.eye(classes, dtype=dtype), target, process_group=group, **options)
    return F_icm.icm_loss(logits, target, process_group=group, **options)


def outcome(call: Any, *arguments: Any, **options: Any) -> tuple[str, str, float]:
    """Type and text of the error, and when it came."""
    start = time.monotonic()
    try:
        call(*arguments, **options)
    except Exception as error:
        return type(error).__name__, str(error), time.monotonic() - start
    return "none", "", time.monotonic() - start


def disagree(rank: int, world: int) -> dict[str, Any]:
    group = dist.group.WORLD
    results: dict[str, Any] = {}
    for name, (options, _) in DISAGREEMENTS.items():
        results[name] = outcome(loss_of, group, **(options if rank == world - 1 else {}))
    # Ranks are those of all processes, and one that does not belong to a group is told so.
    results["of two"] = outcome(loss_of, dist.new_group([1, 2]), **({"axis": "pair"} if rank == 1 else {}))
    # A scale of 1 is no scale, and the group goes on.
    results["after"] = loss_of(group, **({"logit_scale": 1.0} if rank == 0 else {})).item()
    return results


def work(rank: int, world: int) -> dict[str, Any]:
    of_all: list[Any] = [None] * world
    dist.all_gather_object(of_all, disagree(rank, world))
    return {"disagree": of_all, **fail(rank, world)}


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return processes.run(work, WORLD, tmp_path_factory.mktemp("ranks"), dying=(WORLD - 1,))


def test_processes_that_disagree_are_all_told_in_what(of_ranks: list[Any]) -> None:
    outside, *inside = (results["of two"] for results in of_ranks[0]["disagree"])
    assert outside[0] == "TypeError" and "a group that this process belongs to" in outside[1]
    assert all(text.endswith("axis is 'pair' on rank 1, 'both' on rank 2") for _, text, _ in inside)
    for results in of_ranks[0]["disagree"]:
        for name, (_, message) in DISAGREEMENTS.items():
            kind, text, _ = results[name]
            assert kind == "ValueError" and text.endswith(message), f"{name}: {kind}: {text}"
        assert results["after"] == pytest.approx(2 * torch.tensor(12.0).log().item())


def fail(rank: int, world: int) -> dict[str, Any]:
    """The last process fails, in ways that leave the others less and less."""
    dist.barrier()
    groups = [dist.new_group(timeout=timedelta(seconds=TIMEOUT_S)) for _ in range(3)]
    is_last = rank == world - 1
    too_few = torch.arange(ROWS - 1)
    results = {"raises": outcome(loss_of, groups[0], **({"labels": too_few} if is_last else {}))}
    dist.barrier()
    # Evaluation is local: on one process alone it leaves the others waiting.
    labels = torch.arange(ROWS)
    results["evaluates"] = (
        outcome(F_icm.icm_loss, torch.zeros(ROWS, CLASSES), labels, process_group=groups[1])
        if is_last
        else outcome(loss_of, groups[1])
    )
    dist.barrier()
    backward = loss_of(dist.group.WORLD)
    if is_last:
        dist.all_reduce = lambda *_, **__: os._exit(1)
    else:
        results["backward"] = outcome(backward.backward)
    results["dies"] = outcome(loss_of, groups[2])
    return results


def test_a_process_that_fails_gives_the_others_the_error_of_the_collective(of_ranks: list[Any]) -> None:
    for results in of_ranks[:-1]:
        for name in ("raises", "evaluates", "dies"):
            kind, text, seconds = results[name]
            assert kind in ("RuntimeError", "DistBackendError") and "icm_loss" not in text, f"{name}: {kind}: {text}"
            assert seconds < TIMEOUT_S + 10, name  # of a busy machine
            if name != "dies":
                assert seconds > TIMEOUT_S / 2 and "imed out" in text, f"{name}: {text}"
        assert results["backward"][0] == "none"  # it asks nobody
