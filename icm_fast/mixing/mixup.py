"""Mixup and CutMix of batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._validate import check_choice, check_number, describe
from ..functional import _mixing
from ..functional.mixup import mix_samples
from ..target import MixedTarget
from .cutmix import draw_box, draw_box_between
from .labels import check_labels, check_target, dense_rows
from .remix import RemixRule
from .sampling import PAIRINGS, Draws, Source

_WHERE = "Mixup"
_MODES = ("batch", "elem", "pair")


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
            "pair" (pairing="flip"): for each sample and its partner one in common.
        correct_lam: labels get the share of pixels that the clipped box really leaves (always with cutmix_minmax).
        pairing: "perm" a random permutation, "flip" the batch in reverse (timm), "roll" the sample before it
            (torchvision). Default: "perm", with mode="pair" "flip".
        remix: `RemixRule`: labels get a lam of their own, per sample, that favours the rarer class.
        keep_clean: return 2B images, the clean ones in front, and a target with `clean` labels (RegMixup).
        mean, std: one number per channel, in units of 0 to 1, for uint8 images, which are normalised in the same pass.
        dtype: floating-point type of the result for uint8 images; default float32.
        target: "mixed" returns a `MixedTarget`; "dense" a float tensor (B, num_classes) like timm's. Default: "mixed",
            with label_smoothing "dense".
        num_classes: needed for a dense target, of no use for a mixed one.
        label_smoothing: of a dense target. The papers use none, so above 0 it is said in the log what it does to an IC
            loss. A mixed target is smoothed by `MixupCrossEntropyLoss`.
        generator: of all draws; default: torch's global generator of the images' device. Draws from a generator of
            another device are copied to the images'. Ranks of torch.distributed and DataLoader workers that begin with
            the same generator draw differently. The global one is the trainer's to seed: DataLoader does so for each
            worker, but ranks that are seeded alike draw the same lam and partners.
        rank: which rank this process draws as, with a generator; default: its own. Ranks that hold the same samples,
            as in tensor parallelism, need the same number; rank=0 on all has all of them draw alike.
        backend: of the mixing; see `functional.mixup`.

    Attributes:
        mixup_enabled: set to False for plain training from here on: images pass unmixed (uint8 normalised, nothing
            doubled) with their integer labels, for which every loss here is cross-entropy; only target="dense" keeps
            them dense, for losses that want that: an IC loss of dense labels stays one. A batch that `prob` leaves
            alone stays a mixed target. Worker processes that persist do not see the change.

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
        pairing: str | None = None,
        remix: RemixRule | None = None,
        keep_clean: bool = False,
        mean: Tensor | Sequence[float] | None = None,
        std: Tensor | Sequence[float] | None = None,
        dtype: torch.dtype | None = None,
        target: str | None = None,
        num_classes: int | None = None,
        label_smoothing: float = 0.0,
        generator: torch.Generator | None = None,
        rank: int | None = None,
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
        if mode == "half":
            raise ValueError(
                f'{_WHERE}: mode="half", which drops half of every batch, is not there; use mode="elem" and a loader '
                "with half the batch_size"
            )
        check_choice(_WHERE, "mode", mode, _MODES)
        if pairing is None:
            pairing = "flip" if mode == "pair" else "perm"
        check_choice(_WHERE, "pairing", pairing, PAIRINGS)
        if mode == "pair" and pairing != "flip":
            raise ValueError(
                f'{_WHERE}: mode="pair" needs partners of each other: pass pairing="flip", not {pairing!r}'
            )
        if remix is not None and not isinstance(remix, RemixRule):
            raise TypeError(f"{_WHERE}: expected remix to be a RemixRule, got {describe(remix)}")
        if (mean is None) != (std is None):
            raise ValueError(f"{_WHERE}: expected mean and std together, got only {'std' if mean is None else 'mean'}")
        self._is_said_dense = target == "dense"
        target = check_target(target, num_classes, label_smoothing, keep_clean)
        self.mode, self.pairing, self.remix = mode, pairing, remix
        self.correct_lam, self.keep_clean = bool(correct_lam), bool(keep_clean)
        self.dtype, self.target, self.num_classes = dtype, target, num_classes
        self.label_smoothing, self.backend = label_smoothing, backend
        self._source = Source(_WHERE, generator, rank)
        self.mixup_enabled = True
        self._pixels = None if mean is None or std is None else (_per_channel("mean", mean), _per_channel("std", std))
        self._pixels_on: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @property
    def generator(self) -> torch.Generator | None:
        """As given."""
        return self._source.generator

    @property
    def _cuts(self) -> bool:
        return self.cutmix_alpha > 0 or self.cutmix_minmax is not None

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Any]:
        """Mixed images and their target.

        Args:
            images: (B, ...) float32, float64, bfloat16 or float16, differentiable, or uint8 with mean and std; for
                CutMix (B, ..., height, width).
            labels: (B,) integers of any width.

        Returns:
            images (B, ...) or with keep_clean (2B, ...); a `MixedTarget`, dense rows, or while mixup_enabled is False
            integer labels.

        Raises:
            TypeError, ValueError: types, shapes or devices that do not fit.
        """
        images = _mixing.check_samples(_WHERE, images)
        labels = check_labels(images, labels)
        mean, std = self._pixels_for(images.device)
        dtype = _mixing.check_pixels(_WHERE, images, mean, std, self.dtype if images.dtype == torch.uint8 else None)
        if self._cuts and images.dim() < 3:
            raise ValueError(f"{_WHERE}: CutMix needs images (B, ..., height, width), got {describe(images)}")
        plan = self._draw(images) if self.mixup_enabled else None
        index, lam, box = _unmixed(images) if plan is None else (plan.index, plan.lam, plan.box)
        mixed = mix_samples(
            images,
            index,
            lam,
            box,
            mean=mean,
            std=std,
            keep_clean=self.keep_clean and plan is not None,
            dtype=dtype,
            backend=self.backend,
        )
        return mixed, self._target(labels, plan)

    def _draw(self, images: Tensor) -> _Plan:
        batch_size = images.shape[0]
        draws = Draws(images.device, self._source.here())
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

    def _target(self, labels: Tensor, plan: _Plan | None) -> MixedTarget | Tensor:
        """Of a plan, or of labels that are not mixed."""
        if plan is None:
            if not self._is_said_dense:
                return labels
            mixed = MixedTarget(labels, labels, torch.ones((), device=labels.device))
        else:
            y_b, lam = labels[plan.index], plan.label_lam
            if self.remix is not None:
                lam = self.remix.lam(lam, labels, y_b)
            mixed = MixedTarget(labels, y_b, lam, clean=labels if self.keep_clean else None)
            if self.target == "mixed":
                return mixed
        assert self.num_classes is not None
        return dense_rows(mixed, self.num_classes, self.label_smoothing)

    def _pixels_for(self, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """mean and std on a device, copied there once."""
        if self._pixels is None:
            return None, None
        if device not in self._pixels_on:
            mean, std = self._pixels
            self._pixels_on[device] = (mean.to(device), std.to(device))
        return self._pixels_on[device]

    def state_dict(self) -> dict[str, Any]:
        """The generator's state, None without one, and the rank."""
        return self._source.state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the draws where the state was taken; with that of another rank, from there as this rank.

        Raises:
            ValueError: a generator's state without a generator, or the reverse.
        """
        self._source.load(state)

    def __repr__(self) -> str:
        words = [f"mixup_alpha={self.mixup_alpha}", f"cutmix_alpha={self.cutmix_alpha}"]
        words += [] if self.cutmix_minmax is None else [f"cutmix_minmax={self.cutmix_minmax}"]
        words += [f"prob={self.prob}", f"mode={self.mode!r}", f"pairing={self.pairing!r}"]
        words += [f"remix={self.remix}"] if self.remix else []
        return f"Mixup({', '.join(words)}, keep_clean={self.keep_clean})"


def _unmixed(images: Tensor) -> tuple[Tensor, Tensor, None]:
    """Index, lam and box: every sample its own partner, weight 1."""
    return torch.arange(images.shape[0], device=images.device), torch.ones((), device=images.device), None


def _per_channel(name: str, values: Tensor | Sequence[float]) -> Tensor:
    numbers = torch.as_tensor(values, dtype=torch.float64).detach().clone()
    fits = (numbers > 0) & numbers.isfinite() if name == "std" else (numbers >= 0) & (numbers <= 1)
    if not bool(fits.all()):
        expected = "positive numbers" if name == "std" else "numbers from 0 to 1"
        raise ValueError(
            f"{_WHERE}: expected {name} to hold {expected}, pixels being 0 to 1 (divide by 255), got {values}"
        )
    return numbers


def _check_minmax(minmax: Any) -> tuple[float, float] | None:
    if minmax is None:
        return None
    if not isinstance(minmax, (tuple, list)) or len(minmax) != 2:
        raise TypeError(f"{_WHERE}: expected cutmix_minmax to be (least, most), got {describe(minmax)}")
    least, most = (check_number(_WHERE, "cutmix_minmax", share, least=0, most=1) for share in minmax)
    if least > most:
        raise ValueError(f"{_WHERE}: expected cutmix_minmax to be (least, most), got ({least}, {most})")
    return least, most
