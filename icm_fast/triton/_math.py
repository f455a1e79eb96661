# mypy: allow-untyped-defs, allow-incomplete-defs
"""The formulae of csrc/icm_math.h and csrc/mixed_labels.h as Triton device functions, for every operation.

`acc` is the type of sums: float64 for float64, else float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.44269504088896340735992468100189214)
LN2 = tl.constexpr(0.693147180559945309417232121458176568)
_LARGEST_32 = tl.constexpr(3.4028234663852886e38)
_LARGEST_64 = tl.constexpr(1.7976931348623157e308)


@triton.jit
def as_number(n, dtype: tl.constexpr):
    """An integer argument in another type. It may be no tensor: Triton makes a literal of an argument that is 1."""
    return (tl.full((), 0, tl.int64) + n).to(dtype)


@triton.jit
def largest(acc: tl.constexpr):
    """The largest finite number."""
    if acc == tl.float64:
        value = tl.full((), _LARGEST_64, tl.float64)
    else:
        value = tl.full((), _LARGEST_32, tl.float32)
    return value


@triton.jit
def load_vector(vector, at, mask, acc: tl.constexpr):
    """Numbers of a Vector, 0 where masked."""
    return tl.load(vector.data + at.to(tl.int64) * vector.stride, mask=mask, other=0.0).to(acc)


@triton.jit
def mixed_class(labels, j, mask, classes, acc: tl.constexpr):
    """The mixed classes of columns j: (a, b, w_a, w_b, valid). w_b is 0 for a pure class, whose b is not to be read.

    Equal labels, or a weight of exactly 0, make the pure class with weight exactly 1. A label or a lam out of range
    makes the column invalid: its classes are 0 and it must not be read either.
    """
    at = j.to(tl.int64)
    a = tl.load(labels.y_a + at * labels.stride_a, mask=mask, other=0)
    b = tl.load(labels.y_b + at * labels.stride_b, mask=mask, other=0)
    given = tl.load(labels.lam + at * labels.stride_lam, mask=mask, other=1.0)
    valid = mask & (a >= 0) & (a < classes) & (b >= 0) & (b < classes)
    valid = valid & (given >= 0) & (given <= 1)  # judged before it is rounded
    lam = given.to(acc)
    rest = 1 - lam
    is_a = (a == b) | (rest == 0)
    is_b = (lam == 0) & (is_a == 0)
    w_a = tl.where(is_a | is_b, 1.0, lam).to(acc)
    w_b = tl.where(is_a | is_b, 0.0, rest).to(acc)
    a = tl.where(valid, tl.where(is_b, b, a), 0)
    return a, tl.where(valid, b, 0), w_a, tl.where(valid, w_b, 0.0), valid


@triton.jit
def load_scale(scale, acc: tl.constexpr):
    """(factor of the logits, its sign, |factor| * log2(e)); a factor that is not given is 1."""
    if scale is None:
        factor = tl.full((), 1.0, acc)
    else:
        factor = tl.load(scale).to(acc)
    sign = tl.where(factor < 0, -1.0, 1.0).to(acc)
    return factor, sign, tl.abs(factor) * tl.full((), LOG2E, acc)


@triton.jit
def log_ratio(total, target, d):
    """log2(total / 2^d) in float64, `target` being 2^d where that is representable: no cancellation there.

    float64 because the fast logarithm of float32 has an absolute error, which a confident prediction, whose ratio
    is 1 + tiny, cannot bear. One number a row: it costs nothing.
    """
    representable = target > 5.421010862427522e-20  # 2^-64
    ratio = tl.log2(total.to(tl.float64) / tl.where(representable, target, 1.0).to(tl.float64))
    return tl.where(representable, ratio, ratio - d.to(tl.float64))


@triton.jit
def is_trusted(total, terms, acc: tl.constexpr):
    """Whether a sum of so many exponentials has lost nothing that counts to underflow; false for NaN."""
    if acc == tl.float64:
        least = tl.full((), 2.0**-961, tl.float64)
    else:
        least = tl.full((), 2.0**-94, tl.float32)
    return (total >= as_number(terms, acc) * least) & (total < float("inf"))
