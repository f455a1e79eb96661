"""Named input regimes and the grid of shapes.

A loss that is tested on normal logits alone is untested: the faults of fused softmaxes (a missing
maximum, an underflow, a cancellation at the target) show only on peaked, large, masked or equal scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

INF, NAN = float("inf"), float("nan")


class Case(NamedTuple):
    """One input of icm_loss. It has y_a, y_b and lam, so it also is a mixed target for the reference."""

    logits: Tensor  # (B, C)
    y_a: Tensor  # (B,) int64
    y_b: Tensor  # (B,) int64
    lam: Tensor  # () or (B,) float32, the weight of y_a


Make = Callable[[int, int, torch.Generator], Case]


@dataclass(frozen=True)
class Regime:
    """A way to draw cases. `finite`: the loss is finite whatever the shape."""

    name: str
    why: str
    make: Make
    finite: bool = True

    def __call__(
        self, batch_size: int, num_classes: int, dtype: torch.dtype, generator: torch.Generator, device: str = "cpu"
    ) -> Case:
        """Draw on the CPU, so that every device sees the same case; the logits are rounded to `dtype` once."""
        logits, y_a, y_b, lam = self.make(batch_size, num_classes, generator)
        return Case(logits.to(device, dtype), y_a.to(device), y_b.to(device), lam.to(device))


REGIMES: dict[str, Regime] = {}


def _regime(why: str, *, finite: bool = True) -> Callable[[Make], Make]:
    def register(make: Make) -> Make:
        name = make.__name__.removeprefix("_")
        REGIMES[name] = Regime(name, why, make, finite)
        return make

    return register


def _normal_logits(B: int, C: int, g: torch.Generator) -> Tensor:
    return torch.randn(B, C, generator=g, dtype=torch.float64)


def _labels(B: int, C: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    y_a = torch.randint(C, (B,), generator=g)
    return y_a, y_a[torch.randperm(B, generator=g)]


def _lam(B: int, g: torch.Generator) -> Tensor:
    return torch.rand(B, generator=g)  # per sample, asymmetric


def _plain(logits: Tensor, g: torch.Generator) -> Case:
    B, C = logits.shape
    return Case(logits, *_labels(B, C, g), _lam(B, g))


@_regime("the everyday case at the start of training")
def _normal(B: int, C: int, g: torch.Generator) -> Case:
    return _plain(3 * _normal_logits(B, C, g), g)


@_regime("bounded scores: nothing underflows, so only formulae can be wrong")
def _uniform(B: int, C: int, g: torch.Generator) -> Case:
    return _plain(torch.rand(B, C, generator=g, dtype=torch.float64) * 2 - 1, g)


@_regime("peaked on both axes, P and Q from 0.9 to 1 on the diagonal: P + Q - 2 cancels, but is not lost")
def _confident(B: int, C: int, g: torch.Generator) -> Case:
    y_a = torch.randperm(B, generator=g) % C  # distinct while C >= B
    y_b = y_a[torch.randperm(B, generator=g)]
    lam = 0.75 + 0.25 * _lam(B, g)
    logits, rows = _normal_logits(B, C, g), torch.arange(B)
    strength = 10 + 10 * _lam(B, g)
    logits[rows, y_a] += strength * lam
    logits[rows, y_b] += strength * (1 - lam)
    return Case(logits, y_a, y_b, lam)


@_regime("so sure that every gradient is smaller than the rounding of the ones it is a difference of")
def _certain(B: int, C: int, g: torch.Generator) -> Case:
    case = _confident(B, C, g)
    return Case(8 * case.logits, *case[1:])


@_regime("one class dominates every row: the class axis is peaked off the diagonal, the pair axis is not")
def _dominant_class(B: int, C: int, g: torch.Generator) -> Case:
    case = _plain(_normal_logits(B, C, g), g)
    case.logits[:, case.y_a[0]] += 40
    return case


@_regime("one image dominates every column: the pair axis is peaked off the diagonal, the class axis is not")
def _dominant_image(B: int, C: int, g: torch.Generator) -> Case:
    case = _plain(_normal_logits(B, C, g), g)
    case.logits[B // 2] += 40
    return case


@_regime("+-1e4: exponentials overflow unless a maximum is subtracted, per row and per column")
def _large(B: int, C: int, g: torch.Generator) -> Case:
    return _plain(2e4 * torch.rand(B, C, generator=g, dtype=torch.float64) - 1e4, g)


@_regime("a common offset of 1e4: what is subtracted last loses its bits")
def _offset(B: int, C: int, g: torch.Generator) -> Case:
    return _plain(1e4 + _normal_logits(B, C, g), g)


@_regime("all scores equal: ties stay exact, the loss is 2 ln B")
def _equal(B: int, C: int, g: torch.Generator) -> Case:
    return _plain(torch.full((B, C), 3.1, dtype=torch.float64), g)


@_regime("classes masked by -inf that are not the image's own")
def _masked(B: int, C: int, g: torch.Generator) -> Case:
    case = _plain(3 * _normal_logits(B, C, g), g)
    rows, masked = torch.arange(B), torch.rand(B, C, generator=g) < 0.3
    masked[rows, case.y_a] = masked[rows, case.y_b] = False
    case.logits[masked] = -INF
    return case


@_regime("an image whose own class is masked: class term +inf, pair term +inf (NaN at B = 1)", finite=False)
def _masked_own(B: int, C: int, g: torch.Generator) -> Case:
    case = _plain(3 * _normal_logits(B, C, g), g)
    case.logits[B // 2, case.y_a[B // 2]] = -INF
    return case


@_regime("a used class masked for every image: its columns are -inf throughout, pair term NaN", finite=False)
def _masked_class(B: int, C: int, g: torch.Generator) -> Case:
    case = _plain(3 * _normal_logits(B, C, g), g)
    case.logits[:, case.y_a[0]] = -INF
    return case


@_regime("NaN and -inf only at classes that no column uses, as partner of weight 0 included")
def _unused_nan(B: int, C: int, g: torch.Generator) -> Case:
    used = (C + 1) // 2
    y_a, y_b = torch.randint(used, (B,), generator=g), torch.randint(C, (B,), generator=g)
    logits = 3 * _normal_logits(B, C, g)
    logits[:, used::2], logits[:, used + 1 :: 2] = NAN, -INF
    return Case(logits, y_a, y_b, torch.where(y_b >= used, torch.ones(B), _lam(B, g)))


@_regime("a NaN logit at a used class", finite=False)
def _used_nan(B: int, C: int, g: torch.Generator) -> Case:
    case = _plain(3 * _normal_logits(B, C, g), g)
    case.logits[B // 2, case.y_a[0]] = NAN
    return case


@_regime("two classes and one lam: nearly every column has equals, the loss has a floor")
def _duplicates(B: int, C: int, g: torch.Generator) -> Case:
    return Case(3 * _normal_logits(B, C, g), *_labels(B, min(C, 2), g), torch.tensor(0.3))


@_regime("one lam for the batch, as in the paper's experiments")
def _batch_lam(B: int, C: int, g: torch.Generator) -> Case:
    return Case(3 * _normal_logits(B, C, g), *_labels(B, C, g), torch.tensor(0.2))


@_regime("lam = 0: the partner's pure class")
def _lam_zero(B: int, C: int, g: torch.Generator) -> Case:
    return Case(3 * _normal_logits(B, C, g), *_labels(B, C, g), torch.tensor(0.0))


@_regime("lam = 1: the own pure class, as the gate of Mixup(prob < 1) leaves it")
def _lam_one(B: int, C: int, g: torch.Generator) -> Case:
    return Case(3 * _normal_logits(B, C, g), *_labels(B, C, g), torch.tensor(1.0))


@_regime("lam = 1/2: both orders of a pair are the same class")
def _lam_half(B: int, C: int, g: torch.Generator) -> Case:
    return Case(3 * _normal_logits(B, C, g), *_labels(B, C, g), torch.tensor(0.5))


@_regime("lam at and next to its ends, per sample: 1 - lam must not be rounded away, nor 0 and 1 missed")
def _lam_edges(B: int, C: int, g: torch.Generator) -> Case:
    ends = torch.tensor([0.0, 1.0, 0.5, 2.0**-24, 1 - 2.0**-24, 1e-30])
    lam = ends[torch.randint(len(ends), (B,), generator=g)]
    return Case(3 * _normal_logits(B, C, g), *_labels(B, C, g), lam)


@_regime("y_a == y_b: pure classes, with exact ties")
def _same_class(B: int, C: int, g: torch.Generator) -> Case:
    y, _ = _labels(B, C, g)
    return Case(3 * _normal_logits(B, C, g), y, y.clone(), _lam(B, g))


def _range(nats: float) -> Make:
    def make(B: int, C: int, g: torch.Generator) -> Case:
        return _plain(nats * (torch.rand(B, C, generator=g, dtype=torch.float64) - 0.5), g)

    make.__name__ = f"_range_{nats:g}"
    return make


_regime("50 nats: within what one float32 exponential can serve on both axes")(_range(50))
_regime("200 nats: some columns underflow beside a shared exponential")(_range(200))
_regime("500 nats: nearly every column underflows beside a shared exponential")(_range(500))


# (B, C). B: 1 has no negative; 2 the least with one; 7, 31, 127, 257 are prime and leave tails in every
# tile; 16, 32, 128 fill tiles of 16 and 32 rows exactly; 33 and 17 are one more. C: 1 is always pure;
# 2 nearly all duplicates; 10, 100, 1000 are the data sets'; 257 is odd and larger than its batch.
SHAPES: tuple[tuple[int, int], ...] = (
    (1, 1),
    (1, 10),
    (2, 2),
    (7, 1),
    (7, 10),
    (16, 100),
    (17, 257),
    (31, 10),
    (32, 1000),
    (33, 100),
    (127, 2),
    (128, 100),
    (257, 10),
)
