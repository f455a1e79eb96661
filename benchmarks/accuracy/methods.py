"""The one registry of methods: how each mixes, and which loss it is trained with.

The command line, the demo, the timing and the tests all read METHODS; a new method is one entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import icm_fast as icm
from benchmarks.accuracy.mixings import CleanAndMixed, FeatureMixing, InputMixing, MidpointTarget, Mixing
from icm_fast import functional as F_icm
from icm_fast.testing import formulations

LossFunction = Callable[[Any, Any], Tensor]

MIXUP_ALPHA = 0.2  # Mixup and Remix in the Infinite Class Mixup paper
REGMIXUP_ALPHA = 20.0
REMIX_KAPPA = 3.0
REMIX_TAU = 0.5
AM_MIXUP_BETA = 0.67


@dataclass(frozen=True)
class Context:
    """What a mixing may depend on besides the batch: class_counts (C,), and where its random numbers come from."""

    class_counts: Tensor
    generator: torch.Generator


@dataclass(frozen=True)
class Method:
    """One row of the table.

    `plain_loss` is the same loss as its authors' programs write it; it serves the timing only.
    `counterpart` is the method that this one claims to improve on.
    """

    title: str
    mixing: Callable[[Context], Mixing]
    loss: Callable[[], LossFunction]
    plain_loss: LossFunction
    counterpart: str | None = "erm"


def _mixup(context: Context) -> Mixing:
    return InputMixing(icm.Mixup(mixup_alpha=MIXUP_ALPHA, generator=context.generator))


def _remix(context: Context) -> Mixing:
    rule = icm.RemixRule(context.class_counts, kappa=REMIX_KAPPA, tau=REMIX_TAU)
    return InputMixing(icm.Mixup(mixup_alpha=MIXUP_ALPHA, remix=rule, generator=context.generator))


def _regmixup(context: Context) -> Mixing:
    return CleanAndMixed(icm.Mixup(mixup_alpha=REGMIXUP_ALPHA, keep_clean=True, generator=context.generator))


def _am_mixup(context: Context) -> Mixing:
    return FeatureMixing(icm.AMMixup(beta=AM_MIXUP_BETA), context.generator)


def _am_mixup_loss(logits: Tensor, target: MidpointTarget) -> Tensor:
    return F_icm.am_mixup_loss(logits, target.index, target.rate, target.labels)


def plain_mixup_loss(logits: Tensor, target: icm.MixedTarget) -> Tensor:
    return formulations.two_cross_entropies(logits, target.y_a, target.y_b, target.lam)


def plain_icm_loss(logits: Tensor, target: icm.MixedTarget, axis: str = "both") -> Tensor:
    return formulations.authors(logits, target.y_a, target.y_b, target.lam, axis)


def plain_regmixup_loss(logits: tuple[Tensor, Tensor], target: icm.MixedTarget, mixed: LossFunction) -> Tensor:
    clean_logits, mixed_logits = logits
    labels = target.y_a if target.clean is None else target.clean
    return F.cross_entropy(clean_logits, labels) + mixed(mixed_logits, target)


def plain_am_mixup_loss(logits: Tensor, target: MidpointTarget) -> Tensor:
    mixed = target.rate * logits + (1 - target.rate) * logits[target.index]
    return F.cross_entropy(mixed, target.labels if target.rate >= 0.5 else target.labels[target.index])


METHODS: dict[str, Method] = {
    "erm": Method("ERM", lambda context: Mixing(), lambda: F.cross_entropy, F.cross_entropy, counterpart=None),
    "mixup": Method("Mixup", _mixup, icm.MixupCrossEntropyLoss, plain_mixup_loss),
    "ic-mixup-class": Method(
        "IC-Mixup (class)", _mixup, partial(icm.ICMLoss, axis="class"), partial(plain_icm_loss, axis="class"), "mixup"
    ),
    "ic-mixup-pair": Method(
        "IC-Mixup (pair)", _mixup, partial(icm.ICMLoss, axis="pair"), partial(plain_icm_loss, axis="pair"), "mixup"
    ),
    "ic-mixup": Method("IC-Mixup (both)", _mixup, icm.ICMLoss, plain_icm_loss, "mixup"),
    "remix": Method("Remix", _remix, icm.MixupCrossEntropyLoss, plain_mixup_loss),
    "ic-remix": Method("IC-Remix", _remix, icm.ICMLoss, plain_icm_loss, "remix"),
    "regmixup": Method(
        "RegMixup",
        _regmixup,
        lambda: icm.RegMixupLoss(mixed=icm.MixupCrossEntropyLoss()),
        partial(plain_regmixup_loss, mixed=plain_mixup_loss),
    ),
    "ic-regmixup": Method(
        "IC-RegMixup",
        _regmixup,
        lambda: icm.RegMixupLoss(mixed=icm.ICMLoss()),
        partial(plain_regmixup_loss, mixed=plain_icm_loss),
        "regmixup",
    ),
    "am-mixup": Method("AM-Mixup", _am_mixup, lambda: _am_mixup_loss, plain_am_mixup_loss),
}


def get(name: str) -> Method:
    """The method of that name."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; there is: {', '.join(METHODS)}")
    return METHODS[name]
