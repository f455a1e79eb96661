"""Bad input to mixing: the error's type, and that its message names the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import icm_fast as icm
from icm_fast import functional as F_icm

X, INDEX, LABELS = torch.zeros(4, 3, 6, 6), torch.tensor([1, 0, 3, 2]), torch.tensor([0, 1, 2, 3])
PIXELS, MEAN, STD = X.to(torch.uint8), [0.5] * 3, [0.2] * 3
BOX = torch.tensor([0, 2, 0, 2])
NAN = float("nan")


def mixup(x: Any = X, index: Any = INDEX, lam: Any = 0.3, **more: Any) -> Any:
    return F_icm.mixup(x, index, lam, **more)


def pixels(mean: Any = MEAN, std: Any = STD, **more: Any) -> Any:
    return F_icm.mixup(PIXELS, INDEX, 0.3, mean=mean, std=std, **more)


def remix_lam(lam: Any = 0.5, y_a: Any = LABELS, y_b: Any = LABELS, counts: Any = LABELS + 1) -> Any:
    return F_icm.remix_lam(lam, y_a, y_b, counts)


Case = tuple[Callable[[], Any], type[Exception], tuple[str, ...]]

MIXUP: dict[str, Case] = {
    "x a list": (lambda: mixup([1.0]), TypeError, ("mixup", "x", "tensor", "list of 1")),
    "x of int64": (lambda: mixup(LABELS), TypeError, ("x", "uint8", "int64", "labels")),
    "x of no dimension": (lambda: mixup(torch.tensor(1.0)), ValueError, ("x", "(B, ...)", "()")),
    "sparse x": (lambda: mixup(torch.eye(4).to_sparse()), TypeError, ("x", "to_dense")),
    "float index": (lambda: mixup(index=INDEX.float()), TypeError, ("index", "integers", "float32")),
    "bool index": (lambda: mixup(index=INDEX > 1), TypeError, ("index", "integers", "bool")),
    "short index": (lambda: mixup(index=INDEX[:3]), ValueError, ("index", "(4,)", "(3,)")),
    "index elsewhere": (lambda: mixup(index=INDEX.to("meta")), ValueError, ("x is on cpu", "index is on meta")),
    "index too large": (lambda: mixup(index=INDEX + 1), ValueError, ("[0, 4)", "index[2] = 4")),
    "index negative": (lambda: mixup(index=INDEX - 1), ValueError, ("[0, 4)", "index[1] = -1")),
    "lam a string": (lambda: mixup(lam="0.3"), TypeError, ("lam", "number", "'0.3'")),
    "lam a bool": (lambda: mixup(lam=True), TypeError, ("lam", "number", "True")),
    "integer lam": (lambda: mixup(lam=LABELS), TypeError, ("lam", "floating-point", "int64")),
    "lam requires grad": (lambda: mixup(lam=torch.tensor(0.3, requires_grad=True)), TypeError, ("lam", "detach")),
    "lam of another shape": (lambda: mixup(lam=torch.rand(3)), ValueError, ("lam", "(4,)", "(3,)")),
    "lam above 1": (lambda: mixup(lam=1.5), ValueError, ("[0, 1]", "lam = 1.5")),
    "lam NaN": (lambda: mixup(lam=NAN), ValueError, ("[0, 1]", "lam = nan")),
    "lam[2] NaN": (lambda: mixup(lam=torch.tensor([0, 1, NAN, 1])), ValueError, ("[0, 1]", "lam[2] = nan")),
    "lam[3] negative": (lambda: mixup(lam=torch.tensor([0, 1, 1, -1.0])), ValueError, ("lam[3] = -1.0",)),
    "float box": (lambda: mixup(box=BOX.float()), TypeError, ("box", "integers", "float32")),
    "box of another shape": (lambda: mixup(box=BOX[:3]), ValueError, ("box", "(4,) or (4, 4)", "(3,)")),
    "box without images": (lambda: mixup(X.flatten(1), box=BOX), ValueError, ("box", "height", "(4, 108)")),
    "mean with floats": (lambda: mixup(mean=MEAN), TypeError, ("mean", "uint8", "float32")),
    "dtype with floats": (lambda: mixup(dtype=torch.float16), TypeError, ("dtype", "uint8")),
    "uint8 without mean": (lambda: pixels(mean=None), TypeError, ("uint8", "mean and std", "float()")),
    "uint8 without channels": (
        lambda: mixup(torch.zeros(4, dtype=torch.uint8), mean=MEAN, std=STD),
        ValueError,
        ("uint8", "(B, C, ...)"),
    ),
    "mean of two": (lambda: pixels(mean=[0.5, 0.5]), ValueError, ("mean", "(3,)", "list of 2")),
    "integer std": (lambda: pixels(std=torch.ones(3).long()), TypeError, ("std", "float32", "int64")),
    "uint8 to integers": (lambda: pixels(dtype=torch.int64), TypeError, ("dtype", "float32", "int64")),
    "out of another type": (lambda: mixup(out=X.double()), TypeError, ("out", "float32", "float64")),
    "out of another shape": (lambda: mixup(out=X[:3]), ValueError, ("out", "(4, 3, 6, 6)", "(3, 3, 6, 6)")),
    "out without room for both": (lambda: mixup(keep_clean=True, out=X.clone()), ValueError, ("out", "(8, 3, 6, 6)")),
    "out is x": (lambda: mixup(out=X), ValueError, ("out overlaps x",)),
    "out is part of x": (lambda: mixup(X[1:], INDEX[:2].repeat(2)[:3] * 0, out=X[:3]), ValueError, ("out overlaps x",)),
    "out with a gradient": (
        lambda: mixup(X.clone().requires_grad_(), out=torch.empty_like(X)),
        RuntimeError,
        ("out=", "no_grad"),
    ),
    "unknown backend": (lambda: mixup(backend="gpu"), ValueError, ("mixup", "backend='gpu'")),
    # Where Triton works it works on another device.
    "backend that is not here": (
        lambda: mixup(backend="triton"),
        (RuntimeError, ValueError),
        ("mixup", "backend='triton'"),
    ),
}

OTHERS: dict[str, Case] = {
    "alpha of 0": (lambda: F_icm.sample_lam(0.0), ValueError, ("sample_lam", "alpha", "> 0", "0.0")),
    "alpha a string": (lambda: F_icm.sample_lam("1"), TypeError, ("alpha", "number")),
    "n negative": (lambda: F_icm.sample_lam(1.0, -1), ValueError, ("n", ">= 0", "-1")),
    "n a float": (lambda: F_icm.sample_lam(1.0, 2.0), TypeError, ("n", "integer", "2.0")),
    "lam of a box above 1": (lambda: F_icm.cutmix_box(1.5, 4, 4, 1, 1), ValueError, ("cutmix_box", "lam = 1.5")),
    "no height": (lambda: F_icm.cutmix_box(0.5, 0, 4, 1, 1), ValueError, ("height", "positive", "0")),
    "centre a string": (lambda: F_icm.cutmix_box(0.5, 4, 4, "1", 1), TypeError, ("centre_y", "number")),
    "float centre": (lambda: F_icm.cutmix_box(0.5, 4, 4, torch.rand(2), 1), ValueError, ("centre_y", "integers")),
    "remix label too large": (lambda: remix_lam(y_b=LABELS + 1), ValueError, ("y_b[3] = 4", "[0, 4)")),
    "remix lam too large": (lambda: remix_lam(1.5), ValueError, ("lam = 1.5",)),
    "remix lam of another shape": (lambda: remix_lam(torch.rand(3)), ValueError, ("lam", "(4,)", "(3,)")),
    "remix without counts": (lambda: remix_lam(counts=torch.zeros(0)), ValueError, ("class_counts", "(C,)")),
}


def call(images: Any = X, labels: Any = LABELS, **options: Any) -> Any:
    return icm.Mixup(**options)(images, labels)


MODULES: dict[str, Case] = {
    "alpha a string": (lambda: icm.Mixup("0.2"), TypeError, ("Mixup", "mixup_alpha", "number")),
    "negative alpha": (lambda: icm.Mixup(-1.0), ValueError, ("mixup_alpha", ">= 0", "-1.0")),
    "no mixing at all": (lambda: icm.Mixup(0.0), ValueError, ("mixup_alpha", "cutmix_alpha", "mixup_enabled")),
    "minmax a number": (lambda: icm.Mixup(cutmix_minmax=0.3), TypeError, ("cutmix_minmax", "(least, most)", "0.3")),
    "minmax reversed": (lambda: icm.Mixup(cutmix_minmax=(0.5, 0.3)), ValueError, ("cutmix_minmax", "(0.5, 0.3)")),
    "minmax above 1": (lambda: icm.Mixup(cutmix_minmax=(0.5, 1.3)), ValueError, ("cutmix_minmax", "1.3")),
    "prob above 1": (lambda: icm.Mixup(prob=1.5), ValueError, ("prob", "[0, 1]", "1.5")),
    "switch_prob NaN": (lambda: icm.Mixup(switch_prob=NAN), ValueError, ("switch_prob", "nan")),
    "mode": (lambda: icm.Mixup(mode="each"), ValueError, ("mode", "'batch', 'elem', 'pair'", "'each'")),
    "half of a batch": (lambda: icm.Mixup(mode="half"), ValueError, ('mode="elem"', "half the batch_size")),
    "mean of bytes": (
        lambda: icm.Mixup(mean=(123.0, 117.0, 104.0), std=(58.0, 57.0, 57.0)),
        ValueError,
        ("mean", "from 0 to 1", "divide by 255", "123"),
    ),
    "std of 0": (lambda: icm.Mixup(mean=(0.5,), std=(0.0,)), ValueError, ("std", "positive")),
    "pairing": (lambda: icm.Mixup(pairing="random"), ValueError, ("pairing", "'perm'", "'random'")),
    "pairs of no pairing": (lambda: icm.Mixup(mode="pair", pairing="perm"), ValueError, ('mode="pair"', '"flip"')),
    "remix a list": (lambda: icm.Mixup(remix=[1, 2]), TypeError, ("remix", "RemixRule", "list of 2")),
    "mean without std": (lambda: icm.Mixup(mean=MEAN), ValueError, ("mean and std", "only mean")),
    "smoothing a mixed target": (
        lambda: icm.Mixup(label_smoothing=0.1, target="mixed", num_classes=4),
        ValueError,
        ('target="dense"', "MixupCrossEntropyLoss"),
    ),
    "smoothing without classes": (lambda: icm.Mixup(label_smoothing=0.1), ValueError, ("0.1", "needs num_classes")),
    "smoothing above 1": (lambda: icm.Mixup(label_smoothing=10), ValueError, ("label_smoothing", "[0, 1]", "10")),
    "no class": (lambda: icm.Mixup(num_classes=0), ValueError, ("num_classes", "positive integer", "0")),
    "target": (lambda: icm.Mixup(target="soft"), ValueError, ("target", "'mixed', 'dense'", "'soft'")),
    "dense without classes": (lambda: icm.Mixup(target="dense"), ValueError, ("num_classes", "None")),
    "dense and clean": (
        lambda: icm.Mixup(target="dense", num_classes=4, keep_clean=True),
        ValueError,
        ("keep_clean", "mixed"),
    ),
    "one-hot labels": (lambda: call(labels=torch.eye(4)), TypeError, ("integer labels", "argmax(1)", "(4, 4)")),
    "one-hot integers": (lambda: call(labels=torch.eye(4).long()), TypeError, ("integer labels (B,)", "argmax(1)")),
    "mixed twice": (
        lambda: call(labels=icm.MixedTarget(LABELS, LABELS, torch.tensor(0.5))),
        TypeError,
        ("integer labels", "MixedTarget", "mixed once"),
    ),
    "labels of another length": (lambda: call(labels=LABELS[:3]), ValueError, ("4 samples", "labels has 3")),
    "uint8 images": (lambda: call(PIXELS), TypeError, ("Mixup", "uint8", "mean and std")),
    "float images with mean": (lambda: call(mean=MEAN, std=STD), TypeError, ("Mixup", "mean", "uint8", "float32")),
    "cutmix of vectors": (lambda: call(X[:, :, 0, 0], cutmix_alpha=1.0), ValueError, ("CutMix", "height", "(4, 3)")),
    "label beyond the counts": (lambda: call(remix=icm.RemixRule([5, 3])), ValueError, ("y_a[2] = 2", "[0, 2)")),
    "no counts": (lambda: icm.RemixRule([]), ValueError, ("RemixRule", "class_counts", "(C,)")),
    "counts a string": (lambda: icm.RemixRule("12"), TypeError, ("class_counts", "tensor or a list")),
    "a class without images": (lambda: icm.RemixRule([3, 0]), ValueError, ("class_counts[1] = 0", "positive")),
    "kappa below 1": (lambda: icm.RemixRule([3, 1], kappa=0.5), ValueError, ("kappa", ">= 1", "0.5")),
    "tau above 1": (lambda: icm.RemixRule([3, 1], tau=2), ValueError, ("tau", "[0, 1]", "2")),
    "beta of 0": (lambda: icm.AMMixup(0), ValueError, ("AMMixup", "beta", "> 0", "0")),
    "accuracy in per cent": (lambda: icm.AMMixup().update(87.0), ValueError, ("train_accuracy", "[0, 1]", "87.0")),
    "features of another length": (lambda: icm.AMMixup()(X[:3], LABELS), ValueError, ("features", "(4, ...)")),
    "integer features": (lambda: icm.AMMixup()(LABELS, LABELS), TypeError, ("features", "float32", "int64")),
    "state without generator": (
        lambda: icm.Mixup().load_state_dict(icm.Mixup(generator=torch.Generator()).state_dict()),
        ValueError,
        ("Mixup", "has no generator", "one"),
    ),
}


GROUPS = {"mixup": MIXUP, "others": OTHERS, "modules": MODULES}
CASES = {f"{kind}: {name}": case for kind, cases in GROUPS.items() for name, case in cases.items()}


@pytest.mark.parametrize("name", CASES)
def test_message(name: str) -> None:
    function, exception, words = CASES[name]
    with pytest.raises(exception) as caught:
        function()
    message = str(caught.value)
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"


def test_nothing_changes_when_a_call_is_refused() -> None:
    out = torch.full((4, 3, 6, 6), 7.0)
    with pytest.raises(ValueError, match="index"):
        mixup(index=INDEX + 1, out=out)
    assert torch.equal(out, torch.full((4, 3, 6, 6), 7.0))
