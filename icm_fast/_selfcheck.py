"""A quick check of every available backend against the reference: does what is installed compute the right thing?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from . import functional, reference
from ._backends import has_kernel
from .target import MixedTarget

# Prime sizes, so that no tile and no vector divides them.
BATCH_SIZE, NUM_CLASSES, PIXELS = 67, 23, (3, 7, 5)

# A wrong build errs in the first digits. Scores here stay below 10 and sums have fewer than 100 terms, so rounding
# alone stays below 1000 units in the last place of the accumulation type.
TOLERANCES = {torch.float32: 1000 * 2.0**-23, torch.float64: 1000 * 2.0**-52}

Outputs = tuple[torch.Tensor, ...]
Case = Callable[[Any, str | None, torch.device, torch.dtype], Outputs]


@dataclass(frozen=True)
class Result:
    """One operator of one backend, forward and backward."""

    backend: str
    operator: str
    dtype: str
    max_error: float | None  # None: it raised, or no finite number came out
    tolerance: float
    passed: bool
    message: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def run(backends: Mapping[str, tuple[bool, str]]) -> Iterator[Result]:
    """Check what each available backend has; the reference is the truth, in float64 from the same rounded inputs."""
    for backend, (available, _) in backends.items():
        for operator, case in CASES.items():
            if available and (backend == "reference" or has_kernel(operator, backend)):
                for dtype in TOLERANCES:
                    yield _check(backend, operator, case, dtype)


def _check(backend: str, operator: str, case: Case, dtype: torch.dtype) -> Result:
    tolerance = TOLERANCES[dtype]
    name = str(dtype).removeprefix("torch.")
    try:
        ours = case(functional, backend, _device_of(backend), dtype)
        truth = case(reference, None, torch.device("cpu"), torch.float64)
        errors = [(a.double().cpu() - b).abs().max().item() for a, b in zip(ours, truth, strict=True)]
    except Exception as error:  # the report must name what is broken, whatever it is, and go on
        return Result(backend, operator, name, None, tolerance, False, f"{type(error).__name__}: {error}")
    worst = torch.tensor(errors).max().item()  # unlike Python's max, NaN if any is
    if not math.isfinite(worst):
        return Result(backend, operator, name, None, tolerance, False, f"the error is {worst}")
    return Result(backend, operator, name, worst, tolerance, worst <= tolerance)


def _device_of(backend: str) -> torch.device:
    on_gpu = backend in ("cuda", "triton") and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


def _random(*shape: int, dtype: torch.dtype, device: torch.device, seed: int) -> torch.Tensor:
    """The same float32 values for every type and device."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values.to(device, dtype).requires_grad_()


def _partner_and_lam(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    index = torch.randperm(BATCH_SIZE, generator=generator)
    return index.to(device), torch.rand(BATCH_SIZE, generator=generator).to(device)


def _icm_loss(api: Any, backend: str | None, device: torch.device, dtype: torch.dtype) -> Outputs:
    logits = _random(BATCH_SIZE, NUM_CLASSES, dtype=dtype, device=device, seed=0)
    index, lam = _partner_and_lam(device)
    labels = torch.arange(BATCH_SIZE, device=device) % NUM_CLASSES
    choice = {} if backend is None else {"backend": backend}
    loss = api.icm_loss(logits, MixedTarget(labels, labels[index], lam), **choice)
    loss.backward()
    assert logits.grad is not None
    return loss.detach(), logits.grad


def _linear_icm_loss(api: Any, backend: str | None, device: torch.device, dtype: torch.dtype) -> Outputs:
    features = _random(BATCH_SIZE, NUM_CLASSES, dtype=dtype, device=device, seed=3)
    weight = _random(4 * BATCH_SIZE, NUM_CLASSES, dtype=dtype, device=device, seed=4)
    index, lam = _partner_and_lam(device)
    labels = 4 * torch.arange(BATCH_SIZE, device=device)  # all distinct: on mixed classifiers
    choice = {} if backend is None else {"backend": backend}
    loss = api.linear_icm_loss(features / 4, weight / 4, MixedTarget(labels, labels[index], lam), **choice)
    loss.backward()
    assert features.grad is not None and weight.grad is not None
    return loss.detach(), features.grad, weight.grad


def _mixup(api: Any, backend: str | None, device: torch.device, dtype: torch.dtype) -> Outputs:
    x = _random(BATCH_SIZE, *PIXELS, dtype=dtype, device=device, seed=1)
    index, lam = _partner_and_lam(device)
    choice = {} if backend is None else {"backend": backend}
    mixed = api.mixup(x, index, lam, **choice)
    mixed.square().sum().backward()
    assert x.grad is not None
    return mixed.detach(), x.grad


CASES: dict[str, Case] = {"icm_loss": _icm_loss, "linear_icm_loss": _linear_icm_loss, "mixup": _mixup}
