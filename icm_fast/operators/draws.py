"""Random draws, on a generator's device or from torch's global generator on a given one; in a graph as operators.

torch's own draw from a Dirichlet distribution has no fake kernel for sizes that are not known yet, its code generator
(2.13) fails at an index that comes from torch.randperm, and has random numbers of its own. These are eager mode's, in
eager mode's order if each names the one `after` which it comes: a code generator may turn round what does not depend on
each other. Shapes come from torch.empty, of which two equal calls stay two.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._library import LIBRARY

Shape = tuple[int, ...]


def weights(
    alpha: float,
    shape: Shape,
    generator: torch.Generator | None,
    device: torch.device,
    after: Tensor | None = None,
) -> Tensor:
    """(..., n) weights that sum to 1, from the symmetric Dirichlet distribution; float64 where the device has it."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    if _in_graph(generator):
        return _operator("weights", torch.empty(shape, device=device, dtype=dtype), after, alpha)
    return torch._sample_dirichlet(torch.full(shape, alpha, device=device, dtype=dtype), generator)


def uniform(
    shape: Shape, generator: torch.Generator | None, device: torch.device, after: Tensor | None = None
) -> Tensor:
    """float32 in [0, 1)."""
    if _in_graph(generator):
        return _operator("uniform", torch.empty(shape, device=device, dtype=torch.float32), after)
    return torch.rand(shape, generator=generator, device=device, dtype=torch.float32)


def integers(
    size: int, shape: Shape, generator: torch.Generator | None, device: torch.device, after: Tensor | None = None
) -> Tensor:
    """int64 in [0, size)."""
    if _in_graph(generator):
        return _operator("integers", torch.empty(shape, device=device, dtype=torch.int64), after, size)
    return torch.randint(size, shape, generator=generator, device=device)


def permutation(n: int, generator: torch.Generator | None, device: torch.device, after: Tensor | None = None) -> Tensor:
    """(n,) int64: 0 to n - 1 in random order."""
    if _in_graph(generator):
        return _operator("permutation", torch.empty(n, device=device, dtype=torch.int64), after)
    return torch.randperm(n, generator=generator, device=device)


def _in_graph(generator: torch.Generator | None) -> bool:
    """A graph cannot hold a generator."""
    return generator is None and torch.compiler.is_compiling()


def _operator(name: str, *arguments: Tensor | float | None) -> Tensor:
    drawn: Tensor = getattr(torch.ops.icm_fast, name)(*arguments)
    return drawn


def _fake(like: Tensor, *_: Tensor | float | None) -> Tensor:
    return torch.empty_like(like)


# What each operator draws, of the shape and on the device of `like`.
_DRAWS: dict[str, Callable[..., Tensor]] = {
    "weights": lambda like, _, alpha: weights(alpha, like.shape, None, like.device),
    "uniform": lambda like, _: uniform(like.shape, None, like.device),
    "integers": lambda like, _, size: integers(size, like.shape, None, like.device),
    "permutation": lambda like, _: permutation(like.shape[0], None, like.device),
}
for _name, _draw in _DRAWS.items():
    _more = {"weights": ", float alpha", "integers": ", SymInt size"}.get(_name, "")
    LIBRARY.define(f"{_name}(Tensor like, Tensor? after{_more}) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))
    LIBRARY.impl(_name, _draw, "CompositeExplicitAutograd")
    torch.library.register_fake(f"icm_fast::{_name}", _fake, lib=LIBRARY)
