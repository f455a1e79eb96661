"""Fused mixing against the float64 reference: shapes x types x partners x boxes x layouts, on every backend."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import backends_of
from torch import Tensor

from icm_fast import functional as F_icm
from icm_fast import reference
from icm_fast.testing import budget
from icm_fast.testing.checks import check_byte_mixup, check_mixup

BACKENDS = backends_of("mixup")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NAN = float("nan")

# B: none, one (its own partner), two, odd, more than threads. Sample: one element; fewer than a vector; 16, a vector
# of float32; primes, which leave tails; rows that are not whole vectors; images of one row, of one column.
SHAPES = (
    (0, 3),
    (1, 1),
    (2, 16),
    (5, 17),
    (7,),
    (3, 3, 5, 7),
    (4, 2, 8, 16),
    (33, 1, 9, 9),
    (3, 2, 1, 11),
    (3, 2, 11, 1),
)
IMAGES = tuple(shape for shape in SHAPES if len(shape) == 4)

mark_backends = pytest.mark.parametrize("backend", BACKENDS)
mark_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def partners(batch_size: int, g: torch.Generator) -> dict[str, Tensor]:
    """A permutation; a draw with repeats and gaps; all the same; everyone alone."""
    return {
        "permutation": torch.randperm(batch_size, generator=g),
        "repeats": torch.randint(max(batch_size, 1), (batch_size,), generator=g),
        "one": torch.full((batch_size,), batch_size // 2),
        "own": torch.arange(batch_size),
    }


def boxes(shape: tuple[int, ...], g: torch.Generator) -> dict[str, Tensor]:
    """Inside; beyond the image; the whole; none; reversed; one per sample."""
    height, width = shape[-2:]
    edges = [torch.randint(size + 1, (shape[0],), generator=g) for size in (height, height, width, width)]
    fixed = {"inside": (1, height - 1, 1, width - 1), "beyond": (-3, height // 2, width // 2, width + 9)}
    fixed |= {"whole": (0, height, 0, width), "none": (2, 2, 0, width), "reversed": (height, 0, width, 0)}
    return {name: torch.tensor(box) for name, box in fixed.items()} | {"each": torch.stack(edges, 1)}


def mixed_and_dx(
    x: Tensor, index: Tensor, lam: Tensor, g: Tensor, backend: str, **options: object
) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    out = F_icm.mixup(leaf, index, lam, backend=backend, **options)
    (dx,) = torch.autograd.grad(out, leaf, g)
    return out.detach(), dx


def bytes_like(shape: tuple[int, ...], g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    pixels = torch.randint(256, shape, generator=g, dtype=torch.uint8)
    return pixels, torch.rand(shape[1], generator=g), 0.1 + torch.rand(shape[1], generator=g)


@mark_backends
@mark_dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mixed_samples_and_gradient(
    shape: tuple[int, ...], dtype: torch.dtype, backend: str, generator: torch.Generator
) -> None:
    x = torch.randn(shape, generator=generator).to(dtype)
    g = torch.randn(shape, generator=generator).to(dtype)
    before = x.clone()
    for name, index in partners(shape[0], generator).items():
        for lam in (torch.tensor(0.3), torch.rand(shape[0], generator=generator)):
            mixed, dx = mixed_and_dx(x, index, lam, g, backend)
            check_mixup(mixed, dx, x, index, lam, grad_output=g, what=f"{name}, lam {tuple(lam.shape)}")
    budget.check_same_bits(x, before, "x after the calls")


@mark_backends
@mark_dtypes
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_boxes(channels_last: bool, dtype: torch.dtype, backend: str, generator: torch.Generator) -> None:
    for shape in IMAGES:
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        x = torch.randn(shape, generator=generator).to(dtype, memory_format=memory_format)
        g = torch.randn(shape, generator=generator).to(dtype)
        for (name, index), (place, box) in zip(
            (partners(shape[0], generator) | {"more": torch.zeros(shape[0], dtype=torch.int64)}).items(),
            list(boxes(shape, generator).items())[1:],
            strict=True,
        ):
            mixed, dx = mixed_and_dx(x, index, torch.tensor(0.3), g, backend, box=box)
            check_mixup(mixed, dx, x, index, torch.tensor(0.3), box=box, grad_output=g, what=f"{name}, box {place}")


@mark_backends
@mark_dtypes
def test_exact_laws(dtype: torch.dtype, backend: str, generator: torch.Generator) -> None:
    x = torch.randn(5, 3, 7, 9, generator=generator).to(dtype)
    x[0, 0, 0, :3] = torch.tensor([0.0, -0.0, NAN]).to(dtype)
    index = torch.tensor([1, 2, 3, 4, 0])
    same = budget.check_same_bits
    same(F_icm.mixup(x, index, 1.0, backend=backend), x, "lam = 1")
    same(F_icm.mixup(x, index, 0, backend=backend), x[index], "lam = 0")
    same(F_icm.mixup(x, torch.arange(5), 0.3, backend=backend), x, "own partner")
    each = torch.tensor([1.0, 0.0, 0.25, 1.0, 0.0])
    same(F_icm.mixup(x, index, each, backend=backend)[[0, 1, 3, 4]], x[[0, 2, 3, 0]], "lam per sample")
    box = torch.tensor([2, 5, 3, 9])
    cut = x.clone()
    cut[:, :, 2:5, 3:9] = x[index][:, :, 2:5, 3:9]
    same(F_icm.mixup(x, index, 0.3, box=box, backend=backend), cut, "box")


@mark_backends
def test_what_takes_no_part_is_not_read(backend: str) -> None:
    x = torch.tensor([[NAN] * 20, [1.0] * 20, [2.0] * 20])
    index, lam = torch.tensor([1, 0, 1]), torch.tensor([0.0, 1.0, 0.5])
    mixed, dx = mixed_and_dx(x, index, lam, torch.tensor([[1.0], [NAN], [1.0]]).expand(3, 20).contiguous(), backend)
    assert mixed.isfinite().all()
    # The NaN that came in for sample 1 belongs to sample 1 alone.
    assert dx[0].tolist() == [0.0] * 20 and dx[1].isnan().all() and dx[2].tolist() == [0.5] * 20


@mark_backends
def test_layouts_are_kept_and_views_are_read(backend: str, generator: torch.Generator) -> None:
    base = torch.randn(12, 6, 10, 8, generator=generator)
    index, lam = torch.randperm(6, generator=generator), torch.rand(6, generator=generator)
    views: dict[str, Callable[[Tensor], Tensor]] = {
        "every other sample": lambda t: t[::2],
        "channels_last": lambda t: t[:6].contiguous(memory_format=torch.channels_last),
        "transposed images": lambda t: t[:6].transpose(2, 3),
        "batch innermost": lambda t: t[:6].permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
        "misaligned rows": lambda t: t[:6, 1:],
        "misaligned columns": lambda t: t[:6, :, :, 1:],
        "one sample six times": lambda t: t[:1].expand(6, -1, -1, -1),
    }
    for name, view in views.items():
        x = view(base)
        for box in (None, torch.tensor([1, 6, 2, 7])):
            expected = F_icm.mixup(x.contiguous(), index, lam, box=box, backend=backend)
            mixed, dx = mixed_and_dx(x, index, lam, torch.ones_like(expected), backend, box=box)
            budget.check_same_bits(mixed, expected, name)
            check_mixup(mixed, dx, x, index, lam, box=box, what=name)
        mixed = F_icm.mixup(x, index, lam, backend=backend)
        dense = name in ("every other sample", "channels_last", "transposed images", "misaligned rows")
        assert mixed.stride()[1:] == (x if dense else x.contiguous()).stride()[1:], name


@mark_backends
@mark_dtypes
def test_keep_clean(dtype: torch.dtype, backend: str, generator: torch.Generator) -> None:
    x = torch.randn(5, 3, 7, 9, generator=generator).to(dtype)
    index, lam = torch.tensor([1, 0, 1, 3, 1]), torch.rand(5, generator=generator)
    for box in (None, torch.tensor([1, 6, 2, 7])):
        g = torch.randn(10, 3, 7, 9, generator=generator).to(dtype)
        both, dx = mixed_and_dx(x, index, lam, g, backend, box=box, keep_clean=True)
        mixed, _ = mixed_and_dx(x, index, lam, g[5:], backend, box=box)
        budget.check_same_bits(both, torch.cat([x, mixed]), "clean and mixed")
        leaf = x.double().requires_grad_()
        truth = reference.mixup(leaf, index, lam.double(), box=box, keep_clean=True)
        (expected,) = torch.autograd.grad(truth, leaf, g.double())
        torch.testing.assert_close(dx.double(), expected, rtol=0, atol=20 * torch.finfo(dtype).eps)


@mark_backends
@mark_dtypes
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_uint8(channels_last: bool, dtype: torch.dtype, backend: str, generator: torch.Generator) -> None:
    for shape in (*IMAGES, (5, 17), (2, 3, 40)):
        x, mean, std = bytes_like(shape, generator)
        if channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        index, lam = torch.randperm(shape[0], generator=generator), torch.rand(shape[0], generator=generator)
        for box in (None, *(boxes(shape, generator).values() if x.dim() == 4 else ())):
            for keep_clean in (False, True):
                options = {"mean": mean, "std": std, "keep_clean": keep_clean, "box": box}
                mixed = F_icm.mixup(x, index, lam, dtype=dtype, backend=backend, **options)
                check_byte_mixup(mixed, x, index, lam, mean, std, box=box, keep_clean=keep_clean)
                assert mixed.stride()[1:] == x.stride()[1:]


@mark_backends
def test_uint8_is_normalised_alike_wherever_it_comes_from(backend: str, generator: torch.Generator) -> None:
    x, mean, std = bytes_like((4, 3, 5, 7), generator)
    index = torch.tensor([3, 2, 1, 0])

    def normalised(index: Tensor, lam: float) -> Tensor:
        return F_icm.mixup(x, index, lam, mean=mean, std=std, backend=backend)

    clean = normalised(torch.arange(4), 0.3)
    budget.check_same_bits(normalised(index, 1.0), clean, "lam = 1")
    budget.check_same_bits(normalised(index, 0.0), clean[index], "lam = 0")
    as_list = F_icm.mixup(x, index, 1.0, mean=mean.tolist(), std=std.tolist(), backend=backend)
    budget.check_same_bits(as_list, clean, "mean and std as lists")


# Results above 16 MiB are written past the caches, in pieces that must be aligned: the bits of small ones.
@mark_backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_large_results(dtype: torch.dtype, backend: str, generator: torch.Generator) -> None:
    shape = (3 * 4 // dtype.itemsize, 2, 601, 1201)
    x = torch.randn(shape, generator=generator).to(dtype)
    pixels, mean, std = bytes_like(shape, generator)
    index, lam = torch.randint(shape[0], shape[:1], generator=generator), torch.rand(shape[0], generator=generator)

    def by_rows(mix: Callable[[Tensor], Tensor], samples: Tensor) -> Tensor:
        return torch.cat([mix(rows.contiguous()) for rows in samples.split(150, dim=2)], dim=2)

    def mixed(x: Tensor) -> Tensor:
        return F_icm.mixup(x, index, lam, backend=backend)

    def normalised(x: Tensor) -> Tensor:
        return F_icm.mixup(x, index, lam, mean=mean, std=std, dtype=dtype, backend=backend)

    def dx(g: Tensor) -> Tensor:
        return mixed_and_dx(g, index, lam, g, backend)[1]

    for what, mix, samples in (("mixed", mixed, x), ("normalised", normalised, pixels), ("dx", dx, x)):
        budget.check_same_bits(mix(samples), by_rows(mix, samples), what)
    misaligned = torch.full((2 * x.numel() + 1,), NAN, dtype=dtype)[1:].view(2 * shape[0], *shape[1:])
    F_icm.mixup(x, index, lam, keep_clean=True, out=misaligned, backend=backend)
    budget.check_same_bits(misaligned, torch.cat([x, by_rows(mixed, x)]), "clean and mixed, misaligned")
    cut = x.clone()
    cut[:, :, 3:500, 7:1190] = x[index][:, :, 3:500, 7:1190]
    boxed = F_icm.mixup(x, index, lam, box=torch.tensor([3, 500, 7, 1190]), backend=backend)
    budget.check_same_bits(boxed, cut, "box")


@mark_backends
def test_bits_do_not_depend_on_threads(backend: str, generator: torch.Generator) -> None:
    x = torch.randn(65, 3, 41, 43, generator=generator)
    index, lam = torch.randint(65, (65,), generator=generator), torch.rand(65, generator=generator)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(mixed_and_dx(x, index, lam, x, backend))
    finally:
        torch.set_num_threads(threads)
    for mixed, dx in results[1:]:
        budget.check_same_bits(mixed, results[0][0], "mixed")
        budget.check_same_bits(dx, results[0][1], "dx")


@mark_backends
def test_out(backend: str, generator: torch.Generator) -> None:
    x = torch.randn(5, 3, 7, 9, generator=generator)
    index = torch.randperm(5, generator=generator)
    expected = F_icm.mixup(x, index, 0.3, backend=backend)
    outs = {
        "like": torch.empty_like(x),
        "channels_last": torch.empty_like(x, memory_format=torch.channels_last),
        "rows of more": torch.empty(5, 6, 7, 9)[:, :3],
        "transposed": torch.empty(5, 3, 9, 7).transpose(2, 3),
        "beside x": torch.empty(10, 3, 7, 9)[5:],
    }
    for name, out in outs.items():
        out.fill_(NAN)
        returned = F_icm.mixup(x, index, 0.3, out=out, backend=backend)
        assert returned is out
        budget.check_same_bits(out, expected, name)


@mark_backends
def test_narrow_and_strided_index_lam_and_box(backend: str, generator: torch.Generator) -> None:
    x = torch.randn(5, 2, 4, 6, generator=generator)
    index, lam = torch.randperm(5, generator=generator), torch.rand(5, generator=generator)
    box = torch.tensor([[0, 2, 1, 5]] * 5)
    expected = F_icm.mixup(x, index, lam, backend=backend)
    cut = F_icm.mixup(x, index, lam, box=box, backend=backend)
    for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
        budget.check_same_bits(F_icm.mixup(x, index.to(dtype), lam, backend=backend), expected, str(dtype))
        budget.check_same_bits(F_icm.mixup(x, index, lam, box=box.to(dtype), backend=backend), cut, str(dtype))
    strided = (torch.stack([index, -index], 1)[:, 0], torch.stack([lam, -lam], 1)[:, 0])
    budget.check_same_bits(F_icm.mixup(x, *strided, backend=backend), expected, "strided")
    columns = box.T.contiguous().T
    budget.check_same_bits(F_icm.mixup(x, index, lam, box=columns, backend=backend), cut, "strided box")
    check_mixup(F_icm.mixup(x, index, lam.half(), backend=backend), None, x, index, lam.half())


# The same assertions must reject what a slip would compute.
@pytest.mark.parametrize("slip", ["lam swapped", "next partner", "box one column on", "gradient off by 1e-3"])
def test_negative_controls(slip: str, generator: torch.Generator) -> None:
    x = torch.randn(5, 2, 4, 6, generator=generator)
    index, lam, box = torch.tensor([2, 3, 4, 0, 1]), torch.tensor(0.3), torch.tensor([0, 2, 1, 5])
    mixed, dx = mixed_and_dx(x, index, lam, x, "reference")
    if slip == "lam swapped":
        wrong = (reference.mixup(x, index, 1 - lam), None, None)
    elif slip == "next partner":
        wrong = (reference.mixup(x, index.roll(1), lam), None, None)
    elif slip == "box one column on":
        wrong = (reference.mixup(x, index, lam, box=box + torch.tensor([0, 0, 1, 1])), None, box)
    else:
        wrong = (mixed, dx * (1 + 1e-3), None)
    check_mixup(mixed, dx, x, index, lam, grad_output=x)
    with pytest.raises(AssertionError, match="beyond the budget"):
        check_mixup(wrong[0], wrong[1], x, index, lam, box=wrong[2], grad_output=x)
