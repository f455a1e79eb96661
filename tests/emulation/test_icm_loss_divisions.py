"""The CUDA loss for other devices and for every way in which it divides a batch. Under the emulation only."""

from __future__ import annotations

import sys

import pytest
import torch

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast.testing import budget
from icm_fast.testing.checks import check_icm_loss
from icm_fast.testing.regimes import REGIMES, Case

if "tests.emulation.plugin" not in sys.modules:
    pytest.skip("needs the emulation: python -m pytest -p tests.emulation.plugin", allow_module_level=True)

from tests.emulation import plugin

# multiprocessors, shared memory of a block, clusters: an H100, an A100, a small old one, and the smallest of all
DEVICES = {"h100": (132, 227, True), "a100": (108, 163, False), "small": (3, 99, False), "smallest": (2, 48, True)}
# Clusters of 5, 3, 9, 11 and 16 blocks, many classes (few used; tile in global memory), one grid with the gradient
# inside, more tiles than workers with a last one that is not full.
SHAPES = [(128, 10), (61, 100), (230, 30), (300, 3), (480, 5), (9, 5000), (40, 20000), (481, 5), (257, 700)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    processors, shared_kib, clusters = DEVICES[request.param]
    plugin.set_device(multiprocessors=processors, shared_bytes=shared_kib * 1024, has_clusters=clusters)
    yield request.param
    plugin.set_device(multiprocessors=132)


def loss_and_gradient(case: Case, dtype: torch.dtype | None = None, **options: object) -> tuple[torch.Tensor, ...]:
    leaf = case.logits.detach().requires_grad_()
    loss = F_icm.icm_loss(leaf, icm.MixedTarget(*case[1:]), backend="cuda", **options)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


@pytest.mark.parametrize("regime", ["normal", "batch_lam", "range_200", "masked", "offset"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_divisions(shape: tuple[int, int], regime: str, device: str, generator: torch.Generator) -> None:
    case = REGIMES[regime](*shape, torch.float32, generator)
    plugin.set_seed(1)
    loss, dlogits = loss_and_gradient(case)
    check_icm_loss(loss, dlogits, case.logits, case)
    terms, dlogits_of_sum = loss_and_gradient(case, reduction="none")
    check_icm_loss(terms, dlogits_of_sum, case.logits, case, reduction="none")
    plugin.set_seed(2)
    again = loss_and_gradient(case)
    budget.check_same_bits(again[0], loss, "loss in another order of threads")
    budget.check_same_bits(again[1], dlogits, "gradient in another order of threads")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("processors", [132, 3])
def test_more_classes_than_the_warps_take_at_once(
    processors: int, dtype: torch.dtype, generator: torch.Generator
) -> None:
    plugin.set_device(multiprocessors=processors, has_clusters=False)
    case = REGIMES["masked"](700, 6000, dtype, generator)
    assert len(case.y_a.unique()) > 512  # 16 warps, 32 classes each
    check_icm_loss(*loss_and_gradient(case), case.logits, case)
    plugin.set_device(multiprocessors=132)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_types_on_a_small_device(dtype: torch.dtype, generator: torch.Generator) -> None:
    plugin.set_device(multiprocessors=2, shared_bytes=48 * 1024, has_clusters=False)
    for shape in ((70, 10), (33, 900)):
        case = REGIMES["normal"](*shape, dtype, generator)
        check_icm_loss(*loss_and_gradient(case), case.logits, case)
    plugin.set_device(multiprocessors=132)


@pytest.mark.parametrize("regime", ["normal", "masked", "range_200", "offset", "same_class"])
@pytest.mark.parametrize("scale", [None, -2.5, 0.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shared_kib", [36, 18, 12])  # eight rows; eight forward and four backward; four, then two
def test_rows_of_16_bits(
    shared_kib: int, dtype: torch.dtype, scale: float | None, regime: str, generator: torch.Generator
) -> None:
    """Kept as they came where a tile of them holds more rows."""
    plugin.set_device(multiprocessors=2, shared_bytes=shared_kib * 1024, has_clusters=False)
    case = REGIMES[regime](300, 4200, dtype, generator)
    case.lam[:3] = torch.tensor([0.0, 1.0, 1e-30])
    logit_scale = None if scale is None else torch.tensor(scale)
    loss, dlogits = loss_and_gradient(case, logit_scale=logit_scale)
    check_icm_loss(loss, dlogits, case.logits, case, logit_scale=scale)
    plugin.set_device(multiprocessors=132)


@pytest.mark.parametrize("shape", [(128, 100), (30, 10), (500, 20)], ids=str)
def test_one_launch_has_the_bits_of_two_passes(shape: tuple[int, int], device: str, generator: torch.Generator) -> None:
    case = REGIMES["normal"](*shape, torch.float32, generator)
    op = torch.ops.icm_fast
    before = plugin.launches()
    loss, terms, dlogits = op.icm_loss_grad.cuda(*case, 0, True, True, 1)
    launches = plugin.launches() - before
    if device == "h100":
        assert launches == 1
    other_loss, other_terms, *stats = op.icm_loss_fwd.cuda(*case, None, 0, True, True, 1)
    one = torch.ones(())
    expected, _ = op.icm_loss_bwd.cuda(one, one, *case, None, *stats, 0, True, True, 1, False)
    budget.check_same_bits(loss, other_loss, "loss")
    budget.check_same_bits(terms, other_terms, "terms")
    budget.check_same_bits(dlogits, expected, "gradient")


def test_opcheck_of_the_one_launch(generator: torch.Generator) -> None:
    case = REGIMES["normal"](7, 10, torch.float32, generator)
    torch.library.opcheck(torch.ops.icm_fast.icm_loss_grad.cuda, (*case, 0, True, True, 1))


@pytest.mark.parametrize("lam", [0.3, 0.0, 1.0, 1e-30])
@pytest.mark.parametrize("num_classes", [12, 450])
@pytest.mark.parametrize("regime", ["normal", "masked", "range_200", "same_class"])
def test_one_lam_for_a_large_batch(regime: str, num_classes: int, lam: float, generator: torch.Generator) -> None:
    """Exponentials in two factors, a product for each column."""
    plugin.set_device(multiprocessors=8, shared_bytes=227 * 1024)  # both sets of factors of 450 classes fit
    case = REGIMES[regime](1100, num_classes, torch.float32, generator)._replace(lam=torch.tensor(lam))
    check_icm_loss(*loss_and_gradient(case), case.logits, case)
    plugin.set_device(multiprocessors=132)


def test_saved_tensors_may_lose_their_strides(generator: torch.Generator) -> None:
    """Hooks on saved tensors repack an expanded lam: the backward pass then divides the batch as for many lam."""
    case = REGIMES["masked"](1100, 12, torch.float32, generator)
    lam = torch.tensor(0.3).expand(1100)
    y_b = torch.where(torch.arange(1100) % 2 == 0, case.y_a, case.y_b)
    one_lam = case._replace(y_b=y_b, lam=lam)
    with torch.autograd.graph.saved_tensors_hooks(torch.Tensor.contiguous, lambda saved: saved):
        loss, dlogits = loss_and_gradient(one_lam)
    check_icm_loss(loss, dlogits, case.logits, one_lam)
