"""The operators of mixing inside PyTorch: schemas, derivatives of any order, compilation, transforms, bad values."""

from __future__ import annotations

import pytest
import torch
from helpers import backends_of
from torch import Tensor

from icm_fast import functional as F_icm
from icm_fast.testing import budget

BACKENDS = backends_of("mixup")
NAN = float("nan")

INDEX = torch.tensor([1, 1, 0, 3, 1])  # repeats, a gap, a fixed point
LAM = torch.tensor([0.3, 0.7, 1.0, 0.4, 0.0])
BOXES = torch.tensor([[0, 2, 1, 3], [1, 3, 0, 4], [0, 0, 0, 0], [2, 9, 2, 9], [0, 3, 0, 4]])

mark_backends = pytest.mark.parametrize("backend", BACKENDS)


def images(dtype: torch.dtype = torch.float64, channels_last: bool = False) -> Tensor:
    x = torch.randn(5, 2, 3, 4, dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def operator(name: str, backend: str) -> torch._ops.OpOverload:
    found = getattr(getattr(torch.ops.icm_fast, name), backend)
    assert isinstance(found, torch._ops.OpOverload)
    return found


@mark_backends
def test_opcheck(backend: str) -> None:
    pixels, per_channel = torch.randint(256, (5, 2, 3, 4), dtype=torch.uint8), torch.rand(2) + 0.1
    layouts = {
        "contiguous": images(),
        "channels_last": images(channels_last=True),
        "one channel": images()[:, :1],
        "not dense": images()[:, :, :, 1:],
        "transposed": images().transpose(2, 3),
        "empty": images()[:0],
    }
    for x in layouts.values():
        index, lam = INDEX[: len(x)], LAM[: len(x)]
        for box, keep_clean in ((None, False), (torch.tensor([0, 2, 1, 3]), True)):
            leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
            forward = (leaf, index, lam, box, None, None, keep_clean, None)
            torch.library.opcheck(operator("mixup_fwd", backend), forward)
            grad = torch.cat([x, x]) if keep_clean else x
            torch.library.opcheck(operator("mixup_bwd", backend), (grad.requires_grad_(), index, lam, box, keep_clean))
    for dtype in (None, torch.bfloat16):
        torch.library.opcheck(
            operator("mixup_fwd", backend), (pixels, INDEX, LAM, None, per_channel, per_channel, False, dtype)
        )
    x = images()
    torch.library.opcheck(operator("mixup_out", backend), (torch.empty_like(x), x, INDEX, LAM, None, None, None, False))


@mark_backends
@pytest.mark.parametrize("keep_clean", [False, True])
@pytest.mark.parametrize("box", [None, BOXES], ids=["lam", "boxes"])
def test_gradcheck(box: Tensor | None, keep_clean: bool, backend: str) -> None:
    def mix(x: Tensor) -> Tensor:
        return F_icm.mixup(x, INDEX, LAM.double(), box=box, keep_clean=keep_clean, backend=backend)

    x = images().requires_grad_()
    assert torch.autograd.gradcheck(mix, x)
    assert torch.autograd.gradgradcheck(mix, x)


@mark_backends
def test_second_derivative_of_a_nonlinear_function(backend: str) -> None:
    x = images().requires_grad_()
    results = []
    for name in (backend, "reference"):
        (first,) = torch.autograd.grad(F_icm.mixup(x, INDEX, LAM, backend=name).pow(3).sum(), x, create_graph=True)
        results.append(torch.autograd.grad(first.pow(2).sum(), x)[0])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@mark_backends
def test_backward_twice_and_inputs_unchanged(backend: str) -> None:
    x, index, lam, box = images().requires_grad_(), INDEX.clone(), LAM.clone(), BOXES.clone()
    inputs = (x, index, lam, box)
    before = [t.detach().clone() for t in inputs]
    versions = [t._version for t in inputs]
    mixed = F_icm.mixup(x, index, lam, box=box, backend=backend)
    (first,) = torch.autograd.grad(mixed.sum(), x, retain_graph=True)
    kept = first.clone()
    first.zero_()
    budget.check_same_bits(torch.autograd.grad(mixed.sum(), x)[0], kept, "second backward")
    for tensor, old, version in zip(inputs, before, versions, strict=True):
        budget.check_same_bits(tensor.detach(), old, "input")
        assert tensor._version == version


@mark_backends
def test_expanded_and_strided_incoming_gradients(backend: str) -> None:
    x = images().requires_grad_()
    for grad in (
        torch.tensor(0.5, dtype=torch.float64).expand(5, 2, 3, 4),
        images().transpose(2, 3).mT,
        images(channels_last=True),
    ):
        results = [
            torch.autograd.grad(F_icm.mixup(x, INDEX, LAM, backend=b), x, grad)[0] for b in (backend, "reference")
        ]
        torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@mark_backends
def test_registered_formula_gives_the_same_bits(backend: str) -> None:
    x, g = images(torch.float32).requires_grad_(), images(torch.float32)
    eager = F_icm.mixup(x, INDEX, LAM, box=BOXES, backend=backend)
    registered = operator("mixup_fwd", backend)(x, INDEX, torch.ones(()), BOXES, None, None, False, None)
    budget.check_same_bits(registered, eager, "mixed")
    gradients = [torch.autograd.grad(mixed, x, g)[0] for mixed in (eager, registered)]
    budget.check_same_bits(*gradients, "dx")


@mark_backends
def test_no_graph_without_need(backend: str) -> None:
    x = images().requires_grad_()
    assert not F_icm.mixup(x.detach(), INDEX, LAM, backend=backend).requires_grad
    with torch.no_grad():
        assert not F_icm.mixup(x, INDEX, LAM, backend=backend).requires_grad


@mark_backends
def test_compiles_whole_and_once(backend: str) -> None:
    torch._dynamo.reset()

    def step(x: Tensor, index: Tensor, lam: Tensor) -> Tensor:
        return F_icm.mixup(x, index, lam, keep_clean=True, backend=backend).pow(2).sum()

    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, backend=counter, fullgraph=True)
    for lam in torch.rand(5):
        x = images().requires_grad_()
        (dx,) = torch.autograd.grad(compiled(x, INDEX, lam), x)
        (expected,) = torch.autograd.grad(step(x, INDEX, lam), x)
        budget.check_same_bits(dx, expected, "dx")
    assert counter.frame_count == 1


@mark_backends
def test_function_transforms_take_the_reference(backend: str) -> None:
    x = images()

    def energy(x: Tensor, name: str) -> Tensor:
        return F_icm.mixup(x, INDEX, LAM, backend=name).pow(2).sum()

    ours, truth = (torch.func.grad(energy)(x, name) for name in (backend, "reference"))
    torch.testing.assert_close(ours, truth)
    tangents = [
        torch.func.jvp(lambda x, n=n: energy(x, n), (x,), (torch.ones_like(x),))[1] for n in (backend, "reference")
    ]
    torch.testing.assert_close(*tangents)


# What functional refuses on the CPU reaches the kernels under torch.compile and on a GPU.
@mark_backends
@pytest.mark.parametrize("box", [None, BOXES], ids=["lam", "boxes"])
def test_bad_values_make_their_sample_nan(box: Tensor | None, backend: str) -> None:
    index = torch.tensor([1, -1, 5, 2**62, 2])
    lam = torch.tensor([0.3, 0.3, 1.0, 0.3, 1.5])
    x = images(torch.float32)
    for keep_clean in (False, True):
        both = operator("mixup_fwd", backend)(x, index, lam, box, None, None, keep_clean, None)
        assert both[-5:].flatten(1).isnan().all(1).tolist() == [False, True, True, True, True]
        assert not both[:-5].isnan().any() and not both[-5].isnan().any()
    dx = operator("mixup_bwd", backend)(x, index, lam, box, False)
    # Sample 2 is bad itself and partner of a bad lam; 0 is a partner of nobody.
    assert dx.flatten(1).isnan().all(1).tolist() == [False, True, True, True, True]
    pixels, ones = torch.zeros(5, 2, 3, 4, dtype=torch.uint8), torch.ones(2)
    mixed = operator("mixup_fwd", backend)(pixels, index, lam, box, ones, ones, False, torch.float16)
    assert mixed.flatten(1).isnan().all(1).tolist() == [False, True, True, True, True]
    nan_lam = operator("mixup_fwd", backend)(x, INDEX, torch.tensor(NAN), box, None, None, False, None)
    assert nan_lam.isnan().all()


# Above 16 MiB samples are taken in the order of their partners, and what the next one reads is asked for ahead. Triton,
# interpreted, would take minutes.
@pytest.mark.parametrize("backend", sorted({*BACKENDS} - {"triton"}))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("size", [33, 70_001], ids=["small samples", "large samples"])
def test_many_samples_are_mixed_as_each_alone(size: int, dtype: torch.dtype, backend: str) -> None:
    rows = (18 << 20) // (size * dtype.itemsize)
    x, index, lam = torch.randn(rows, size).to(dtype), torch.randperm(rows), torch.rand(rows)
    index[:3] = index[5]  # no permutation: some are a partner of several, some of nobody
    lam[7:9] = torch.tensor([0.0, 1.0])
    bad = index.clone()
    bad[11] = rows
    mixed = operator("mixup_fwd", backend)(x, bad, lam, None, None, None, False, None)
    # Two samples of a kind that is mixed alone: by the formula of the second, not by that of large results.
    for first in range(0, rows, rows // 7):
        of = torch.arange(first, min(first + rows // 11 + 1, rows))
        pair, swapped = torch.cat([x[of], x[index[of]]]), torch.arange(2 * len(of)).roll(len(of))
        alone = F_icm.mixup(pair, swapped, lam[of].repeat(2), backend=backend)[: len(of)]
        same = index[of] == of
        alone[same] = x[of][same]
        alone[of == 11] = NAN
        budget.check_same_bits(mixed[of], alone, f"samples from {first}")


@mark_backends
def test_operators_called_directly_refuse_what_is_unsafe(backend: str) -> None:
    forward, out_of = operator("mixup_fwd", backend), operator("mixup_out", backend)
    backward = operator("mixup_bwd", backend)
    x, ones = images(torch.float32), torch.ones(2)
    none = (None, None, None, False)
    bad = {
        "index": lambda: forward(x, INDEX[:4], LAM, *none, None),
        "lam": lambda: forward(x, INDEX, LAM[:4], *none, None),
        "float32 or float64": lambda: forward(x, INDEX, INDEX, *none, None),
        "box": lambda: forward(x, INDEX, LAM, BOXES[:4], None, None, False, None),
        "images with a box": lambda: forward(x.flatten(1), INDEX, LAM, BOXES, None, None, False, None),
        "mean and std": lambda: forward(x, INDEX, LAM, None, ones, ones, False, None),
        "samples' type": lambda: out_of(torch.empty_like(x, dtype=torch.float64), x, INDEX, LAM, *none),
        "result's shape": lambda: out_of(x[:4].clone(), x, INDEX, LAM, *none),
        "memory format": lambda: out_of(images(torch.float32, channels_last=True), x, INDEX, LAM, *none),
        "overlap": lambda: out_of(x, x, INDEX, LAM, *none),
        "clean and mixed": lambda: backward(x, INDEX, LAM, None, True),
    }
    for words, call in bad.items():
        with pytest.raises(RuntimeError, match=words):
            call()
