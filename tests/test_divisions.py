"""Sizes at which the kernels divide their work differently: more classes than a warp holds, than a block holds; more
rows than one cluster, than one turn of the grid; more partners than are searched for one by one; strides beyond 2^31.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import backends_of
from test_am_mixup_loss import drawn
from test_am_mixup_loss import loss_and_gradient as am_loss_and_gradient
from test_mixup_cross_entropy import DTYPES, loss_and_gradient
from torch import Tensor

from icm_fast import functional as F_icm
from icm_fast.testing import budget
from icm_fast.testing.am_mixup import check_am_mixup_loss
from icm_fast.testing.checks import check_mixup, check_mixup_cross_entropy
from icm_fast.testing.regimes import REGIMES

BACKENDS = backends_of("mixup_cross_entropy")
mark_backends = pytest.mark.parametrize("backend", BACKENDS)
mark_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))

# A warp's tile holds 512 float32, 1024 16-bit and 256 float64 logits, a block's 16 times as many.
CLASSES = (511, 513, 1024, 1025, 2049, 3000, 8192, 16384, 16385, 40001)
NAMES = ("normal", "confident", "large", "masked", "masked_own", "used_nan", "offset", "equal")


@mark_backends
@mark_dtypes
def test_many_classes(dtype: torch.dtype, backend: str, generator: torch.Generator) -> None:
    for number, num_classes in enumerate(CLASSES):
        for name in (NAMES[number % len(NAMES)], NAMES[(number + 3) % len(NAMES)]):
            case = REGIMES[name](3, num_classes, dtype, generator)
            weight = torch.rand(num_classes, generator=generator)
            for smoothing, w in ((0.0, None), (0.1, None), (0.1, weight)):
                loss, dlogits = loss_and_gradient(case, backend, label_smoothing=smoothing, weight=w)
                what = f"{name} C{num_classes} eps{smoothing}"
                check_mixup_cross_entropy(
                    loss, dlogits, case.logits, case, label_smoothing=smoothing, weight=w, what=what
                )
            logits, index, labels = drawn(name, (3, num_classes), dtype, generator)
            loss, dlogits = am_loss_and_gradient(logits, index, 0.75, labels, backend)
            check_am_mixup_loss(loss, dlogits, logits, index, 0.75, labels, what=f"{name} C{num_classes}")


@mark_backends
def test_the_largest_logits_come_last(backend: str) -> None:
    """Every tile has a larger maximum than the one before, so that every partial sum is rescaled."""
    num_classes = 70000
    for dtype, slope in itertools.product((torch.float32, torch.bfloat16), (1e-4, 1e-2, 1.0)):
        logits = (slope * torch.arange(num_classes)).expand(2, -1).contiguous().to(dtype)
        labels = torch.tensor([num_classes - 1, 0])
        case = REGIMES["normal"](2, 5, dtype, torch.Generator())._replace(logits=logits, y_a=labels, y_b=labels.flip(0))
        for smoothing in (0.0, 0.1):
            loss, dlogits = loss_and_gradient(case, backend, label_smoothing=smoothing)
            check_mixup_cross_entropy(loss, dlogits, logits, case, label_smoothing=smoothing, what=f"slope {slope}")


@mark_backends
def test_nothing_finite_in_the_first_tile(backend: str) -> None:
    logits = torch.full((3, 40000), -torch.inf)
    logits[0, -5:], logits[1, 20000], logits[2, 3] = 1.0, 2.0, torch.nan
    labels = torch.tensor([39999, 20000, 5])
    case = REGIMES["normal"](3, 5, torch.float32, torch.Generator())._replace(logits=logits, y_a=labels, y_b=labels)
    loss, dlogits = loss_and_gradient(case, backend, reduction="none")
    check_mixup_cross_entropy(loss, dlogits, logits, case, reduction="none")


@mark_backends
@pytest.mark.parametrize("shape", [(700, 300), (3000, 10), (20, 17000), (1, 9000), (5000, 1)], ids=str)
def test_many_rows(shape: tuple[int, int], backend: str, generator: torch.Generator) -> None:
    for dtype, reduction in itertools.product((torch.float32, torch.bfloat16), ("mean", "sum", "none")):
        case = REGIMES["normal"](*shape, dtype, generator)
        loss, dlogits = loss_and_gradient(case, backend, reduction=reduction)
        check_mixup_cross_entropy(loss, dlogits, case.logits, case, reduction=reduction)
        again = loss_and_gradient(case, backend, reduction=reduction)
        budget.check_same_bits(again[0], loss, "loss, again")
        forward = getattr(torch.ops.icm_fast.mixup_cross_entropy_fwd, backend)
        bad = case.y_a.clone()
        bad[-1] = shape[1]
        how = {"none": 0, "mean": 1, "sum": 2}[reduction]
        loss, stats = forward(case.logits, bad, case.y_b, case.lam, None, 0.0, how)
        assert loss.isnan().all() and stats.isnan().all()


@mark_backends
def test_statistics_mean_what_the_cpu_means(backend: str, generator: torch.Generator) -> None:
    for dtype, (name, shape) in itertools.product(DTYPES, (("masked", (33, 10)), ("large", (3, 20000)))):
        case = REGIMES[name](*shape, dtype, generator)
        case.logits[1] = -torch.inf
        case.logits[2, 1] = torch.nan
        ours, cpu = (
            getattr(torch.ops.icm_fast.mixup_cross_entropy_fwd, b)(*case, None, 0.0, 1)[1] for b in (backend, "cpu")
        )
        budget.check_same_bits(ours[0], cpu[0], "maximum")
        torch.testing.assert_close(ours[1], cpu[1], rtol=20 * torch.finfo(ours.dtype).eps, atol=0, equal_nan=True)


@mark_backends
@pytest.mark.parametrize("rate", [0.0, 0.75, 1.0])
def test_bad_values_of_a_row_that_takes_no_part(rate: float, backend: str) -> None:
    """A row that is nobody's partner has no gradient at rate 0, but NaN if any value of the batch is bad."""
    logits, rates = torch.randn(4, 7), torch.tensor(rate)
    for bad_index, bad_label in ((4, 0), (-1, 0), (1, 7), (1, -1)):
        index, labels = torch.tensor([1, 1, 1, bad_index]), torch.tensor([0, 1, 2, bad_label])
        forward, backward = (
            getattr(getattr(torch.ops.icm_fast, f"am_mixup_loss_{d}"), backend) for d in ("fwd", "bwd")
        )
        loss, stats = forward(logits, index, rates, labels, 0)
        assert loss.isnan().all() and stats.isnan().all()
        assert backward(torch.ones(4), logits, index, rates, labels, stats, 0).isnan().all()


@mark_backends
def test_views_of_long_rows(backend: str, generator: torch.Generator) -> None:
    for dtype, num_classes in itertools.product(DTYPES, (1100, 3001, 20003)):
        case = REGIMES["normal"](5, num_classes, dtype, generator)
        expected = loss_and_gradient(case, backend, label_smoothing=0.1)
        padded = torch.zeros(5, num_classes + 3, dtype=dtype)
        padded[:, 1 : num_classes + 1] = case.logits
        for view in (case.logits.T.contiguous().T, padded[:, 1 : num_classes + 1]):
            ours = loss_and_gradient(case._replace(logits=view), backend, label_smoothing=0.1)
            budget.check_same_bits(ours[0], expected[0], "loss")
            budget.check_same_bits(ours[1], expected[1], "gradient")


def many_partners(rows: int, g: torch.Generator) -> dict[str, Tensor]:
    few = torch.arange(rows)
    few[::7] = 3
    return {
        "permutation": torch.randperm(rows, generator=g),
        "repeats": torch.randint(rows, (rows,), generator=g),
        "one": torch.full((rows,), rows - 1),
        "a few have many": few,
    }


@mark_backends
@pytest.mark.parametrize("rows", [33, 257, 4096, 4097, 9001])
def test_many_partners(rows: int, backend: str, generator: torch.Generator) -> None:
    for name, index in many_partners(rows, generator).items():
        x = torch.randn(rows, 2, generator=generator)
        leaf = x.requires_grad_()
        lam = torch.rand(rows, generator=generator)
        mixed = F_icm.mixup(leaf, index, lam, backend=backend)
        (dx,) = torch.autograd.grad(mixed, leaf, x.detach())
        check_mixup(mixed.detach(), dx, x.detach(), index, lam, grad_output=x, what=name)
        logits, labels = x.detach(), torch.randint(2, (rows,), generator=generator)
        if name != "one":  # the budget's own sums are too coarse for 9001 terms of one sign
            loss, dlogits = am_loss_and_gradient(logits, index, 0.75, labels, backend)
            check_am_mixup_loss(loss, dlogits, logits, index, 0.75, labels, what=name)


@mark_backends
@pytest.mark.parametrize("size", [1, 3, 16, 100, 1023, 1024, 4099, 70001])
def test_sample_sizes(size: int, backend: str, generator: torch.Generator) -> None:
    for dtype, rows in itertools.product((torch.float32, torch.float16), (1, 2, 9, 300 if size < 2000 else 5)):
        x = torch.randn(rows, size, generator=generator).to(dtype)
        index, lam = torch.randperm(rows, generator=generator), torch.rand(rows, generator=generator)
        leaf = x.clone().requires_grad_()
        mixed = F_icm.mixup(leaf, index, lam, keep_clean=True, backend=backend)
        g = torch.randn(mixed.shape, generator=generator).to(dtype)
        g[:rows] = 0
        (dx,) = torch.autograd.grad(mixed, leaf, g)
        budget.check_same_bits(mixed[:rows].detach(), x, "clean")
        check_mixup(mixed[rows:].detach(), dx, x, index, lam, grad_output=g[rows:])


@mark_backends
@pytest.mark.parametrize(
    "shape", [(3, 5, 7), (3, 64, 64), (1000, 3), (5000, 1), (9000, 2), (2, 1, 4099), (30000,)], ids=str
)
def test_bytes_of_many_channels(shape: tuple[int, ...], backend: str, generator: torch.Generator) -> None:
    from icm_fast.testing.checks import check_byte_mixup

    x = torch.randint(256, (3, *shape), generator=generator, dtype=torch.uint8)
    mean, std = torch.rand(shape[0], generator=generator), torch.rand(shape[0], generator=generator) + 0.1
    index, lam = torch.tensor([2, 0, 1]), torch.rand(3, generator=generator)
    layouts = [x, x[:, :, 1:]] if len(shape) > 1 and shape[1] > 1 else [x]
    if len(shape) == 3:
        layouts += [x.contiguous(memory_format=torch.channels_last)]
    if len(shape) == 2:
        layouts += [x.transpose(1, 2).contiguous().transpose(1, 2)]
    for dtype, pixels in itertools.product(DTYPES, layouts):
        for keep_clean in (False, True):
            mixed = F_icm.mixup(
                pixels, index, lam, mean=mean, std=std, dtype=dtype, keep_clean=keep_clean, backend=backend
            )
            check_byte_mixup(mixed, pixels, index, lam, mean, std, keep_clean=keep_clean)


@mark_backends
def test_strides_beyond_32_bits(backend: str, generator: torch.Generator) -> None:
    far = (1 << 31) + 4096  # elements; memory that is never touched is not there
    base = torch.empty(far + 64, dtype=torch.uint8)
    x = base.as_strided((2, 4, 4), (far, 4, 1))
    x.copy_(torch.randint(256, x.shape, generator=generator, dtype=torch.uint8))
    arguments = (torch.tensor([1, 0]), torch.tensor([0.25, 0.5]))
    options = {"mean": torch.rand(4), "std": torch.rand(4) + 0.1, "backend": backend}
    ours = F_icm.mixup(x, *arguments, **options)
    budget.check_same_bits(ours, F_icm.mixup(x.clone(), *arguments, **options), "far apart")
    wide = base.view(torch.bfloat16)[: far // 2 + 16].as_strided((2, 10), (far // 2, 1))
    wide.copy_(torch.randn(2, 10, generator=generator))
    case = REGIMES["normal"](2, 10, torch.bfloat16, generator)
    ours = loss_and_gradient(case._replace(logits=wide), backend)
    expected = loss_and_gradient(case._replace(logits=wide.clone()), backend)
    for name, a, b in zip(("loss", "gradient"), ours, expected, strict=True):
        budget.check_same_bits(a, b, name)
