"""Lightning's Trainer with MixupMixin, and with the recipe that needs no mixin."""

from __future__ import annotations

import collections
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers import run_python
from peers import peer
from torch import Tensor, nn
from torch.utils.data import default_collate

import icm_fast as icm

pytestmark = [
    pytest.mark.long,
    # Lightning's own: torch names that it still uses, advice about loaders and loggers.
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def nets() -> ModuleType:
    peer("lightning")
    return importlib.import_module("integrations.lightning_nets")


def is_mixed(targets: list[Any]) -> bool:
    kinds = {isinstance(target, icm.MixedTarget) for target in targets}
    assert len(kinds) == 1
    return kinds.pop()


def test_fast_dev_run_passes(nets: ModuleType) -> None:
    module = nets.Mixed()
    run = nets.trainer(fast_dev_run=True)
    run.fit(module, nets.loader(), nets.loader())
    assert is_mixed(module.seen["train"]) and not is_mixed(module.seen["validate"])
    assert run.callback_metrics["validation_loss"] > 0


def test_training_alone_is_mixed(nets: ModuleType) -> None:
    """Sanity check, validation, test and predict have integer labels."""
    module, run = nets.Mixed(), nets.trainer(max_epochs=2, num_sanity_val_steps=1)
    run.fit(module, nets.loader(), nets.loader())
    run.validate(module, nets.loader())
    run.test(module, nets.loader())
    run.predict(module, nets.loader())
    assert {stage: (len(seen), is_mixed(seen)) for stage, seen in module.seen.items()} == {
        "sanity_check": (1, False),
        "train": (6, True),
        "validate": (9, False),
        "test": (3, False),
        "predict": (3, False),
    }
    for target in module.seen["predict"]:
        assert target.dtype == torch.int64


@pytest.mark.parametrize("kind", ["Mixed", "Recipe"])
def test_fit_equals_a_plain_loop_bit_for_bit(nets: ModuleType, kind: str) -> None:
    module = getattr(nets, kind)()
    nets.trainer(max_epochs=2).fit(module, nets.loader(), nets.loader())

    model, mix, criterion = nets.network(), nets.mixup(), icm.ICMLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(2):
        for images, labels in nets.loader():
            mixed, target = mix(images, labels)
            optimizer.zero_grad()
            criterion(model(mixed), target).backward()
            optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(module.model.get_parameter(name), parameter), name
        assert not torch.equal(parameter, nets.network().get_parameter(name)), f"{name} was not trained"


def test_accumulation_is_the_mean_of_small_batches(nets: ModuleType) -> None:
    module = nets.Mixed()
    nets.trainer(max_steps=1, accumulate_grad_batches=2).fit(module, nets.loader())
    model, mix, criterion = nets.network(), nets.mixup(), icm.ICMLoss()
    batches = [mix(*batch) for _, batch in zip(range(2), nets.loader(), strict=False)]
    mean = sum(criterion(model(images), target) for images, target in batches) / 2
    gradients = torch.autograd.grad(mean, list(model.parameters()))
    for mine, start, gradient in zip(module.model.parameters(), model.parameters(), gradients, strict=True):
        torch.testing.assert_close(mine, start - 0.5 * gradient)
    # ... which is not the loss of the large batch.
    images, targets = (list(of) for of in zip(*batches, strict=True))
    whole = icm.MixedTarget(
        *(torch.cat([getattr(target, name) for target in targets]) for name in ("y_a", "y_b")),
        torch.cat([target.lam.expand(len(target)) for target in targets]),
    )
    assert abs(criterion(model(torch.cat(images)), whole) - mean) > 0.5


def test_bf16_mixed(nets: ModuleType) -> None:
    dtypes = []

    class Looks(nets.Mixed):
        def loss(self, images: Tensor, target: Any) -> Tensor:
            loss = super().loss(images, target)
            dtypes.append((self.model(images).dtype, loss.dtype))
            return loss

    module = Looks()
    nets.trainer(max_epochs=1, precision="bf16-mixed").fit(module, nets.loader())
    assert is_mixed(module.seen["train"]) and set(dtypes) == {(torch.bfloat16, torch.float32)}


Pair = collections.namedtuple("Pair", ["image", "label", "name"])


@pytest.mark.parametrize("kind", ["dict", "list", "tuple", "namedtuple"])
def test_the_rest_of_a_batch_and_its_type_stay(nets: ModuleType, kind: str) -> None:
    def collate(items: list[Any]) -> Any:
        images, labels = default_collate(items)
        names = [f"image {i}" for i in range(len(labels))]
        values = (images, labels, names)
        return {"dict": lambda *v: dict(zip(Pair._fields, v, strict=True)), "namedtuple": Pair}.get(
            kind, lambda *v: {"list": list, "tuple": tuple}[kind](v)
        )(*values)

    taken = []

    class Net(nets.Mixed):
        mixed_fields = ("image", "label") if kind == "dict" else (0, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            taken.append(batch)
            images, target, _ = batch.values() if kind == "dict" else batch
            return self.loss(images, target)

    module = Net()
    nets.trainer(fast_dev_run=True).fit(module, nets.loader(collate))
    expected, _ = nets.mixup()(*next(iter(nets.loader())))
    assert type(taken[0]) is {"dict": dict, "list": list, "tuple": tuple, "namedtuple": Pair}[kind]
    fields = list(taken[0].values() if kind == "dict" else taken[0])
    assert torch.equal(fields[0], expected) and fields[2][1] == "image 1" and is_mixed(module.seen["train"])


class Collate:
    """A collate function that mixes."""

    def __init__(self, mix: icm.Mixup) -> None:
        self.mix = mix

    def __call__(self, items: list[Any]) -> Any:
        return self.mix(*default_collate(items))


def test_a_target_of_the_collate_function_is_moved(nets: ModuleType) -> None:
    module = nets.Plain()
    nets.trainer(fast_dev_run=True, precision="bf16-mixed").fit(module, nets.loader(Collate(nets.mixup())))
    assert is_mixed(module.seen["train"])
    move_data_to_device = peer("lightning.fabric.utilities").move_data_to_device
    images, target = next(iter(nets.loader(Collate(nets.mixup()))))
    moved = move_data_to_device({"a": [images, target]}, torch.device("meta"))["a"][1]
    assert isinstance(moved, icm.MixedTarget) and moved.device.type == moved.lam.device.type == "meta"


def test_true_precision_takes_targets_of_the_mixin_alone(nets: ModuleType) -> None:
    """Lightning's limit, which the docstring states: it converts batches before the transfer, dataclasses too."""
    module = nets.Mixed()
    nets.trainer(fast_dev_run=True, precision="bf16-true").fit(module, nets.loader())
    assert is_mixed(module.seen["train"])
    with pytest.raises(ValueError, match="frozen dataclass"):
        nets.trainer(fast_dev_run=True, precision="bf16-true").fit(nets.Plain(), nets.loader(Collate(nets.mixup())))


def lams(module: Any) -> list[float]:
    return [float(target.lam) for target in module.seen["train"]]


def test_a_resumed_run_draws_what_an_uninterrupted_one_would(nets: ModuleType, tmp_path: Path) -> None:
    whole, first, second, forgetful = nets.Mixed(), nets.Mixed(), nets.Mixed(), nets.Mixed()
    nets.trainer(max_epochs=4).fit(whole, nets.loader())
    interrupted = nets.trainer(max_epochs=2)
    interrupted.fit(first, nets.loader())
    interrupted.save_checkpoint(tmp_path / "half.ckpt")
    nets.trainer(max_epochs=4).fit(second, nets.loader(), ckpt_path=tmp_path / "half.ckpt")
    assert len(lams(second)) == 6 and lams(first) + lams(second) == lams(whole)
    for mine, theirs in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    forgetful.on_load_checkpoint = lambda checkpoint: None
    nets.trainer(max_epochs=4).fit(forgetful, nets.loader(), ckpt_path=tmp_path / "half.ckpt")
    assert lams(forgetful) == lams(first), "the check above would not notice"


def test_loading_to_evaluate_leaves_the_draws_alone(nets: ModuleType, tmp_path: Path) -> None:
    run, module = nets.trainer(max_epochs=1), nets.Mixed()
    run.fit(module, nets.loader())
    run.save_checkpoint(tmp_path / "end.ckpt")
    before = module.mixing.generator.get_state()
    module.mixing(*next(iter(nets.loader())))
    advanced = module.mixing.generator.get_state()
    run.test(module, nets.loader(), ckpt_path=tmp_path / "end.ckpt")
    assert torch.equal(module.mixing.generator.get_state(), advanced) and not torch.equal(before, advanced)
    other = nets.Mixed.load_from_checkpoint(tmp_path / "end.ckpt", map_location="cpu")
    assert torch.equal(other.mixing.generator.get_state(), nets.mixup().generator.get_state())


def test_every_process_resumes_its_own_draws(nets: ModuleType, tmp_path: Path) -> None:
    run_python(
        "import sys; sys.path.insert(0, 'tests')\n"
        "from peers import peer; peer('lightning')\n"
        "from integrations.lightning_nets import fit_two_processes\n"
        f"for resumed in (False, True): fit_two_processes({str(tmp_path)!r}, resumed)\n"
    )
    drawn = {
        (name, rank): torch.load(tmp_path / f"{name}-{rank}.pt") for name in ("whole", "resumed") for rank in (0, 1)
    }
    for rank in (0, 1):
        assert len(drawn["whole", rank]) == 8 and drawn["resumed", rank] == drawn["whole", rank][4:]
    assert drawn["whole", 0] != drawn["whole", 1]


def test_mistakes_are_named(nets: ModuleType) -> None:
    lightning = peer("lightning.pytorch")
    mixin = importlib.import_module("icm_fast.integrations.lightning").MixupMixin
    with pytest.raises(TypeError, match=r"class Net\(MixupMixin, LightningModule\)"):
        type("Net", (lightning.LightningModule, mixin), {})

    class Data(lightning.LightningDataModule):
        def train_dataloader(self) -> Any:
            return nets.loader()

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch

    class Iterates(nets.Mixed):
        def training_step(self, dataloader_iter: Any) -> None:
            pass

    class Overrides(nets.Mixed):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch

    def fit(net: Any = nets.Mixed, train: Any = None, validation: Any = None, **options: Any) -> None:
        module = net()
        for name, value in options.items():
            setattr(module, name, value)
        nets.trainer(fast_dev_run=True).fit(module, train or nets.loader(), validation)

    mixes = nets.loader(Collate(nets.mixup()))
    dense = nets.loader(lambda items: (lambda x, y: (x, torch.eye(nets.C)[y]))(*default_collate(items)))
    as_dict = nets.loader(lambda items: dict(zip("xy", default_collate(items), strict=True)))
    alone = nets.loader(lambda items: default_collate(items)[0])
    for error, text, call in (
        (TypeError, r"self.mixing = icm_fast.Mixup", lambda: fit(mixing=None)),
        (ValueError, "mixed before.*Mix in one place", lambda: fit(train=mixes)),
        (TypeError, r"labels.argmax\(1\)", lambda: fit(train=dense)),
        (ValueError, "evaluation needs integer labels.*MixedTarget", lambda: fit(validation=mixes)),
        (ValueError, r"evaluation needs integer labels.*shape \(8, 5\)", lambda: fit(validation=dense)),
        (ValueError, r"keys \['x', 'y'\].*mixed_fields", lambda: fit(train=as_dict)),
        (ValueError, r"a float32 tensor of shape \(8, 3, 4, 4\).*mixed_fields", lambda: fit(train=alone)),
        (ValueError, r"training_step\(dataloader_iter\)", lambda: fit(Iterates)),
        (RuntimeError, r"nothing was mixed: Overrides.on_after_batch_transfer.*super\(\)", lambda: fit(Overrides)),
        (ValueError, "Data.on_after_batch_transfer takes the place", lambda: fit(train=Data())),
    ):
        with pytest.raises(error, match=text):
            call()


def test_an_nn_module_may_mix(nets: ModuleType) -> None:
    """A class attribute would hide it from nn.Module."""

    class Turns(nn.Module):
        def forward(self, images: Tensor, labels: Tensor) -> Any:
            return images, icm.MixedTarget(labels, labels.flip(0), torch.tensor(0.5))

    module = nets.Mixed()
    module.mixing = Turns()
    nets.trainer(fast_dev_run=True).fit(module, nets.loader())
    assert lams(module) == [0.5]


def test_the_package_of_the_other_name(nets: ModuleType) -> None:
    """pytorch_lightning has classes of its own, which the mixin serves too."""
    other = peer("pytorch_lightning")
    mixin, seen = importlib.import_module("icm_fast.integrations.lightning").MixupMixin, []

    class Net(mixin, other.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.mixing = nets.network(), nets.mixup()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            seen.append(batch[1])
            return icm.ICMLoss()(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.5)

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    other.Trainer(fast_dev_run=True, **quiet).fit(Net(), nets.loader())
    assert is_mixed(seen)
