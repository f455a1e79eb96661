"""The models of test_transformers.py, apart from it because importing transformers takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments, ViTConfig, ViTForImageClassification

import icm_fast as icm
from icm_fast.integrations.transformers import MixupTrainer

C, BATCH, RATE = 5, 8, 0.5


def samples(count: int = 3 * BATCH) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.rand(count, 3, 8, 8, generator=generator), torch.randint(C, (count,), generator=generator)
    return [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]


def vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=C))


class Net(nn.Module):
    """Of no library, without an argument for labels."""

    def __init__(self, form: str = "tensor") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model, self.form = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, C)), form

    def forward(self, pixel_values: Tensor) -> Any:
        logits = self.model(pixel_values)
        return {"tensor": logits, "tuple": (logits, logits.sum(1)), "dict": {"logits": logits}, "odd": {"y": logits}}[
            self.form
        ]


class Recorded:
    """Mixes, and keeps what came of it."""

    def __init__(self) -> None:
        self.mix, self.batches = icm.Mixup(mixup_alpha=1.0, cutmix_alpha=1.0), []

    def __call__(self, images: Tensor, labels: Tensor) -> Any:
        self.batches.append(self.mix(images, labels))
        return self.batches[-1]


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    plain_sgd = {"optim": "sgd", "learning_rate": RATE, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    quiet = {"use_cpu": True, "report_to": [], "save_strategy": "no", "disable_tqdm": True}
    sizes = {"per_device_train_batch_size": BATCH, "per_device_eval_batch_size": BATCH, "num_train_epochs": 1}
    return TrainingArguments(str(folder), **{**plain_sgd, **quiet, **sizes, **options})


def trainer(folder: Path, model: nn.Module | None = None, kind: type = MixupTrainer, **options: Any) -> MixupTrainer:
    """Options of the arguments are those that MixupTrainer does not have."""
    own = ("mixing", "criterion", "data_collator", "compute_metrics", "compute_loss_func", "image_field", "label_field")
    passed = {name: options.pop(name) for name in own if name in options}
    passed = {"train_dataset": samples(), "eval_dataset": samples(), **passed}
    return kind(model=vit() if model is None else model, args=arguments(folder, **options), **passed)
