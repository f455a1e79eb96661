"""Mixup and CutMix of batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._validate import check_choice, check_labels, check_number, check_same_device, check_tensor, describe
from ..functional import _mixing
from ..functional.mixup import mix_samples
from ..target import MixedTarget
from .am_mixup import load_generator
from .cutmix import draw_box, draw_box_between
from .remix import RemixRule
from .sampling import PAIRINGS, Draws

_WHERE = "Mixup"
_MODES = ("batch", "elem", "pair")
_TARGETS = ("mixed", "dense")


@dataclasses.dataclass(frozen=True, eq=False)
class _Plan:
    """What to do with a batch. `lam` and `box` are of the images, `label_lam` of the labels."""

    index: Tensor
    lam: Tensor | None
    box: Tensor | None
    label_lam: Tensor


class Mixup:
    """Mixes a batch with itself and says what its labels become; Mixup, CutMix, Remix and RegMixup's pair of batches.

    The names of the arguments are timm's. lam is the weight of the sample ITSELF, its partner weighs 1 - lam. The
    batch may have any size, 1 and odd ones included, and is never modified; the result is new memory.

    Args:
        mixup_alpha: lam ~ Beta(mixup_alpha, mixup_alpha) for mixing by weight; 0: not used.
        cutmix_alpha: likewise for CutMix, which puts a box of the partner's pixels into the sample; 0: not used.
        cutmix_minmax: (least, most) side of the box as a share of the image's, instead of cutmix_alpha.
        prob: of mixing a batch at all. A batch that is left alone has lam = 1 and stays a mixed target.
        switch_prob: of CutMix where both are used.
        mode: "batch": one lam (and one box) for the batch, as in the papers; "elem": for each sample one of its own;
            "pair" (needs pairing="flip"): for each sample and its partner one in common.
        correct_lam: labels get the share of pixels that the clipped box really leaves (always with cutmix_minmax).
        pairing: "perm" a random permutation, "flip" the batch in reverse (timm), "roll" the sample before it
            (torchvision).
        remix: `RemixRule`: labels get a lam of their own, per sample, that favours the rarer class.
        keep_clean: return 2B images, the clean ones in front, and a target with `clean` labels (RegMixup).
        mean, std: one number per channel, for uint8 images, which are normalised in the same pass.
        dtype: floating-point type of the result for uint8 images; default float32.
        target: "mixed" returns a `MixedTarget`; "dense" a float tensor (B, num_classes) like timm's.
        num_classes, label_smoothing: of a dense target. A mixed target is smoothed by the loss.
        generator: of all draws; default: torch's global generator of the images' device. Draws from a generator of
            another device are copied to the images'.
        backend: of the mixing; see `functional.mixup`.

    Attributes:
        mixup_enabled: set to False to have batches pass unmixed (normalised and doubled as the arguments say).

    Raises:
        TypeError, ValueError: arguments out of range, or that contradict each other.

    Draws, in this order and whatever their outcome: partners ("perm"), lam of Mixup, lam and centre (or sides and
    place) of the box, the switch, the gate. What the arguments make superfluous is not drawn.

    Example:
        >>> mix = Mixup(mixup_alpha=0.2, generator=torch.Generator().manual_seed(0))
        >>> images, target = mix(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))
        >>> images.shape, target.lam.shape
        (torch.Size([4, 3, 8, 8]), torch.Size([]))
    """

    def __init__(
        self,
        mixup_alpha: float = 0.2,
        cutmix_alpha: float = 0.0,
        *,
        cutmix_minmax: tuple[float, float] | None = None,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: str = "batch",
        correct_lam: bool = True,
        pairing: str = "perm",
        remix: RemixRule | None = None,
        keep_clean: bool = False,
        mean: Tensor | Sequence[float] | None = None,
        std: Tensor | Sequence[float] | None = None,
        dtype: torch.dtype | None = None,
        target: str = "mixed",
        num_classes: int | None = None,
        label_smoothing: float = 0.0,
        generator: torch.Generator | None = None,
        backend: str | None = None,
    ) -> None:
        self.mixup_alpha = check_number(_WHERE, "mixup_alpha", mixup_alpha, least=0)
        self.cutmix_alpha = check_number(_WHERE, "cutmix_alpha", cutmix_alpha, least=0)
        self.cutmix_minmax = _check_minmax(cutmix_minmax)
        if not (self.mixup_alpha or self._cuts):
            raise ValueError(
                f"{_WHERE}: expected mixup_alpha > 0, cutmix_alpha > 0 or cutmix_minmax; to train without mixing set "
                "mixup_enabled = False or prob=0"
            )
        self.prob = check_number(_WHERE, "prob", prob, least=0, most=1)
        self.switch_prob = check_number(_WHERE, "switch_prob", switch_prob, least=0, most=1)
        check_choice(_WHERE, "mode", mode, _MODES)
        check_choice(_WHERE, "pairing", pairing, PAIRINGS)
        if mode == "pair" and pairing != "flip":
            raise ValueError(
                f'{_WHERE}: mode="pair" needs partners of each other: pass pairing="flip", not {pairing!r}'
            )
        if remix is not None and not isinstance(remix, RemixRule):
            raise TypeError(f"{_WHERE}: expected remix to be a RemixRule, got {describe(remix)}")
        if (mean is None) != (std is None):
            raise ValueError(f"{_WHERE}: expected mean and std together, got only {'std' if mean is None else 'mean'}")
        _check_dense(target, num_classes, label_smoothing, keep_clean)
        self.mode, self.pairing, self.remix = mode, pairing, remix
        self.correct_lam, self.keep_clean = bool(correct_lam), bool(keep_clean)
        self.dtype, self.target, self.num_classes = dtype, target, num_classes
        self.label_smoothing, self.generator, self.backend = label_smoothing, generator, backend
        self.mixup_enabled = True
        self._pixels = None if mean is None or std is None else (_per_channel(mean), _per_channel(std))
        self._pixels_on: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @property
    def _cuts(self) -> bool:
        return self.cutmix_alpha > 0 or self.cutmix_minmax is not None

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Any]:
        """Mixed images, (B, ...) or with keep_clean (2B, ...), and their target.

        Args:
            images: (B, ...) float32, float64, bfloat16 or float16, differentiable, or uint8 with mean and std; for
                CutMix (B, ..., height, width).
            labels: (B,) integers of any width.

        Raises:
            TypeError, ValueError: types, shapes or devices that do not fit.
        """
        images = _mixing.check_samples(_WHERE, images)
        labels = _check_labels(images, labels)
        mean, std = self._pixels_for(images.device)
        dtype = _mixing.check_pixels(_WHERE, images, mean, std, self.dtype if images.dtype == torch.uint8 else None)
        if self._cuts and images.dim() < 3:
            raise ValueError(f"{_WHERE}: CutMix needs images (B, ..., height, width), got {describe(images)}")
        plan = self._draw(images) if self.mixup_enabled else _unmixed(images)
        mixed = mix_samples(
            images,
            plan.index,
            plan.lam,
            plan.box,
            mean=mean,
            std=std,
            keep_clean=self.keep_clean,
            dtype=dtype,
            backend=self.backend,
        )
        return mixed, self._target(labels, plan)

    def _draw(self, images: Tensor) -> _Plan:
        batch_size = images.shape[0]
        draws = Draws(images.device, self.generator)
        n = {"batch": None, "elem": batch_size, "pair": (batch_size + 1) // 2}[self.mode]
        index = draws.partners(self.pairing, batch_size)
        lam, box, label_lam = self._draw_weights(draws, images, n)
        if self.prob < 1:
            gate = draws.uniform() < self.prob
            lam = None if lam is None else torch.where(gate, lam, 1.0)
            label_lam = torch.where(gate, label_lam, 1.0)
            box = None if box is None else torch.where(gate, box, 0)
        if self.mode == "pair":
            each = torch.arange(batch_size, device=images.device)
            each = torch.minimum(each, batch_size - 1 - each)
            lam, box = (None if v is None else v[each] for v in (lam, box))
            label_lam = label_lam[each]
        return _Plan(index, lam, box, label_lam)

    def _draw_weights(self, draws: Draws, images: Tensor, n: int | None) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """lam and box of the images and lam of the labels, one of each or n."""
        lam = draws.lam(self.mixup_alpha, n) if self.mixup_alpha else None
        if not self._cuts:
            assert lam is not None
            return lam, None, lam
        box, share = self._draw_box(draws, images.shape[-2], images.shape[-1], n)
        if lam is None:
            return None, box, share
        cut = draws.uniform(n) < self.switch_prob
        return torch.where(cut, 1.0, lam), torch.where(cut[..., None], box, 0), torch.where(cut, share, lam)

    def _draw_box(self, draws: Draws, height: int, width: int, n: int | None) -> tuple[Tensor, Tensor]:
        if self.cutmix_minmax is not None:
            return draw_box_between(draws, self.cutmix_minmax, height, width, n)
        box, lam, share = draw_box(draws, self.cutmix_alpha, height, width, n)
        return box, share if self.correct_lam else lam

    def _target(self, labels: Tensor, plan: _Plan) -> MixedTarget | Tensor:
        y_b, lam = labels[plan.index], plan.label_lam
        if self.remix is not None:
            lam = self.remix.lam(lam, labels, y_b)
        mixed = MixedTarget(labels, y_b, lam, clean=labels if self.keep_clean else None)
        if self.target == "mixed":
            return mixed
        assert self.num_classes is not None
        rows = mixed.dense(self.num_classes)
        return rows * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes

    def _pixels_for(self, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """mean and std on a device, copied there once."""
        if self._pixels is None:
            return None, None
        if device not in self._pixels_on:
            mean, std = self._pixels
            self._pixels_on[device] = (mean.to(device), std.to(device))
        return self._pixels_on[device]

    def state_dict(self) -> dict[str, Any]:
        """The generator's state; None without one."""
        return {"generator": None if self.generator is None else self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the draws where the state was taken.

        Raises:
            ValueError: a generator's state without a generator, or the reverse.
        """
        load_generator(_WHERE, self.generator, state)

    def __repr__(self) -> str:
        words = [f"mixup_alpha={self.mixup_alpha}", f"cutmix_alpha={self.cutmix_alpha}"]
        words += [] if self.cutmix_minmax is None else [f"cutmix_minmax={self.cutmix_minmax}"]
        words += [f"prob={self.prob}", f"mode={self.mode!r}", f"pairing={self.pairing!r}"]
        words += [f"remix={self.remix}"] if self.remix else []
        return f"Mixup({', '.join(words)}, keep_clean={self.keep_clean})"


def _unmixed(images: Tensor) -> _Plan:
    """Every sample its own partner, weight 1."""
    one = torch.ones((), device=images.device)
    return _Plan(torch.arange(images.shape[0], device=images.device), one, None, one)


def _per_channel(values: Tensor | Sequence[float]) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64).detach().clone()


def _check_minmax(minmax: Any) -> tuple[float, float] | None:
    if minmax is None:
        return None
    if not isinstance(minmax, (tuple, list)) or len(minmax) != 2:
        raise TypeError(f"{_WHERE}: expected cutmix_minmax to be (least, most), got {describe(minmax)}")
    least, most = (check_number(_WHERE, "cutmix_minmax", share, least=0, most=1) for share in minmax)
    if least > most:
        raise ValueError(f"{_WHERE}: expected cutmix_minmax to be (least, most), got ({least}, {most})")
    return least, most


def _check_dense(target: Any, num_classes: Any, label_smoothing: Any, keep_clean: bool) -> None:
    check_choice(_WHERE, "target", target, _TARGETS)
    check_number(_WHERE, "label_smoothing", label_smoothing, least=0, most=1)
    if target == "mixed":
        if label_smoothing != 0 or num_classes is not None:
            raise ValueError(
                f'{_WHERE}: num_classes and label_smoothing go with target="dense"; for a mixed target pass '
                "label_smoothing to the loss"
            )
        return
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f'{_WHERE}: target="dense" needs a positive num_classes, got {describe(num_classes)}')
    if keep_clean:
        raise ValueError(f'{_WHERE}: keep_clean needs target="mixed": a dense target cannot hold the clean labels')


def _check_labels(images: Tensor, labels: Any) -> Tensor:
    check_tensor(_WHERE, "labels", labels)
    if labels.is_floating_point() or labels.dim() == 2:
        raise TypeError(
            f"{_WHERE}: expected integer labels (B,), got {describe(labels)}; pass one-hot labels as labels.argmax(1)"
        )
    labels = check_labels(_WHERE, "labels", labels)
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{_WHERE}: images has {images.shape[0]} samples but labels has {labels.shape[0]}")
    check_same_device(_WHERE, images=images, labels=labels)
    return labels
