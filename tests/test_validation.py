"""Bad input: the error's type, and that its message names the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import icm_fast as icm
from icm_fast import functional as F_icm

LABELS = torch.tensor([0, 1, 2, 3])
LAM = torch.tensor(0.5)
LOGITS = torch.zeros(4, 5)


def target(y_a: Any = LABELS, y_b: Any = LABELS, lam: Any = LAM, **more: Any) -> icm.MixedTarget:
    return icm.MixedTarget(y_a, y_b, lam, **more)


# name -> (call, exception, words of the message)
CASES: dict[str, tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = {
    "y_a not a tensor": (lambda: target([0, 1]), TypeError, ("MixedTarget", "y_a", "tensor", "list of 2")),
    "float labels": (lambda: target(LABELS.float()), TypeError, ("y_a", "integer", "float32")),
    "bool labels": (lambda: target(LABELS > 1), TypeError, ("y_a", "integer", "bool")),
    "one-hot labels": (lambda: target(torch.eye(4).long()), ValueError, ("y_a", "(B,)", "(4, 4)", "one-hot")),
    "y_b of another length": (lambda: target(y_b=LABELS[:3]), ValueError, ("y_b", "(4,)", "(3,)")),
    "lam a number": (lambda: target(lam=0.5), TypeError, ("lam", "tensor", "0.5", "torch.tensor(0.3)")),
    "integer lam": (lambda: target(lam=LABELS), TypeError, ("lam", "float32", "int64")),
    "lam of another length": (lambda: target(lam=torch.rand(3)), ValueError, ("lam", "(4,)", "(3,)")),
    "lam of two dimensions": (lambda: target(lam=torch.rand(4, 1)), ValueError, ("lam", "(4, 1)")),
    "lam requires grad": (lambda: target(lam=LAM.clone().requires_grad_()), TypeError, ("lam", "lam.detach()")),
    "lam elsewhere": (lambda: target(lam=LAM.to("meta")), ValueError, ("lam is on meta", "y_a is on cpu", "lam.to(")),
    "clean of another length": (lambda: target(clean=LABELS[:2]), ValueError, ("clean", "(4,)", "(2,)")),
    "plan of another length": (lambda: target(plan=[1, 2]), ValueError, ("plan", "2", "4")),
    "a dtype to .to()": (lambda: target().to(torch.float16), TypeError, ("device", "float16")),
    "tuple of two": (lambda: icm.MixedTarget.from_tuple((LABELS, LAM)), TypeError, ("(y_a, y_b, lam)", "tuple of 2")),
    "three non-zeros a row": (
        lambda: icm.MixedTarget.from_dense(torch.full((2, 4), 0.25)),
        ValueError,
        ("two weights", "row 0 has 4"),
    ),
    "dense row that sums to 2": (
        lambda: icm.MixedTarget.from_dense(torch.tensor([[1.0, 0.0], [1.0, 1.0]])),
        ValueError,
        ("row 1", "sum to 2"),
    ),
    "negative dense weight": (
        lambda: icm.MixedTarget.from_dense(torch.tensor([[1.2, -0.2]])),
        ValueError,
        ("above 0", "row 0"),
    ),
    "half labels": (lambda: F_icm.icm_loss(LOGITS, torch.zeros(4, dtype=torch.complex32)), TypeError, ("complex32",)),
    "dense NaN": (lambda: icm.MixedTarget.from_dense(torch.tensor([[torch.nan, 1.0]])), ValueError, ("row 0",)),
    "kornia rows of two": (lambda: icm.MixedTarget.from_kornia(torch.zeros(4, 2)), ValueError, ("(B, 3)", "(4, 2)")),
    "too few classes": (lambda: target().dense(3), ValueError, ("label 3", "num_classes", "got 3")),
    "logits not a tensor": (lambda: F_icm.icm_loss([[0.0]], target()), TypeError, ("icm_loss", "logits", "list of 1")),
    "integer logits": (lambda: F_icm.icm_loss(LOGITS.long(), target()), TypeError, ("logits", "float32", "int64")),
    "sparse logits": (lambda: F_icm.icm_loss(LOGITS.to_sparse(), target()), TypeError, ("logits", "to_dense()")),
    "logits of one dimension": (lambda: F_icm.icm_loss(LOGITS[0], target()), ValueError, ("(B, C)", "(5,)")),
    "rows that differ": (
        lambda: F_icm.icm_loss(LOGITS[:3], target()),
        ValueError,
        ("logits has 3 rows but target has 4",),
    ),
    "both halves at once": (
        lambda: F_icm.icm_loss(torch.zeros(8, 5), target()),
        ValueError,
        ("8 rows", "keep_clean=True", "RegMixupLoss"),
    ),
    "a tuple as target": (
        lambda: F_icm.icm_loss(LOGITS, (LABELS, LABELS, LAM)),
        TypeError,
        ("target", "tuple of 3", "MixedTarget.from_tuple"),
    ),
    "no target": (lambda: F_icm.icm_loss(LOGITS, None), TypeError, ("target", "MixedTarget", "None")),
    "logits elsewhere": (lambda: F_icm.icm_loss(LOGITS.to("meta"), target()), ValueError, ("meta", "cpu")),
    "dense of another shape": (lambda: F_icm.icm_loss(LOGITS, torch.zeros(4, 6)), ValueError, ("(4, 5)", "(4, 6)")),
    "dense requires grad": (
        lambda: F_icm.icm_loss(LOGITS, torch.zeros(4, 5).requires_grad_()),
        TypeError,
        ("target", "target.detach()"),
    ),
    "integer dense": (lambda: F_icm.icm_loss(LOGITS, torch.zeros(4, 5).long()), ValueError, ("(4,)", "(4, 5)")),
    "bool target": (lambda: F_icm.icm_loss(LOGITS, torch.zeros(4) > 0), TypeError, ("integer labels", "bool")),
    "unknown axis": (lambda: F_icm.icm_loss(LOGITS, target(), axis="row"), ValueError, ("axis", "'pair'", "'row'")),
    "unknown reduction": (
        lambda: F_icm.icm_loss(LOGITS, target(), reduction="avg"),
        ValueError,
        ("reduction", "'mean'", "'avg'"),
    ),
    "scale of one dimension": (
        lambda: F_icm.icm_loss(LOGITS, target(), logit_scale=torch.ones(1)),
        ValueError,
        ("logit_scale", "0-d", "(1,)"),
    ),
    "scale a word": (lambda: F_icm.icm_loss(LOGITS, target(), logit_scale="2"), TypeError, ("logit_scale", "'2'")),
    "unknown backend": (
        lambda: F_icm.icm_loss(LOGITS, target(), backend="tpu"),
        ValueError,
        ("backend='tpu'", "reference", "cuda"),
    ),
    "backend without a kernel": (
        lambda: F_icm.icm_loss(LOGITS, target(), backend="triton"),
        RuntimeError,
        ("backend='triton'", "not available", "Available: reference", "python -m icm_fast"),
    ),
    "label too large": (lambda: F_icm.icm_loss(LOGITS, target(LABELS + 2)), ValueError, ("[0, 5)", "y_a[3] = 5")),
    "negative partner": (lambda: F_icm.icm_loss(LOGITS, target(y_b=LABELS - 1)), ValueError, ("y_b[0] = -1",)),
    "lam above 1": (lambda: F_icm.icm_loss(LOGITS, target(lam=LAM + 1)), ValueError, ("lam in [0, 1]", "lam = 1.5")),
    "a lam NaN": (
        lambda: F_icm.icm_loss(LOGITS, target(lam=torch.tensor([0.5, torch.nan, 0.5, 0.5]))),
        ValueError,
        ("lam[1] = nan",),
    ),
    "hard label too large": (lambda: F_icm.icm_loss(LOGITS, LABELS + 2), ValueError, ("target[3] = 5",)),
    "validate": (
        lambda: F_icm.icm_loss(LOGITS, target(LABELS + 2), validate=True, reduction="none"),
        ValueError,
        ("y_a[3] = 5",),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_message(name: str) -> None:
    call, exception, words = CASES[name]
    with pytest.raises(exception) as caught:
        call()
    assert type(caught.value) is exception
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_bad_values_are_found_on_every_backend_and_reduction(reduction: str, backend: str) -> None:
    with pytest.raises(ValueError, match=r"y_a\[3\] = 5"):
        F_icm.icm_loss(LOGITS, target(LABELS + 2), backend=backend, reduction=reduction)


def test_a_nan_logit_is_no_error() -> None:
    logits = LOGITS.clone()
    logits[1, 1] = torch.nan
    assert F_icm.icm_loss(logits, target()).isnan()


def test_nothing_is_changed_by_a_refused_call() -> None:
    logits = torch.randn(4, 5, requires_grad=True)
    before = logits.detach().clone()
    labels = LABELS + 2
    with pytest.raises(ValueError, match="labels in"):
        F_icm.icm_loss(logits, target(labels))
    assert torch.equal(logits, before) and torch.equal(labels, LABELS + 2) and logits.grad is None
    F_icm.icm_loss(logits, target()).backward()  # and the next call works
    assert logits.grad is not None
