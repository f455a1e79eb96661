"""accelerate needs nothing of ours: prepare, accumulate and checkpoints with Mixup and MixedTarget as they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peers import peer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

import icm_fast as icm

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]
C, BATCH, RATE = 5, 8, 0.5


@pytest.fixture
def accelerate() -> Iterator[ModuleType]:
    """Its settings are kept by the process: each test begins and ends without."""
    forget_settings()
    yield peer("accelerate")
    forget_settings()


def forget_settings() -> None:
    state = peer("accelerate.state")
    state.AcceleratorState._reset_state(reset_partial_state=True)
    state.GradientState._reset_state()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, C))


def mixup() -> icm.Mixup:
    return icm.Mixup(mixup_alpha=1.0, cutmix_alpha=1.0, generator=torch.Generator().manual_seed(0))


def loader(count: int = 4 * BATCH, collate: Any = None) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.rand(count, 3, 4, 4, generator=generator), torch.randint(C, (count,), generator=generator)
    return DataLoader(TensorDataset(images, labels), BATCH, collate_fn=collate)


def train(accelerator: Any, model: nn.Module, mix: icm.Mixup | None, batches: DataLoader) -> tuple[nn.Module, Any]:
    """The recipe; without mix the loader's batches are mixed."""
    criterion = icm.ICMLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    logits = None
    for images, target in batches:
        with accelerator.accumulate(model):
            if mix is not None:
                images, target = mix(images, target)
            assert isinstance(target, icm.MixedTarget) and target.device == accelerator.device
            logits = model(images)
            accelerator.backward(criterion(logits, target))
            optimizer.step()
            optimizer.zero_grad()
    return model, logits


def by_hand(counts: list[int], divisor: int) -> nn.Module:
    """Steps of SGD over so many micro-batches each, the sum of whose losses is divided."""
    model, mix, criterion = network(), mixup(), icm.ICMLoss()
    batches = iter(loader(sum(counts) * BATCH))
    for count in counts:
        loss = sum(criterion(model(images), target) for images, target in (mix(*next(batches)) for _ in range(count)))
        gradients = torch.autograd.grad(loss / divisor, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= RATE * gradient
    return model


def check_close(model: nn.Module, expected: nn.Module) -> None:
    for (name, mine), theirs in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=lambda text, name=name: f"{name}: {text}")
        assert (mine - network().get_parameter(name)).abs().max() > 1e-3, f"{name} was not trained"


def test_accumulation_is_the_mean_of_the_micro_batches(accelerate: ModuleType) -> None:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, _ = train(accelerator, network(), mixup(), loader())
    check_close(model, by_hand([2, 2], divisor=2))


def test_a_last_lone_micro_batch_is_divided_too(accelerate: ModuleType) -> None:
    """accelerate's rule, for every loss: it divides by gradient_accumulation_steps whatever is left."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, _ = train(accelerator, network(), mixup(), loader(3 * BATCH))
    check_close(model, by_hand([2, 1], divisor=2))


class Collate:
    """A collate function that mixes."""

    def __init__(self) -> None:
        self.mix = mixup()

    def __call__(self, items: list[Any]) -> Any:
        return self.mix(*default_collate(items))


def test_targets_of_a_collate_function_cross_a_prepared_loader(accelerate: ModuleType) -> None:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, _ = train(accelerator, network(), None, loader(collate=Collate()))
    check_close(model, by_hand([2, 2], divisor=2))
    batch = next(iter(loader(collate=Collate())))
    moved = accelerate.utils.send_to_device({"pair": batch}, torch.device("meta"), non_blocking=True)["pair"][1]
    assert isinstance(moved, icm.MixedTarget) and moved.device.type == moved.lam.device.type == "meta"


def test_bf16(accelerate: ModuleType) -> None:
    """A prepared model returns float32 logits, so the loss is formed from those."""
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    model, logits = train(accelerator, network(), mixup(), loader())
    assert logits.dtype == torch.float32 and torch.equal(logits, logits.bfloat16().float())
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_checkpoints_hold_the_state_of_the_mixing(accelerate: ModuleType, tmp_path: Path) -> None:
    accelerator, mix = accelerate.Accelerator(cpu=True), mixup()
    accelerator.register_for_checkpointing(mix)
    batch = next(iter(loader()))
    mix(*batch)
    accelerator.save_state(str(tmp_path))
    images, target = mix(*batch)
    accelerator.load_state(str(tmp_path))
    again, same = mix(*batch)
    assert torch.equal(images, again) and torch.equal(target.lam, same.lam)
    assert not torch.equal(mix(*batch)[0], again)


def samples_of_two(accelerate: ModuleType, count: int, drop_last: bool = False, **options: Any) -> list[Any]:
    """The batches of two that each of two processes gets of samples 0, 1, ..."""
    return [
        [
            batch.tolist()
            for batch in accelerate.data_loader.prepare_data_loader(
                DataLoader(torch.arange(count), batch_size=2, drop_last=drop_last),
                num_processes=2,
                process_index=process,
                put_on_device=False,
                **options,
            )
        ]
        for process in (0, 1)
    ]


def test_even_batches_repeat_samples(accelerate: ModuleType) -> None:
    """The first ones of the epoch fill the last batch: twice in one batch only if the set is smaller than that.

    There the two copies would be negatives of each other; an image counted twice in an epoch does no more harm than
    in any loss.
    """
    accelerate.Accelerator(cpu=True)
    assert samples_of_two(accelerate, 5) == [[[0, 1], [4, 0]], [[2, 3], [1, 2]]]
    assert samples_of_two(accelerate, 3) == [[[0, 1]], [[2, 0]]]
    assert samples_of_two(accelerate, 3, even_batches=False) == [[[0, 1]], [[2]]]
    assert samples_of_two(accelerate, 5, drop_last=True) == [[[0, 1]], [[2, 3]]]
