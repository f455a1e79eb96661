"""Same seed, same batches; ranks and DataLoader workers that begin alike draw differently."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import processes
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader

import icm_fast as icm

B = 6
IMAGES = torch.rand(B, 3, 12, 10, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(B)
MIXINGS: dict[str, dict[str, Any]] = {
    "batch": {},
    "elem": {"mode": "elem"},
    "pair": {"mode": "pair", "pairing": "flip"},
    "gated": {"prob": 0.5, "cutmix_alpha": 1.0},
    "cutmix": {"mixup_alpha": 0.0, "cutmix_alpha": 1.0, "mode": "elem"},
    "minmax": {"cutmix_minmax": (0.2, 0.7)},
    "switched": {"cutmix_alpha": 1.0, "mode": "elem"},
    "remix": {"remix": icm.RemixRule(torch.tensor([50, 40, 30, 20, 10, 5]))},
    "keep_clean": {"keep_clean": True, "mixup_alpha": 20.0},
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batches(mix: Any, count: int = 3) -> list[Tensor]:
    """Images, partners and lam of some batches."""
    mixed = [mix(IMAGES, LABELS) for _ in range(count)]
    return [tensor for images, target in mixed for tensor in (images, target.y_b, target.lam)]


def am_batches(am_mixup: icm.AMMixup) -> list[Tensor]:
    am_mixup.update(1.0)  # or nothing would be mixed
    return [am_mixup(IMAGES, LABELS)[0] for _ in range(3)]


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", MIXINGS)
def test_same_seed_same_batches(name: str) -> None:
    options = MIXINGS[name]
    first = batches(icm.Mixup(**options, generator=seeded()))
    assert same_bits(batches(icm.Mixup(**options, generator=seeded())), first)
    assert not same_bits(batches(icm.Mixup(**options, generator=seeded(1))), first)
    torch.manual_seed(0)
    unseeded = batches(icm.Mixup(**options))
    torch.manual_seed(0)
    assert same_bits(batches(icm.Mixup(**options)), unseeded)


def test_one_process_draws_from_the_generator_that_it_gave() -> None:
    generator = seeded()
    mix = icm.Mixup(generator=generator)
    assert mix.generator is generator
    before = generator.get_state()
    batches(mix)
    assert not torch.equal(generator.get_state(), before)
    assert same_bits(batches(copy.deepcopy(mix)), batches(pickle.loads(pickle.dumps(mix))))


class Collate:
    """What loaders give their workers; pickled for those that are not forks."""

    def __init__(self, mix: icm.Mixup) -> None:
        self.mix = mix

    def __call__(self, samples: list[int]) -> Any:
        images, target = self.mix(IMAGES[samples], LABELS[samples])
        worker = torch.utils.data.get_worker_info()
        assert worker is not None
        return worker.id, target, images


def draws_of_workers(
    mix: icm.Mixup, seed: int, epochs: int = 2, start: str = "fork", **options: Any
) -> list[tuple[int, float]]:
    """Worker and lam of every batch; four an epoch, of two workers."""
    torch.manual_seed(seed)
    options |= {"num_workers": 2, "multiprocessing_context": start}
    loader = DataLoader(list(range(B)) * 4, B, collate_fn=Collate(mix), **options)
    return [(worker, target.lam.item()) for _ in range(epochs) for worker, target, _ in loader]


@pytest.mark.parametrize("with_generator", [True, False])
@pytest.mark.parametrize("persistent", [True, False])
def test_workers_and_epochs_draw_differently_and_reproducibly(with_generator: bool, persistent: bool) -> None:
    def draws(seed: int, of_generator: int = 0) -> list[tuple[int, float]]:
        mix = icm.Mixup(1.0, generator=seeded(of_generator) if with_generator else None)
        return draws_of_workers(mix, seed, persistent_workers=persistent)

    first = draws(0)
    assert [worker for worker, _ in first] == [0, 1] * 4
    assert len({lam for _, lam in first}) == 8
    assert draws(0) == first
    assert not {lam for _, lam in draws(1)} & {lam for _, lam in first}
    if with_generator:
        assert not {lam for _, lam in draws(0, of_generator=1)} & {lam for _, lam in first}


def test_workers_that_are_no_forks_draw_the_same() -> None:
    forked, spawned = (
        draws_of_workers(icm.Mixup(1.0, generator=seeded()), 0, epochs=1, start=start) for start in ("fork", "spawn")
    )
    assert spawned == forked


def alike(rank: int, world: int) -> dict[str, Any]:
    """Draws of ranks whose seeds are all the same."""
    torch.manual_seed(0)
    results: dict[str, Any] = {
        "global": batches(icm.Mixup(1.0)),
        "generator": batches(icm.Mixup(1.0, generator=seeded())),
        "as one": batches(icm.Mixup(1.0, generator=seeded(), rank=0)),
        "am": am_batches(icm.AMMixup(generator=seeded())),
        "workers": [lam for _, lam in draws_of_workers(icm.Mixup(1.0, generator=seeded()), 0)],
    }
    torch.manual_seed(rank)
    results["global by rank"] = batches(icm.Mixup(1.0))
    mix = icm.Mixup(1.0, generator=seeded())
    batches(mix)
    states: list[Any] = [None] * world
    dist.all_gather_object(states, mix.state_dict())
    results["sent"] = list(pickle.dumps(mix))
    results["next"] = batches(mix)
    for name, state in (("resumed", states[rank]), ("from rank 0", states[0]), ("from rank 1", states[1])):
        other = icm.Mixup(1.0, generator=seeded(99))
        other.load_state_dict(state)
        results[name] = batches(other)
    return results


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return processes.run(alike, 3, tmp_path_factory.mktemp("ranks"))


def equal_pairs(of_ranks: list[dict[str, Any]], name: str) -> int:
    """Of the three."""
    return sum(same_bits(a[name], b[name]) for a, b in itertools.combinations(of_ranks, 2))


def test_ranks_with_the_same_generator_draw_differently(of_ranks: list[dict[str, Any]]) -> None:
    assert equal_pairs(of_ranks, "generator") == 0 and equal_pairs(of_ranks, "am") == 0
    assert same_bits(of_ranks[0]["generator"], batches(icm.Mixup(1.0, generator=seeded())))  # as one process alone
    assert equal_pairs(of_ranks, "as one") == 3
    assert len({lam for each in of_ranks for lam in each["workers"]}) == 3 * 8


def test_global_generator_is_taken_as_it_is(of_ranks: list[dict[str, Any]]) -> None:
    assert equal_pairs(of_ranks, "global") == 3
    assert equal_pairs(of_ranks, "global by rank") == 0


def test_ranks_continue_their_own_draws(of_ranks: list[dict[str, Any]]) -> None:
    for rank, each in enumerate(of_ranks):
        assert same_bits(each["resumed"], each["next"])
        # As a worker that is no fork gets it, where torch.distributed knows of no rank.
        assert same_bits(batches(pickle.loads(bytes(each["sent"]))), each["next"])
        assert same_bits(each["from rank 0"], each["next"]) == (rank == 0)
    # A checkpoint of one rank that all load does not make them alike.
    assert equal_pairs(of_ranks, "from rank 0") == 0 and equal_pairs(of_ranks, "from rank 1") == 0


def test_states_without_a_rank_are_of_one_process() -> None:
    mix = icm.Mixup(1.0, generator=seeded())
    state = mix.state_dict()
    del state["rank"]
    expected = batches(mix)
    mix.load_state_dict(state)
    assert same_bits(batches(mix), expected)


@pytest.mark.parametrize("rank", [-1, 1.0, True, "0"])
def test_a_rank_is_a_number(rank: Any) -> None:
    with pytest.raises(ValueError, match="expected rank to be None or a number from 0"):
        icm.Mixup(rank=rank)


def test_a_generator_is_not_a_seed() -> None:
    with pytest.raises(TypeError, match=r"expected generator to be a torch\.Generator, got 0"):
        icm.AMMixup(generator=0)  # type: ignore[arg-type]
