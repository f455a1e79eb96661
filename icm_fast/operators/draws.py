"""Random draws, on a generator's device or from torch's global generator on a given one; in a graph as operators.

torch's own draw from a Dirichlet distribution has no fake kernel for sizes that are not known yet, its code generator
(2.13) fails at an index that comes from torch.randperm, and has random numbers of its own. These are eager mode's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._library import LIBRARY

Shape = tuple[int, ...]


def weights(concentration: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """(..., n) weights that sum to 1, from the Dirichlet distribution."""
    if _in_graph(generator):
        return _operator("weights", concentration)
    return torch._sample_dirichlet(concentration, generator)


def uniform(shape: Shape, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """float32 in [0, 1)."""
    if _in_graph(generator):
        return _operator("uniform", torch.empty(shape, device=device, dtype=torch.float32))
    return torch.rand(shape, generator=generator, device=device, dtype=torch.float32)


def integers(size: int, shape: Shape, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """int64 in [0, size)."""
    if _in_graph(generator):
        return _operator("integers", torch.empty(shape, device=device, dtype=torch.int64), size)
    return torch.randint(size, shape, generator=generator, device=device)


def permutation(n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """(n,) int64: 0 to n - 1 in random order."""
    if _in_graph(generator):
        return _operator("permutation", torch.empty(n, device=device, dtype=torch.int64))
    return torch.randperm(n, generator=generator, device=device)


def _in_graph(generator: torch.Generator | None) -> bool:
    """A graph cannot hold a generator."""
    return generator is None and torch.compiler.is_compiling()


def _operator(name: str, *arguments: Tensor | int) -> Tensor:
    drawn: Tensor = getattr(torch.ops.icm_fast, name)(*arguments)
    return drawn


def _fake(like: Tensor, *_: int) -> Tensor:
    return torch.empty_like(like)


# What each operator draws, of the shape and on the device of `like`.
_DRAWS: dict[str, Callable[..., Tensor]] = {
    "weights": weights,
    "uniform": lambda like: uniform(like.shape, None, like.device),
    "integers": lambda like, size: integers(size, like.shape, None, like.device),
    "permutation": lambda like: permutation(like.shape[0], None, like.device),
}
for _name, _draw in _DRAWS.items():
    _size = ", SymInt size" if _name == "integers" else ""
    LIBRARY.define(f"{_name}(Tensor like{_size}) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))
    LIBRARY.impl(_name, _draw, "CompositeExplicitAutograd")
    torch.library.register_fake(f"icm_fast::{_name}", _fake, lib=LIBRARY)
