"""The error budget: how far a result may lie from the truth, and the assertion that says so.

Truth is the reference in float64 on the same rounded inputs. torch's own error ("eager") is that of the plain
formulation in the accumulation type. Element by element, after NaN and infinities have been compared:

    |ours - truth| <= eager_factor * max |eager - truth|  +  floor_factor * eps * scale  +  rounding(ours)

The eager term allows what torch allows itself. The floor is what must be granted when torch is exact by luck (equal
scores, B = 1): `scale` counts, in units of eps, the error that the roundings of the algorithm can add up to, and is
derived in scales.py. The last term is ONE rounding to the output type.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """Constants for one accumulation type."""

    eps: float
    eager_factor: float
    floor_factor: float


# In float64 the truth has errors of its own, no smaller than those it is meant to judge: twice the floor.
TOLERANCES: dict[torch.dtype, Tolerance] = {
    torch.float32: Tolerance(eps=2.0**-23, eager_factor=2.0, floor_factor=1.0),
    torch.float64: Tolerance(eps=2.0**-52, eager_factor=2.0, floor_factor=2.0),
}


def rounding(magnitude: Tensor, dtype: torch.dtype) -> Tensor:
    """The most that one rounding to `dtype` can change a number of this magnitude; flushing to zero is allowed."""
    info = torch.finfo(dtype)
    # float16 has no exponent to spare: its subnormals are kept, half their spacing is the loss.
    least = info.smallest_normal * (info.eps / 2 if dtype == torch.float16 else 1)
    return (magnitude * (info.eps / 2)).clamp(min=least)


def check(
    ours: Tensor,
    eager: Tensor,
    truth: Tensor,
    *,
    out_dtype: torch.dtype,
    acc_dtype: torch.dtype,
    scale: Tensor | float,
    what: str,
    eager_error: Tensor | float | None = None,
) -> None:
    """Assert that `ours` is within the budget; see the module's first lines.

    Args:
        ours: the result under test, in `out_dtype`.
        eager: the plain formulation, in the accumulation type, before any rounding to `out_dtype`.
        truth: the reference in float64.
        scale: allowed error in units of eps, a number or an array that broadcasts to truth's shape.
        what: what is compared, for the message.
        eager_error: instead of max |eager - truth|: for reductions, whose errors cancel by luck.
    """
    if ours.dtype != out_dtype:
        raise AssertionError(f"{what}: expected {out_dtype}, got {ours.dtype}")
    if ours.shape != truth.shape:
        raise AssertionError(f"{what}: expected shape {tuple(truth.shape)}, got {tuple(ours.shape)}")
    o, e, t = (a.detach().to("cpu", torch.float64) for a in (ours, eager, truth))
    expected = t.to(out_dtype).double()  # a finite truth may overflow the output type
    _check_pattern(o, e, expected, what)

    tolerance = TOLERANCES[acc_dtype]
    finite = expected.isfinite()
    if eager_error is None:
        known = finite & e.isfinite()
        eager_error = (e - t)[known].abs().max() if bool(known.any()) else 0.0
    allowed_eager = tolerance.eager_factor * torch.as_tensor(eager_error, dtype=torch.float64, device="cpu")
    floor = tolerance.floor_factor * tolerance.eps * torch.as_tensor(scale, dtype=torch.float64, device="cpu")
    allowed = (allowed_eager + floor).expand(t.shape)
    allowed = allowed + rounding(t.abs() + allowed, out_dtype)
    error = (o - t).abs()
    beyond = finite & ~(error <= allowed)  # negated, so that a NaN bound fails
    if not bool(beyond.any()):
        return
    at = _worst(torch.where(beyond, error / allowed, -1.0))
    raise AssertionError(
        f"{what}: {int(beyond.sum())} of {t.numel()} elements beyond the budget; worst at {at}: "
        f"ours {o[at].item():.9g}, torch {e[at].item():.9g}, truth {t[at].item():.9g}, "
        f"error {error[at].item():.3g} = {ulps(o[at], t[at], out_dtype):.3g} ULPs of {out_dtype}, "
        f"allowed {allowed[at].item():.3g} (of which torch's own {allowed_eager.item():.3g})"
    )


def _check_pattern(o: Tensor, e: Tensor, expected: Tensor, what: str) -> None:
    """NaN, +inf and -inf must be where the truth has them, and nowhere else."""
    for name, of in (("NaN", torch.isnan), ("+inf", torch.isposinf), ("-inf", torch.isneginf)):
        differs = of(o) != of(expected)
        if bool(differs.any()):
            at = _worst(differs.double())
            raise AssertionError(
                f"{what}: {int(differs.sum())} of {o.numel()} elements disagree on {name}; first at {at}: "
                f"ours {o[at].item():.9g}, torch {e[at].item():.9g}, truth {expected[at].item():.9g}"
            )


def _worst(badness: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in torch.unravel_index(badness.argmax(), badness.shape))


def ulps(ours: Tensor, truth: Tensor, dtype: torch.dtype) -> float:
    """Distance in units of the spacing of `dtype` at the truth."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(truth.double().abs().clamp(min=info.smallest_normal)).exponent - 1
    return float((ours.double() - truth).abs() / torch.ldexp(torch.tensor(info.eps, dtype=torch.float64), exponent))


def check_same_bits(ours: Tensor, expected: Tensor, what: str) -> None:
    """Assert equal type, shape and bits: -0.0 is not 0.0, and NaN equals NaN."""
    if ours.dtype != expected.dtype or ours.shape != expected.shape:
        raise AssertionError(
            f"{what}: expected {expected.dtype} {tuple(expected.shape)}, got {ours.dtype} {tuple(ours.shape)}"
        )
    o, x = ours.detach().cpu(), expected.detach().cpu()
    differs = ~((o == x) & (o.signbit() == x.signbit()) | (o.isnan() & x.isnan()))
    if bool(differs.any()):
        at = _worst(differs.double())
        raise AssertionError(
            f"{what}: {int(differs.sum())} of {o.numel()} elements differ in their bits; first at {at}: "
            f"ours {o[at].item()!r}, expected {x[at].item()!r}"
        )
