"""What the loss should be, in float64, at any size: no time is given for a result that is another.

Where the scores fit, the truth is the reference's: the whole loss and gradient. Elsewhere it is exact as well, but of a
sample. Of some images i the term is

    log sum_j exp Z[i, j]  +  log sum_k exp Z[k, i]  -  2 Z[i, i]

which takes one row and one column of Z; of some classes c the gradient of these images is

    dL/dS[i, c] = sum_j (P[i, j] + Q[i, j] - 2 [i = j]) Y[j, c] / B

which takes the sums of those columns j alone that are mixed from c. A term that is wrong for few images in a large
batch, or a gradient of few classes, may be missed; what is wrong for all is not. That the loss is the mean of all terms
is checked on the terms that the library itself returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from icm_fast import functional as F_icm
from icm_fast import reference

from .errors import largest_error
from .workloads import Workload

# Largest batch, and numbers in the logits, of which the reference gives the whole truth.
WHOLE = (2048, 1 << 26)
IMAGES = 32
SCORES = 1 << 26  # of which exponentials are taken for a sample; at least those of one class
_BLOCK = 1 << 18  # stays in the cache


class Truth(NamedTuple):
    """Terms of the images, and their gradient for the classes, in float64."""

    images: Tensor
    classes: Tensor
    terms: Tensor
    gradient: Tensor
    is_whole: bool


def truth(workload: Workload) -> Truth:
    """The whole truth, or that of a sample."""
    batch_size, num_classes = workload.size
    if batch_size <= WHOLE[0] and batch_size * num_classes <= WHOLE[1]:
        return whole(workload)
    generator = torch.Generator().manual_seed(0)
    target = workload.inputs["target"]
    count = max(1, min(num_classes, SCORES * num_classes // (2 * batch_size**2)))
    classes = torch.randperm(num_classes, generator=generator)[:count].sort().values
    # Half of the images from these classes, where their own column is in the gradient.
    images = torch.randperm(batch_size, generator=generator)
    inside = images[torch.isin(target.y_a[images], classes)]
    chosen = torch.cat((inside[: IMAGES // 2], images[-IMAGES // 2 :])).unique()
    return sampled(workload, chosen, classes)


def whole(workload: Workload) -> Truth:
    """The reference's."""
    batch_size, num_classes = workload.size
    logits = workload.inputs["logits"].detach().double().requires_grad_()
    terms: Any = reference.icm_loss(logits, workload.inputs["target"], reduction="none")
    (gradient,) = torch.autograd.grad(terms.mean(), logits)
    return Truth(torch.arange(batch_size), torch.arange(num_classes), terms.detach(), gradient, True)


def sampled(workload: Workload, images: Tensor, classes: Tensor) -> Truth:
    """Of these images and classes, both sorted and without repetition."""
    S, target = workload.inputs["logits"].detach(), workload.inputs["target"]
    batch_size, num_classes = workload.size
    y_a, y_b, w_a = target.y_a, target.y_b, target.lam.double().expand(batch_size)
    w_b = 1 - w_a
    # Rows of Z, and its columns that matter with their sums.
    of_images = S[images].double()
    Z = w_a * of_images[:, y_a] + w_b * of_images[:, y_b]
    row_sums = Z.logsumexp(1)
    is_mixed = torch.isin(y_a, classes) | torch.isin(y_b, classes)
    needed = is_mixed.clone()
    needed[images] = True
    column_sums = Z.new_zeros(batch_size)
    column_sums[needed] = _column_sums(S, y_a[needed], y_b[needed], w_a[needed], w_b[needed])
    terms = row_sums + column_sums[images] - 2 * Z.gather(1, images[:, None])[:, 0]
    # dL/dZ in the columns that are mixed from the classes.
    columns = is_mixed.nonzero()[:, 0]
    D = (Z[:, columns] - row_sums[:, None]).exp() + (Z[:, columns] - column_sums[columns]).exp()
    D -= 2 * (images[:, None] == columns)
    place = torch.full((num_classes,), len(classes))  # the last: what is left out
    place[classes] = torch.arange(len(classes))
    gradient = Z.new_zeros(len(images), len(classes) + 1)
    for labels, weights in ((y_a, w_a), (y_b, w_b)):
        gradient.index_add_(1, place[labels[columns]], D * weights[columns])
    return Truth(images, classes, terms, gradient[:, :-1] / batch_size, False)


def _column_sums(S: Tensor, y_a: Tensor, y_b: Tensor, w_a: Tensor, w_b: Tensor) -> Tensor:
    """log sum_k exp Z[k, j] for these columns, some at a time; of normal logits, whose largest need no subtraction."""
    used, places = torch.cat((y_a, y_b)).unique(return_inverse=True)
    by_class = S.T[used].double().contiguous()
    step = max(1, _BLOCK // S.shape[0])
    blocks = (part.split(step) for part in (*places.chunk(2), w_a[:, None], w_b[:, None]))
    sums = [(u * by_class[a]).addcmul_(v, by_class[b]).exp_().sum(1).log() for a, b, u, v in zip(*blocks, strict=True)]
    return torch.cat(sums)


def error(step: Sequence[Tensor], terms: Tensor, exact: Truth, workload: Workload) -> float:
    """The largest, relative to the largest number of its kind.

    An image's own two classes are a kind apart: their gradient is C times that of the others and would hide it.
    """
    loss, gradient = step
    target = workload.inputs["target"]
    ours = gradient[exact.images][:, exact.classes]
    own = (exact.classes == target.y_a[exact.images, None]) | (exact.classes == target.y_b[exact.images, None])
    pairs = [(terms[exact.images], exact.terms), (loss, terms.double().mean())]
    pairs += [(ours[kind], exact.gradient[kind]) for kind in (own, ~own) if kind.any()]
    return max(largest_error(value, truth) for value, truth in pairs)


def terms_of(workload: Workload) -> Tensor:
    """The library's own terms."""
    terms: Tensor = F_icm.icm_loss(workload.inputs["logits"].detach(), workload.inputs["target"], reduction="none")
    return terms
