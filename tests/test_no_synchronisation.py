"""No path of an operator reads a tensor of the device on the host, so that a whole step fits into a CUDA graph.

The steps run on the meta device, whose tensors have no values: reading one, or copying it to the host, raises. The
kernels themselves are left out (fake ones, and Triton's launches without a launch); what surrounds them is all there.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import ROOT
from torch import Tensor, nn

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast.functional import _dispatch, _draws, _linear_ways

B, C, D = 48, 10, 6
GPU_BACKENDS = ("cuda", "triton")
HEAD = nn.Linear(D, C, device="meta")
LABELS = torch.zeros(B, dtype=torch.int64, device="meta")


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta").requires_grad_()


def target(per_sample: bool = True, clean: bool = False) -> icm.MixedTarget:
    lam = torch.empty((B,) if per_sample else (), device="meta")
    return icm.MixedTarget(LABELS, LABELS.flip(0), lam, clean=LABELS if clean else None)


def remixed() -> Tensor:
    mix = icm.Mixup(0.2, 1.0, mode="elem", prob=0.5, remix=icm.RemixRule(list(range(1, C + 1))))
    images, mixed = mix(torch.empty(B, 3, 8, 8, device="meta"), LABELS)
    return F_icm.icm_loss(images.flatten(1)[:, :C].requires_grad_(), mixed)


def of_bytes() -> Tensor:
    images = torch.empty(B, 3, 8, 8, dtype=torch.uint8, device="meta")
    mixed, both = icm.Mixup(20, keep_clean=True, mean=(0.5,) * 3, std=(0.25,) * 3)(images, LABELS)
    return icm.RegMixupLoss()(mixed.flatten(1)[:, :C].requires_grad_(), both)


STEPS: dict[str, Callable[[], Tensor]] = {
    "icm_loss": lambda: F_icm.icm_loss(leaf(B, C), target()),
    "icm_loss, one lam, a scale": lambda: F_icm.icm_loss(leaf(B, C), target(False), logit_scale=leaf()),
    "icm_loss, a batch of many": lambda: F_icm.icm_loss(
        leaf(3000, C), icm.MixedTarget(*(torch.zeros(3000, dtype=torch.int64, device="meta"),) * 2, leaf().detach())
    ),
    "icm_loss, none": lambda: F_icm.icm_loss(leaf(B, C, dtype=torch.float16), target(), reduction="none").sum(),
    "icm_loss, dense": lambda: F_icm.icm_loss(leaf(B, C), torch.empty(B, C, device="meta")),
    "icm_loss, hard": lambda: F_icm.icm_loss(leaf(B, C), LABELS),
    "mixup_cross_entropy": lambda: F_icm.mixup_cross_entropy(leaf(B, C), target(), label_smoothing=0.1),
    "am_mixup_loss": lambda: F_icm.am_mixup_loss(leaf(B, C), LABELS, torch.empty((), device="meta"), LABELS),
    "linear_icm_loss": lambda: F_icm.linear_icm_loss(leaf(B, D), HEAD.weight, target(), HEAD.bias),
    "linear_icm_loss, many classes": lambda: F_icm.linear_icm_loss(leaf(B, D), leaf(5000, D), target()),
    "linear_icm_loss, hard": lambda: F_icm.linear_icm_loss(leaf(B, D), HEAD.weight, LABELS),
    "contrastive_loss": lambda: F_icm.contrastive_loss(leaf(B, D), leaf(B, D), leaf()),
    "mixup": lambda: F_icm.mixup(leaf(B, 3, 8, 8), LABELS, target().lam).sum(),
    "RegMixupLoss": lambda: icm.RegMixupLoss()(leaf(2 * B, C), target(clean=True)),
    "Mixup with CutMix and Remix": remixed,
    "Mixup of bytes": of_bytes,
}


@pytest.fixture
def on_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """`auto` takes this backend for tensors without values."""
    for module in (_dispatch, _linear_ways):
        monkeypatch.setattr(module, "choose", lambda *_: request.param)
    # There is a kernel of it for every device but this one.
    monkeypatch.setattr(_draws, "weights", lambda _, shape, *__: torch.empty(shape, device="meta"))
    return str(request.param)


@pytest.mark.parametrize("on_backend", GPU_BACKENDS, indirect=True)
@pytest.mark.parametrize("name", STEPS)
def test_forward_and_backward_read_nothing(name: str, on_backend: str) -> None:
    loss = STEPS[name]()
    assert loss.device.type == "meta" and loss.dim() == 0
    loss.backward()


@pytest.mark.parametrize("on_backend", GPU_BACKENDS, indirect=True)
@pytest.mark.parametrize(
    "read", [Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.nonzero, bool, lambda loss: torch.zeros(3)[loss.long()]]
)
def test_reading_would_be_noticed(read: Callable[[Tensor], Any], on_backend: str) -> None:
    loss = STEPS["icm_loss"]()
    with pytest.raises((RuntimeError, NotImplementedError)):
        read(loss.detach())


# Triton's host code


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Kernels that would have been launched."""
    pytest.importorskip("triton")
    found: list[Any] = []
    names = (
        "am_mixup_loss",
        "contrastive_loss",
        "icm_loss",
        "icm_loss._plan",
        "mixup",
        "mixup_cross_entropy",
        "_rows",
        "_partners",
    )
    modules = [importlib.import_module(f"icm_fast.triton.{name}") for name in names]
    launch = importlib.import_module("icm_fast.triton._launch")
    for module in (launch, *modules):
        if hasattr(module, "launch"):
            monkeypatch.setattr(module, "launch", lambda kernel, *_, **__: found.append(kernel))
        if hasattr(module, "check_memory"):
            monkeypatch.setattr(module, "check_memory", lambda *_: None)  # there is none
    return found


def test_tritons_host_code_reads_nothing(launches: list[Any]) -> None:
    operators = {
        name: importlib.import_module(f"icm_fast.triton.{name}").OPERATORS
        for name in ("am_mixup_loss", "icm_loss", "mixup", "mixup_cross_entropy", "contrastive_loss")
    }
    logits, mixed, rate = leaf(B, C).detach(), target(), torch.empty((), device="meta")
    labels = (mixed.y_a, mixed.y_b, mixed.lam)
    options = (0, True, True, 1)

    forward, backward = (operators["icm_loss"][f"icm_loss_{way}"] for way in ("fwd", "bwd"))
    loss, _, *statistics = forward(logits, *labels, rate, *options)
    backward(loss, loss, logits, *labels, rate, *statistics, *options, True)

    forward, backward = (operators["mixup_cross_entropy"][f"mixup_cross_entropy_{way}"] for way in ("fwd", "bwd"))
    weight = torch.empty(C, device="meta")
    loss, stats = forward(logits, *labels, weight, 0.1, 1)
    backward(loss, logits, *labels, weight, stats, 0.1, 1)

    forward, backward = (operators["am_mixup_loss"][f"am_mixup_loss_{way}"] for way in ("fwd", "bwd"))
    loss, stats = forward(logits, LABELS, rate, LABELS, 1)
    backward(loss, logits, LABELS, rate, LABELS, stats, 1)

    images = torch.empty(B, 3, 8, 8, device="meta")
    box = torch.empty(B, 4, dtype=torch.int64, device="meta")
    operators["mixup"]["mixup_fwd"](images, LABELS, mixed.lam, box, None, None, True, None)
    operators["mixup"]["mixup_bwd"](images, LABELS, mixed.lam, box, False)

    sums, gradient = (operators["contrastive_loss"][f"score_{part}"] for part in ("sums", "gradient"))
    scores = torch.empty(B, B, device="meta")
    row_stats, column_stats = sums(scores, rate, 0)
    gradient(scores, rate, rate, rate, row_stats, column_stats, 0, True, True, True)

    assert len(launches) > 15


# CUDA C++


def test_cuda_sources_neither_wait_nor_allocate_past_the_framework() -> None:
    forbidden = r"cuda(Memcpy|Malloc|Free|HostAlloc)\w*\s*\(|cuda\w+Synchronize\s*\(|cudaDeviceSynchronize"
    found = {
        str(path.relative_to(ROOT)): match[0]
        for path in (ROOT / "csrc/cuda").rglob("*")
        if path.suffix in (".cu", ".h", ".cuh", ".cpp") and (match := re.search(forbidden, path.read_text()))
    }
    assert not found
    assert re.search(forbidden, "cudaStreamSynchronize(stream)") and re.search(forbidden, "cudaMemcpyAsync(to, from")
