"""Sizes beyond 32-bit indices and beyond a CPU's patience, against float64 in blocks of rows on the device."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import icm_fast as icm
from benchmarks.gpu import chunked
from icm_fast import functional as F_icm
from icm_fast import reference
from icm_fast.operators import _products
from icm_fast.testing import budget
from icm_fast.testing.scales import EXPONENTS, rounds

from .conftest import Covers
from .problems import Kernel, of

# (B, C, type). B * B, B * C and C * 4 bytes pass 2**31 or 2**32; 70001 and 65537 pass the largest second grid axis; of
# 21841 classes only few rows fit in a block's memory, of 33000 none.
SIZES = (
    (12000, 21841, torch.bfloat16),
    (65536, 1000, torch.float32),
    (512, 1_000_000, torch.float32),
    (65537, 33000, torch.bfloat16),
    (70001, 100, torch.bfloat16),
)
SMALL = ((1500, 60, torch.float32), (40, 3000, torch.bfloat16))


@pytest.fixture(params=SIZES, ids=lambda size: f"{size[0]}x{size[1]}-{str(size[2])[6:]}")
def size(request: pytest.FixtureRequest, device: torch.device) -> tuple[int, int, torch.dtype]:
    """A size that fits: logits, gradient, truth and blocks."""
    if device.type != "cuda":
        return SMALL[SIZES.index(request.param) % len(SMALL)]
    B, C, dtype = request.param
    gc.collect()
    torch.cuda.empty_cache()
    needed = 4 * B * C * dtype.itemsize + 12 * chunked.CHUNK_BYTES
    free = torch.cuda.mem_get_info(device)[0]
    if free < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of the device, {free / 2**30:.0f} are free")
    return request.param


def drawn(size: tuple[int, int, torch.dtype], device: torch.device) -> tuple[Tensor, icm.MixedTarget]:
    """Normal logits; the last rows and classes, whose offsets are the largest, are used."""
    B, C, dtype = size
    g = torch.Generator(device).manual_seed(0)
    logits = torch.empty(B, C, dtype=dtype, device=device).normal_(0, 3, generator=g)
    return logits, drawn_target(B, C, g)


def drawn_target(B: int, C: int, g: torch.Generator) -> icm.MixedTarget:
    y_a = torch.randint(C, (B,), generator=g, device=g.device)
    y_a[-1] = C - 1
    lam = torch.rand(B, generator=g, device=g.device)
    return icm.MixedTarget(y_a, y_a[torch.randperm(B, generator=g, device=g.device)], lam)


def assert_within(ours: Tensor, truth: Tensor, scale: Tensor | float, what: str) -> None:
    """|ours - truth| <= eps * scale and one rounding to the type of ours. No allowance for what torch itself errs."""
    eps = budget.TOLERANCES[torch.float32].eps
    allowed = eps * torch.as_tensor(scale, device=truth.device)
    allowed = allowed + budget.rounding(truth.abs() + allowed, ours.dtype)
    beyond = ~((ours.double() - truth).abs() <= allowed)
    assert not beyond.any(), f"{what}: {int(beyond.sum())} of {ours.numel()} elements beyond the budget"


@of("icm_loss")
def test_icm_loss(size: tuple[int, int, torch.dtype], kernel: Kernel, device: torch.device, covers: Covers) -> None:
    logits, target = drawn(size, device)
    leaf = logits.requires_grad_()
    loss = F_icm.icm_loss(leaf, target, backend=kernel.backend)
    (dlogits,) = torch.autograd.grad(loss, leaf)
    columns = chunked.first_pass(leaf.detach(), target)
    assert_within(loss.detach(), columns.loss(), chunked.loss_scale(columns), "loss")
    for rows in chunked.blocks(size[0], max(size[:2])):
        truth = chunked.gradient(leaf.detach(), target, columns, rows)
        assert_within(dlogits[rows], truth.dlogits, truth.scale, f"dlogits of rows {rows.start} to {rows.stop}")
    covers(kernel, size[2], size[:2])


@of("mixup_cross_entropy", "am_mixup_loss")
def test_row_losses(size: tuple[int, int, torch.dtype], kernel: Kernel, device: torch.device, covers: Covers) -> None:
    """Losses whose rows do not know each other: some rows, the last ones with them, say what all do."""
    logits, target = drawn(size, device)
    leaf = logits.requires_grad_()
    B, C, _ = size
    some = torch.cat([torch.arange(0, B, max(1, B // 100)), torch.arange(max(0, B - 8), B)]).unique().to(device)
    options: dict[str, Any] = {"reduction": "none", "backend": kernel.backend}
    wide = leaf.detach()[some].double().requires_grad_()
    if kernel.operation == "mixup_cross_entropy":
        loss = F_icm.mixup_cross_entropy(leaf, target, **options)
        few = icm.MixedTarget(target.y_a[some], target.y_b[some], target.lam[some])
        truth = reference.mixup_cross_entropy(wide, few, reduction="none")
    else:  # every sample its own partner: rows that know only themselves
        loss = F_icm.am_mixup_loss(leaf, torch.arange(B, device=device), 0.75, target.y_a, **options)
        truth = reference.am_mixup_loss(
            wide, torch.arange(len(some), device=device), 0.75, target.y_a[some], reduction="none"
        )
    (dlogits,) = torch.autograd.grad(loss, leaf, torch.ones_like(loss))
    (expected,) = torch.autograd.grad(truth, wide, torch.ones_like(truth))
    each = 2 * (rounds(C) + 2 * EXPONENTS * 2 * float(wide.detach().abs().max()))
    P = wide.detach().softmax(1)
    assert not loss.isnan().any() and not dlogits.isnan().any()
    assert_within(loss.detach()[some], truth.detach(), each + truth.detach(), "loss")
    assert_within(dlogits[some], expected, each * (P + (P - expected).abs() + 1 / C), "dlogits")
    covers(kernel, size[2], (B, C))


# Rows, features, classes: on mixed classifiers, and through logits a block of rows at a time.
LINEAR = ((65537, 48, 100_003, torch.bfloat16), (65537, 48, 1000, torch.float32), (70001, 64, 100, torch.bfloat16))
VIEWS = ((65537, 48, torch.bfloat16), (70001, 32, torch.float32))


def normal(rows: int, depth: int, dtype: torch.dtype, device: torch.device, number: int) -> Tensor:
    g = torch.Generator(device).manual_seed(number)
    return torch.empty(rows, depth, dtype=dtype, device=device).normal_(0, depth**-0.25, generator=g).requires_grad_()


def free_enough(rows: int, device: torch.device) -> int:
    """The rows, or few on a stand-in; the truth holds blocks of float64."""
    if device.type != "cuda":
        return 300
    gc.collect()
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(device)[0]
    if free < 12 * chunked.CHUNK_BYTES:
        pytest.skip(f"needs {12 * chunked.CHUNK_BYTES / 2**30:.0f} GiB of the device, {free / 2**30:.0f} are free")
    return rows


def in_little_memory(call: Callable[[], tuple[Tensor, ...]], *leaves: Tensor) -> tuple[Tensor, ...]:
    """The call; a few copies of the leaves and a block of scores are what it may hold."""
    if leaves[0].device.type != "cuda":
        return call()
    numbers = _products._BLOCKS["cuda"][0]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = call()
    extra = torch.cuda.max_memory_allocated() - before
    allowed = 2 * numbers * leaves[0].dtype.itemsize + 32 * sum(each.numel() for each in leaves) + 2**28
    assert extra <= allowed, f"{extra / 2**20:.0f} MiB, allowed {allowed / 2**20:.0f}"
    return found


@of("contrastive_loss")
@pytest.mark.parametrize("size", VIEWS, ids=str)
def test_contrastive_loss(
    size: tuple[int, int, torch.dtype], kernel: Kernel, device: torch.device, covers: Covers
) -> None:
    rows, dtype = free_enough(size[0], device), size[2]
    x, y = (normal(rows, size[1], dtype, device, number) for number in range(2))

    def call() -> tuple[Tensor, ...]:
        loss = F_icm.contrastive_loss(x, y, 2.0, backend=kernel.backend)
        return loss.detach(), *torch.autograd.grad(loss, [x, y])

    loss, dx, dy = in_little_memory(call, x, y)
    truth = chunked.views(x.detach(), y.detach(), 2.0, dtype)
    assert_within(loss, truth.loss, truth.loss_scale, "loss")
    assert_within(dx, truth.dx, truth.dx_scale, "dx")
    assert_within(dy, truth.dy, truth.dy_scale, "dy")
    covers(kernel, dtype, (rows, size[1]))


@of("linear_icm_loss")
@pytest.mark.parametrize("size", LINEAR, ids=str)
def test_linear_icm_loss(
    size: tuple[int, int, int, torch.dtype], kernel: Kernel, device: torch.device, covers: Covers
) -> None:
    rows, (_, depth, classes, dtype) = free_enough(size[0], device), size
    features, weight = normal(rows, depth, dtype, device, 0), normal(classes, depth, dtype, device, 1)
    target = drawn_target(rows, classes, torch.Generator(device).manual_seed(2))

    def call() -> tuple[Tensor, ...]:
        loss = F_icm.linear_icm_loss(features, weight, target, backend=kernel.backend)
        return loss.detach(), *torch.autograd.grad(loss, [features, weight])

    loss, dfeatures, dweight = in_little_memory(call, features, weight)
    wide = weight.detach().double().requires_grad_()
    mixed, size_of = reference.mixed_classifiers(wide, target), reference.mixed_classifiers(wide.detach().abs(), target)
    truth = chunked.views(features.detach(), mixed.detach(), 1.0, dtype, size_of)
    assert_within(loss, truth.loss, truth.loss_scale, "loss")
    assert_within(dfeatures, truth.dx, truth.dx_scale, "dfeatures")
    for_classes = [torch.autograd.grad(mixed, wide, each, retain_graph=True)[0] for each in (truth.dy, truth.dy_scale)]
    assert_within(dweight, *for_classes, "dweight")
    covers(kernel, dtype, (rows, classes, depth))


@of("mixup")
def test_mixup(kernel: Kernel, device: torch.device, covers: Covers) -> None:
    """More than 2**31 pixels."""
    side = 1700 if device.type == "cuda" else 17
    shape = (256, 3, side, side)
    needed = 12 * 256 * 3 * side * side
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else needed
    if free < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of the device, {free / 2**30:.0f} are free")
    g = torch.Generator(device).manual_seed(0)
    pixels = torch.randint(256, shape, generator=g, device=device, dtype=torch.uint8)
    index, lam = torch.randperm(256, generator=g, device=device), torch.rand(256, generator=g, device=device)
    mean, std = torch.tensor([0.4, 0.5, 0.6], device=device), torch.tensor([0.2, 0.25, 0.3], device=device)
    mixed = F_icm.mixup(pixels, index, lam, mean=mean, std=std, dtype=torch.bfloat16, backend=kernel.backend)
    for i in range(0, 256, 5):
        pair = torch.stack([pixels[i], pixels[index[i]]])
        swap = torch.tensor([1, 0], device=device)
        truth = reference.mixup(pair, swap, lam[i].expand(2), mean=mean, std=std, dtype=torch.float64)[:1]
        # As check_byte_mixup: 10 roundings of numbers of at most 1 / std + mean / std.
        assert_within(mixed[i : i + 1], truth, 5 * (1.6 / 0.2), f"sample {i}")
    covers(kernel, torch.uint8, shape)
