"""The modules of test_lightning.py, apart from it because importing Lightning takes seconds."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import icm_fast as icm
from icm_fast.integrations.lightning import MixupMixin

C, BATCH = 5, 8


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, C))


def mixup(seed: int = 0) -> icm.Mixup:
    return icm.Mixup(mixup_alpha=1.0, cutmix_alpha=1.0, generator=torch.Generator().manual_seed(seed))


def samples(count: int = 3 * BATCH) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.rand(count, 3, 4, 4, generator=generator), torch.randint(C, (count,), generator=generator)
    )


def loader(collate: Any = None) -> DataLoader:
    return DataLoader(samples(), BATCH, collate_fn=collate)


class Plain(LightningModule):
    """Records what each phase gets."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.criterion, self.mixing = network(), icm.ICMLoss(), mixup()
        self.seen: dict[str, list[Any]] = {}

    def loss(self, images: Tensor, target: Any) -> Tensor:
        stage = "none" if self._trainer is None else str(self.trainer.state.stage.value)
        self.seen.setdefault(stage, []).append(target)
        return self.criterion(self.model(images), target)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(*batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("validation_loss", self.loss(*batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.loss(*batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.loss(*batch)
        return batch[0]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Mixed(MixupMixin, Plain):
    """The mixin."""


class Recipe(Plain):
    """No mixin: the docstring's training_step."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, target = self.mixing(*batch)
        return self.loss(images, target)


def trainer(**options: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Trainer(**{"accelerator": "cpu", "devices": 1, "enable_checkpointing": False, **quiet, **options})


class OwnDraws(Mixed):
    """In each process other ones, left in a file."""

    def __init__(self, folder: str, resumed: bool) -> None:
        super().__init__()
        self.file, self.resumed = f"{folder}/{'resumed' if resumed else 'whole'}", resumed

    def on_train_start(self) -> None:
        if not self.resumed:
            self.mixing.generator.manual_seed(self.global_rank)

    def on_train_end(self) -> None:
        torch.save([float(target.lam) for target in self.seen["train"]], f"{self.file}-{self.global_rank}.pt")


def fit_two_processes(folder: str, resumed: bool) -> None:
    """Four epochs with a checkpoint after each, or the last two of them from there."""
    keep = ModelCheckpoint(dirpath=None if resumed else folder, filename="{epoch}", save_top_k=-1)
    pair = trainer(
        devices=2,
        strategy="ddp_fork",
        max_epochs=4,
        default_root_dir=folder,
        enable_checkpointing=True,
        callbacks=[keep],
    )
    pair.fit(OwnDraws(folder, resumed), loader(), ckpt_path=f"{folder}/epoch=1.ckpt" if resumed else None)
