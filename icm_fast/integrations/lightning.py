"""Lightning: mixing between the transfer of a batch and `training_step`.

`MixupMixin` serves modules of `lightning` and of `pytorch_lightning`; it imports neither. Without it, mix in
`training_step`, which runs in training alone::

    def training_step(self, batch, batch_idx):
        images, target = self.mixing(*batch)
        return self.criterion(self(images), target)

A callback cannot do it: what `on_train_batch_start` returns does not replace the batch.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from ._batch import Mixing, check_hard, has_field, mix_fields

__all__ = ["MixupMixin"]

_WHERE = "MixupMixin"
_STATE = "icm_fast.mixing"
_HOOK = "on_after_batch_transfer"


class MixupMixin:
    """Mixes the training batches of a LightningModule on their device; other batches keep their integer labels.

    Put it before LightningModule, and set `self.mixing`. `training_step` gets the batch with mixed images and their
    `MixedTarget` (lam is the weight of the sample ITSELF), and everything else in the batch as it was. Batches of
    validation, the sanity check, test and predict pass as they are.

    Attributes:
        mixing: `Mixup`, or any callable (images, labels) -> (images, target).
        mixed_fields: where images and labels are in a batch: positions of a tuple or list, or keys of a dictionary.
            Default: (0, 1).

    Raises:
        TypeError: a class with LightningModule before MixupMixin; no `self.mixing`.
        ValueError: a batch that lacks these fields; one that is mixed already, by a collate function; a MixedTarget in
            evaluation; where batches would go past this hook: a datamodule that overrides it, a training_step that
            takes a dataloader_iter.
        RuntimeError: an override of on_after_batch_transfer that does not call super().

    Hazards:
        The loss is not a sum over samples. `Trainer(accumulate_grad_batches=n)` averages the losses of n small batches,
        each image compared with its own batch only: not the loss of the large batch.

        Checkpoints hold the state of the mixing, of every process: a resumed run draws what an uninterrupted one would
        if `mixing` has a generator of its own. Lightning does not keep the state of torch's global generators.

        `self.log(..., on_epoch=True)` guesses the batch size from the batch and warns of a MixedTarget; pass
        `batch_size=len(target)`.

        A target that a collate function mixed crosses Lightning's transfer, but not the conversion of a "*-true"
        precision, which refuses frozen dataclasses; mix here instead.

    Example:
        >>> import icm_fast as icm
        >>> from lightning.pytorch import LightningModule, Trainer
        >>> class Net(MixupMixin, LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.model, self.criterion = torch.nn.Linear(4, 3), icm.ICMLoss()
        ...         self.mixing = icm.Mixup(mixup_alpha=0.2, generator=torch.Generator().manual_seed(0))
        ...     def training_step(self, batch, batch_idx):
        ...         images, target = batch                             # target: MixedTarget
        ...         return self.criterion(self.model(images), target)
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
        >>> data = torch.utils.data.TensorDataset(torch.rand(8, 4), torch.randint(3, (8,)))
        >>> loader = torch.utils.data.DataLoader(data, batch_size=4)
        >>> quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        >>> Trainer(fast_dev_run=True, accelerator="cpu", **quiet).fit(Net(), loader)
    """

    mixing: Mixing  # no default here: it would hide a mixing that is an nn.Module
    mixed_fields: tuple[Any, Any] = (0, 1)
    _has_mixed = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "transfer_batch_to_device") and not hasattr(super(), _HOOK):
            raise TypeError(
                f"{_WHERE}: LightningModule comes before MixupMixin, whose hooks would not be called; write "
                f"class {cls.__name__}(MixupMixin, LightningModule)"
            )

    def on_fit_start(self) -> None:
        """Refuse a set-up in which batches would pass unmixed."""
        super().on_fit_start()  # type: ignore[misc]
        self._require_mixing()
        if "dataloader_iter" in inspect.signature(self.training_step).parameters:  # type: ignore[attr-defined]
            raise ValueError(f"{_WHERE}: training_step(dataloader_iter) gets batches past every hook; take a batch")
        datamodule = type(self.trainer.datamodule)  # type: ignore[attr-defined]
        owner = next((base for base in datamodule.__mro__ if _HOOK in vars(base)), None)
        if owner is not None and owner.__name__ != "DataHooks":
            raise ValueError(
                f"{_WHERE}: {owner.__name__}.{_HOOK} takes the place of the module's, so nothing would be mixed; "
                "move its work to the module's, which calls super(), or mix in training_step instead"
            )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Mix a training batch, after what further bases do to it."""
        batch = super().on_after_batch_transfer(batch, dataloader_idx)  # type: ignore[misc]
        trainer = _trainer_of(self)
        if trainer is not None and trainer.training:
            self._has_mixed = True
            fix = 'name them by mixed_fields = ("image", "label"), or by positions'
            return mix_fields(_WHERE, self._require_mixing(), batch, self.mixed_fields, fix)
        if has_field(batch, self.mixed_fields[1]):
            fix = "give the evaluation loaders a collate function that does not mix; of one-hot labels take argmax(1)"
            check_hard(_WHERE, batch[self.mixed_fields[1]], fix)
        return batch

    def on_train_batch_start(self, *arguments: Any, **options: Any) -> Any:
        """Refuse a batch that an override kept from being mixed."""
        if not self._has_mixed:
            raise RuntimeError(
                f"{_WHERE}: nothing was mixed: {type(self).__name__}.{_HOOK} does not call super().{_HOOK}(batch, "
                "dataloader_idx)"
            )
        return super().on_train_batch_start(*arguments, **options)  # type: ignore[misc]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the state of the mixing of every process, which all call this."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        trainer, save = _trainer_of(self), getattr(getattr(self, "mixing", None), "state_dict", None)
        if trainer is None or save is None:
            return
        states = [save()]
        if trainer.world_size > 1:
            states *= trainer.world_size
            torch.distributed.all_gather_object(states, save())
        checkpoint[_STATE] = states

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the draws when a fit is resumed; not to evaluate, nor in processes that did not exist before."""
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        trainer, load = _trainer_of(self), getattr(getattr(self, "mixing", None), "load_state_dict", None)
        if trainer is None or trainer.state.fn != "fit" or load is None:
            return
        states = checkpoint.get(_STATE, [])
        if trainer.global_rank < len(states):
            load(states[trainer.global_rank])

    def _require_mixing(self) -> Mixing:
        mixing: Mixing | None = getattr(self, "mixing", None)
        if mixing is None:
            raise TypeError(f"{_WHERE}: set self.mixing = icm_fast.Mixup(...) in {type(self).__name__}.__init__")
        return mixing


def _trainer_of(module: Any) -> Any:
    try:
        return module.trainer
    except RuntimeError:  # Lightning's way to say that there is none
        return None
