"""Hugging Face Trainer for image classification on mixed batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import Trainer

from .._validate import describe
from ..losses import ICMLoss
from ..target import MixedTarget
from ._batch import Mixing, check_hard, get_field, mix_fields

__all__ = ["MixupTrainer"]

_WHERE = "MixupTrainer"
_MISSING = (
    "name the fields by image_field and label_field. Trainer removes what the model's forward does not name, unless "
    "TrainingArguments(remove_unused_columns=False)"
)


class MixupTrainer(Trainer):
    """Trainer that mixes each training batch on its device and computes the loss from the model's logits.

    lam of the targets is the weight of the sample ITSELF. The model never sees the labels, so it computes no loss of
    its own. Evaluation and prediction get their images as they are and integer labels, for which the criteria here are
    plain cross-entropy.

    Args:
        args: of `transformers.Trainer`, as are the other keyword arguments.
        mixing: `Mixup`, or any callable (images, labels) -> (images, target). None, to be said: the collate function
            makes the targets, `MixedTarget` or dense (B, C). As Trainer uses it for evaluation too, it must mix in
            training alone, or a subclass give `get_eval_dataloader` another.
        criterion: a loss (logits, target) -> scalar. Default: `ICMLoss()`. What it trains must be in the model.
        image_field, label_field: keys of images and labels in a batch.

    Raises:
        TypeError: a criterion or mixing that cannot be called, a criterion that knows no MixedTarget.
        ValueError: arguments of which nothing would come (label_smoothing_factor, compute_loss_func), parameters of the
            criterion that no optimizer would get; a batch without images or labels, or mixed twice; mixed labels in
            evaluation.

    Gradient accumulation:
        The loss is the mean of the losses of the micro-batches, each image compared with its own micro-batch only. It
        is not a sum over samples, so `num_items_in_batch`, by which Trainer divides such sums, is not used: the loss
        is divided by the number of micro-batches, the fewer ones at the end of an epoch included.

    Resuming:
        Trainer keeps the state of torch's global generators, from which `Mixup` draws if it has none of its own: then a
        resumed run continues exactly. It does not keep a generator of ours.

    Example:
        >>> import tempfile, torch, icm_fast as icm
        >>> from transformers import TrainingArguments, ViTConfig, ViTForImageClassification
        >>> sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        >>> model = ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=3))
        >>> data = [{"pixel_values": torch.rand(3, 8, 8), "labels": i % 3} for i in range(8)]
        >>> args = TrainingArguments(tempfile.mkdtemp(), max_steps=1, use_cpu=True, report_to=[], disable_tqdm=True,
        ...                          save_strategy="no", logging_strategy="no")
        >>> mixing = icm.Mixup(mixup_alpha=0.2)
        >>> trainer = MixupTrainer(model=model, args=args, train_dataset=data, mixing=mixing, criterion=icm.ICMLoss())
        >>> trainer.train().global_step                                                   # doctest: +ELLIPSIS
        {...
        1
    """

    # transformers 5 asks the one, older versions the other.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *args: Any,
        mixing: Mixing | None,
        criterion: Callable[[Any, Any], Tensor] | None = None,
        image_field: str = "pixel_values",
        label_field: str = "labels",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.mixing, self.criterion = mixing, ICMLoss() if criterion is None else criterion
        self.image_field, self.label_field = image_field, label_field
        self.model_accepts_loss_kwargs = False
        if self.args.label_names is None:  # a model without an argument for labels still is evaluated on them
            self.label_names = [label_field]
        self._check_arguments()
        if isinstance(self.criterion, nn.Module):
            self.criterion.to(self.args.device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of the logits, and with return_outputs the outputs in the form that Trainer expects."""
        if model.training and self.mixing is not None:
            fields = (self.image_field, self.label_field)
            inputs = mix_fields(_WHERE, self.mixing, inputs, fields, _MISSING)
        target = get_field(_WHERE, inputs, self.label_field, _MISSING)
        if not model.training:
            fix = "the data_collator serves evaluation too: leave mixing to MixupTrainer(mixing=...)"
            check_hard(_WHERE, target, fix)
        outputs = model(**{name: value for name, value in inputs.items() if name != self.label_field})
        logits = _logits(outputs)
        loss = self._loss(logits, target)
        if not return_outputs:
            return loss
        # Trainer drops the first of what is not a mapping, taking it for the loss.
        return loss, outputs if isinstance(outputs, Mapping) else {"logits": logits}

    def _loss(self, logits: Tensor, target: Any) -> Tensor:
        try:
            return self.criterion(logits, target)
        except (AttributeError, TypeError) as error:
            if not isinstance(target, MixedTarget) or type(self.criterion).__module__.startswith("icm_fast."):
                raise
            raise TypeError(
                f"{_WHERE}: the criterion, {describe(self.criterion)}, failed on a MixedTarget ({error}); if it does "
                'not know them, pass icm_fast.MixupCrossEntropyLoss(), or Mixup(target="dense", num_classes=...)'
            ) from error

    def _check_arguments(self) -> None:
        for name in ("mixing", "criterion"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(f"{_WHERE}: expected {name} to be callable, got {describe(value)}")
        if self.args.label_smoothing_factor:
            raise ValueError(
                f"{_WHERE}: label_smoothing_factor={self.args.label_smoothing_factor} has no effect here; leave it at "
                "0; icm_fast.MixupCrossEntropyLoss(label_smoothing=...) smooths, an IC loss does not"
            )
        if self.compute_loss_func is not None:
            raise ValueError(f"{_WHERE}: compute_loss_func has no effect here; pass it as criterion(logits, target)")
        trained = {id(parameter) for parameter in self.model.parameters()}
        if isinstance(self.criterion, nn.Module) and any(id(p) not in trained for p in self.criterion.parameters()):
            raise ValueError(
                f"{_WHERE}: the criterion has parameters that the model has not, which no optimizer would get; make "
                "the criterion an attribute of the model too"
            )


def _logits(outputs: Any) -> Tensor:
    """Of a model that was given no labels: they come first, or under their name."""
    if isinstance(outputs, Mapping):
        if "logits" not in outputs:
            raise ValueError(f"{_WHERE}: expected outputs of the model with 'logits', got keys {list(outputs)}")
        logits: Tensor = outputs["logits"]
        return logits
    return outputs[0] if isinstance(outputs, (tuple, list)) else outputs
