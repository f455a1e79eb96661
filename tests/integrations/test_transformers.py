"""Hugging Face's Trainer as MixupTrainer: the gradient by hand, accumulation, evaluation, resuming, mistakes."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peers import peer
from torch import Tensor, nn
from torch.utils.data import default_collate

import icm_fast as icm

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def nets() -> ModuleType:
    for name in ("transformers", "accelerate"):
        peer(name)
    return importlib.import_module("integrations.trainer_nets")


def step_by_hand(model: nn.Module, batches: list[Any], rate: float) -> None:
    """One step of SGD along the mean of the micro-batches' gradients."""
    criterion = icm.ICMLoss()
    mean = sum(criterion(model(pixel_values=images).logits, target) for images, target in batches) / len(batches)
    with torch.no_grad():
        gradients = torch.autograd.grad(mean, list(model.parameters()), allow_unused=True)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            if gradient is not None:
                parameter -= rate * gradient


def largest_difference(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((mine - theirs).abs().max()) for mine, theirs in pairs)


def test_accumulated_gradient_is_the_mean_of_the_micro_batches(nets: ModuleType, tmp_path: Path) -> None:
    """Three micro-batches in steps of two: the second step has one, and is divided by one."""
    mixing = nets.Recorded()
    trainer = nets.trainer(tmp_path, mixing=mixing, gradient_accumulation_steps=2)
    by_hand = copy.deepcopy(trainer.model)
    trainer.train()
    assert trainer.state.global_step == 2 and len(mixing.batches) == 3
    step_by_hand(by_hand, mixing.batches[:2], nets.RATE)
    step_by_hand(by_hand, mixing.batches[2:], nets.RATE)
    assert largest_difference(trainer.model, by_hand) < 1e-5 < largest_difference(trainer.model, nets.vit())


def test_trainers_own_scaling_would_be_wrong(nets: ModuleType, tmp_path: Path) -> None:
    """Negative control: without our two settings Trainer takes the loss for one divided by num_items_in_batch."""

    class Unscaled(importlib.import_module("icm_fast.integrations.transformers").MixupTrainer):
        loss_is_scaled_for_ga = None

    mixing = nets.Recorded()
    trainer = nets.trainer(tmp_path, kind=Unscaled, mixing=mixing, gradient_accumulation_steps=2, max_steps=1)
    trainer.model_accepts_loss_kwargs = True
    by_hand, doubled = copy.deepcopy(trainer.model), copy.deepcopy(trainer.model)
    trainer.train()
    step_by_hand(by_hand, mixing.batches, nets.RATE)
    step_by_hand(doubled, mixing.batches, 2 * nets.RATE)
    assert largest_difference(trainer.model, doubled) < 1e-5 < largest_difference(trainer.model, by_hand)


def test_evaluation_and_prediction_use_integer_labels(nets: ModuleType, tmp_path: Path) -> None:
    mixing, seen = nets.Recorded(), []
    criterion = icm.ICMLoss()
    criterion.register_forward_pre_hook(lambda module, given: seen.append(given[1]))

    def accuracy(outcome: Any) -> dict[str, float]:
        return {"accuracy": float((outcome.predictions.argmax(1) == outcome.label_ids).mean())}

    trainer = nets.trainer(
        tmp_path, mixing=mixing, criterion=criterion, compute_metrics=accuracy, eval_strategy="epoch"
    )
    trainer.train()
    assert [isinstance(target, icm.MixedTarget) for target in seen] == 3 * [True] + 3 * [False]
    images, labels = (default_collate([item[name] for item in nets.samples()]) for name in ("pixel_values", "labels"))
    with torch.no_grad():
        logits = trainer.model(pixel_values=images).logits
    for metrics in (trainer.state.log_history[-2], trainer.evaluate()):
        assert metrics["eval_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
        assert metrics["eval_accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    outcome = trainer.predict(nets.samples())
    torch.testing.assert_close(torch.tensor(outcome.predictions), logits)
    assert outcome.label_ids.tolist() == labels.tolist() and len(mixing.batches) == 3


@pytest.mark.parametrize("form", ["tensor", "tuple", "dict"])
def test_models_of_no_library_train_and_predict(nets: ModuleType, tmp_path: Path, form: str) -> None:
    trainer = nets.trainer(tmp_path, nets.Net(form), mixing=nets.Recorded())
    trainer.train()
    assert largest_difference(trainer.model, nets.Net()) > 0
    outcome = trainer.predict(nets.samples())
    images = torch.stack([item["pixel_values"] for item in nets.samples()])
    torch.testing.assert_close(torch.tensor(outcome.predictions), trainer.model.model(images).detach())
    assert outcome.metrics["test_loss"] > 0
    unlabelled = trainer.predict([{"pixel_values": item["pixel_values"]} for item in nets.samples()])
    assert unlabelled.label_ids is None and "test_loss" not in unlabelled.metrics


def test_regmixup_and_bf16(nets: ModuleType, tmp_path: Path) -> None:
    """Twice the images, and logits that accelerate returns in float32."""
    kinds = []
    criterion = icm.RegMixupLoss()
    criterion.register_forward_pre_hook(lambda module, given: kinds.append((given[0].dtype, tuple(given[0].shape))))
    mixing = icm.Mixup(mixup_alpha=20, keep_clean=True)
    trainer = nets.trainer(tmp_path, mixing=mixing, criterion=criterion, bf16=True, max_steps=1)
    trainer.train()
    assert kinds == [(torch.float32, (2 * nets.BATCH, nets.C))]


class Collate:
    """A collate function that mixes; its targets are MixedTarget or dense."""

    def __init__(self, **options: Any) -> None:
        self.mix = icm.Mixup(mixup_alpha=1.0, **options)

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        batch = default_collate(items)
        images, target = self.mix(batch["pixel_values"], batch["labels"])
        return {"pixel_values": images, "labels": target}


@pytest.mark.parametrize("dense", [False, True], ids=["mixed", "dense"])
def test_collate_functions_that_mix(nets: ModuleType, tmp_path: Path, dense: bool) -> None:
    seen = []
    criterion = icm.ICMLoss()
    criterion.register_forward_pre_hook(lambda module, given: seen.append(given[1]))
    collate = Collate(target="dense", num_classes=nets.C) if dense else Collate()
    trainer = nets.trainer(tmp_path, mixing=None, data_collator=collate, criterion=criterion)
    assert torch.isfinite(torch.tensor(trainer.train().training_loss))
    assert all(isinstance(target, Tensor if dense else icm.MixedTarget) for target in seen) and len(seen) == 3
    with pytest.raises(ValueError, match=r"evaluation needs integer labels.*MixupTrainer\(mixing=...\)"):
        trainer.evaluate()


def test_a_resumed_run_continues_exactly(nets: ModuleType, tmp_path: Path) -> None:
    """Mixup draws from torch's global generator, whose state Trainer keeps."""
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole, rest = nets.Recorded(), nets.Recorded()
    # Not the ViT: transformers 5.23 saves its layers under names that resuming does not find.
    first = nets.trainer(tmp_path, nets.Net(), mixing=whole, **options)
    first.train()
    second = nets.trainer(tmp_path, nets.Net(), mixing=rest, **options)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert len(whole.batches) == 6 and len(rest.batches) == 3
    for (images, target), (again, same) in zip(whole.batches[3:], rest.batches, strict=True):
        assert torch.equal(images, again) and torch.equal(target.lam, same.lam)
    assert largest_difference(first.model, second.model) == 0


def test_a_learned_scale_is_trained(nets: ModuleType, tmp_path: Path) -> None:
    model = nets.vit()
    model.criterion = icm.ICMLoss(logit_scale=nn.Parameter(torch.tensor(1.0)))
    nets.trainer(tmp_path, model, mixing=icm.Mixup(), criterion=model.criterion, max_steps=1).train()
    assert model.criterion.logit_scale != 1


def test_mistakes_are_named(nets: ModuleType, tmp_path: Path) -> None:
    def train(model: nn.Module | None = None, **options: Any) -> None:
        nets.trainer(tmp_path, model, **{"mixing": icm.Mixup(), **options}).train()

    learned = icm.ICMLoss(logit_scale=nn.Parameter(torch.tensor(1.0)))
    for error, text, call in (
        (ValueError, r"MixupCrossEntropyLoss\(label_smoothing", lambda: train(label_smoothing_factor=0.1)),
        (ValueError, "compute_loss_func.*pass it as criterion", lambda: train(compute_loss_func=lambda *_, **__: None)),
        (TypeError, "expected criterion to be callable, got 'icm'", lambda: train(criterion="icm")),
        (TypeError, "expected mixing to be callable, got 0.2", lambda: train(mixing=0.2)),
        (
            TypeError,
            "CrossEntropyLoss, failed on a MixedTarget.*MixupCrossEnt",
            lambda: train(criterion=nn.CrossEntropyLoss()),
        ),
        (TypeError, 'failed on a MixedTarget.*target="dense"', lambda: train(criterion=F.cross_entropy)),
        (ValueError, "parameters that the model has not", lambda: train(criterion=learned)),
        (ValueError, "mixed before.*Mix in one place", lambda: train(data_collator=Collate())),
        (TypeError, r"labels.argmax\(1\)", lambda: train(data_collator=Collate(target="dense", num_classes=nets.C))),
        (ValueError, r"\['image'\], got a dict with keys.*remove_unused_columns", lambda: train(image_field="image")),
        (ValueError, r"\['label'\], got a dict with keys.*label_field", lambda: train(label_field="label")),
        (ValueError, r"'logits', got keys \['y'\]", lambda: train(nets.Net("odd"))),
    ):
        with pytest.raises(error, match=text):
            call()
