"""Fused mixing on the device against the float64 reference: types, layouts, boxes, bytes."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from icm_fast import functional as F_icm
from icm_fast.testing.checks import check_byte_mixup, check_mixup
from icm_fast.testing.regimes import SHAPES as TABLES

from .conftest import Covers
from .problems import DTYPES, Kernel

OPERATIONS = ("mixup",)
# One element; fewer than a vector; primes, which leave tails; rows that are not whole vectors; images of a data set.
SHAPES = (
    (0, 3),
    (1, 1),
    (2, 16),
    (5, 17),
    (7,),
    (3, 3, 5, 7),
    (4, 2, 8, 16),
    (33, 1, 9, 9),
    (3, 2, 11, 1),
    (65, 3, 32, 32),
)
IMAGES = tuple(shape for shape in SHAPES if len(shape) == 4)
mark_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def partners(batch_size: int, device: torch.device, g: torch.Generator) -> list[Tensor]:
    """A permutation; repeats and gaps; all the same; everyone alone."""
    drawn = torch.randint(max(batch_size, 1), (batch_size,), generator=g)
    same, own = torch.full((batch_size,), batch_size // 2), torch.arange(batch_size)
    return [index.to(device) for index in (torch.randperm(batch_size, generator=g), drawn, same, own)]


def mixed_and_dx(
    x: Tensor, index: Tensor, lam: Tensor, g: Tensor, backend: str, **options: object
) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    out = F_icm.mixup(leaf, index, lam, backend=backend, **options)
    (dx,) = torch.autograd.grad(out, leaf, g)
    return out.detach(), dx


@mark_dtypes
@pytest.mark.parametrize("shape", SHAPES + TABLES, ids=str)
def test_mixed_samples_and_gradient(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    kernel: Kernel,
    device: torch.device,
    generator: torch.Generator,
    covers: Covers,
) -> None:
    x, g = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(2))
    before = x.clone()
    for index in partners(shape[0], device, generator):
        for lam in (torch.tensor(0.3), torch.rand(shape[0], generator=generator)):
            mixed, dx = mixed_and_dx(x, index, lam.to(device), g, kernel.backend)
            check_mixup(mixed, dx, x, index, lam, grad_output=g, what=f"lam {tuple(lam.shape)}")
    assert torch.equal(x, before), "the call changed its samples"
    covers(kernel, dtype, shape)


@mark_dtypes
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_boxes(
    channels_last: bool, dtype: torch.dtype, kernel: Kernel, device: torch.device, generator: torch.Generator
) -> None:
    for shape in IMAGES:
        height, width = shape[-2:]
        layout = torch.channels_last if channels_last else torch.contiguous_format
        x = torch.randn(shape, generator=generator).to(device, dtype, memory_format=layout)
        g = torch.randn(shape, generator=generator).to(device, dtype)
        each = torch.stack(
            [torch.randint(n + 1, (shape[0],), generator=generator) for n in (height,) * 2 + (width,) * 2]
        )
        boxes = (
            torch.tensor([1, height - 1, 1, width]),
            torch.tensor([-3, height // 2, width // 2, width + 9]),
            each.T,
        )
        for box, index in zip(boxes, partners(shape[0], device, generator), strict=False):
            mixed, dx = mixed_and_dx(x, index, torch.tensor(0.3, device=device), g, kernel.backend, box=box.to(device))
            check_mixup(mixed, dx, x, index, torch.tensor(0.3), box=box, grad_output=g)


@mark_dtypes
@pytest.mark.parametrize("shape", IMAGES, ids=str)
def test_bytes(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    kernel: Kernel,
    device: torch.device,
    generator: torch.Generator,
    covers: Covers,
) -> None:
    pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8).to(device)
    mean, std = (low + torch.rand(shape[1], generator=generator).to(device) for low in (0.0, 0.1))
    lam = torch.rand(shape[0], generator=generator).to(device)
    layouts = (pixels, pixels.contiguous(memory_format=torch.channels_last))
    for x, keep_clean, index in itertools.product(layouts, (False, True), partners(shape[0], device, generator)[:2]):
        mixed = F_icm.mixup(
            x, index, lam, mean=mean, std=std, keep_clean=keep_clean, dtype=dtype, backend=kernel.backend
        )
        check_byte_mixup(mixed, x, index, lam, mean, std, keep_clean=keep_clean)
    covers(kernel, torch.uint8, shape)


@mark_dtypes
def test_exact_laws_and_out(
    dtype: torch.dtype, kernel: Kernel, device: torch.device, generator: torch.Generator
) -> None:
    x = torch.randn(65, 3, 7, 9, generator=generator).to(device, dtype)
    index = torch.randperm(65, generator=generator).to(device)
    lam = torch.rand(65, generator=generator).to(device)
    for weight, expected in ((1.0, x), (0.0, x[index])):
        assert torch.equal(F_icm.mixup(x, index, weight, backend=kernel.backend), expected)
    assert torch.equal(F_icm.mixup(x, torch.arange(65, device=device), lam, backend=kernel.backend), x)
    mixed = F_icm.mixup(x, index, lam, backend=kernel.backend)
    out = torch.full_like(mixed, float("nan"))
    assert F_icm.mixup(x, index, lam, out=out, backend=kernel.backend) is out and torch.equal(out, mixed)
    other = torch.full((65, 3, 9, 7), float("nan"), device=device, dtype=dtype).transpose(2, 3)
    F_icm.mixup(x, index, lam, out=other, backend=kernel.backend)
    assert torch.equal(other, mixed)
