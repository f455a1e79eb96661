"""What the project set out to reach on two cores of a CPU, and whether it did."""

from __future__ import annotations

from ..speed.contenders import KERNELS, OURS
from ..speed.floor import COPY
from ..speed.mixers import BYTES_OF_TORCHVISION, WHOLE_OF_TORCHVISION
from ..speed.workloads import Spec
from .cpu import Races, factor, place, time, times

# (B, C) -> at least so many times as fast as the authors' formulation, and as the best torch.compile.
LOSS: dict[tuple[int, ...], tuple[float, float]] = {
    (64, 10): (2.5, 2.5),
    (64, 100): (2.5, 2.5),
    (128, 100): (3.0, 3.5),
    (512, 100): (10.0, 8.0),
    (1024, 1000): (40.0, 15.0),
    (4096, 1000): (120.0, 30.0),
    (8192, 1000): (200.0, 30.0),
}
FEW_CLASSES, MANY_A_CLASS = (4096, 10), (4096, 100)
ONE_LAM_TIMES, FEW_CLASSES_TIMES = 1.7, 10.0
BOTH_AXES = 1.3
KERNELS_US: dict[tuple[int, ...], float] = {(128, 100): 20.0}
SHARE_OF_COPY = 0.85
BYTES, CROSS_ENTROPY = 3.0, 2.0


def verdict(ratio: float | None, target: float, at_most: bool = False) -> str:
    """Whether it was reached."""
    sign = "≤" if at_most else "≥"
    if ratio is None:
        return f"{sign} {target:g}×: not measured"
    is_met = ratio <= target if at_most else ratio >= target
    return f"{sign} {target:g}×: {'met' if is_met else '**not met**'}"


def sentences(races: Races) -> list[str]:
    """The targets beside those of the table."""
    found = (_kernels(races), _one_lam(races), _axes(races), _copies(races), _bytes(races), _cross_entropies(races))
    return [f"- {title}: {'; '.join(parts)}." for title, parts in found if parts]


def _loss(spec: Spec) -> bool:
    return spec.size in (*LOSS, FEW_CLASSES, MANY_A_CLASS)


def _plain(spec: Spec) -> bool:
    return not spec.variant and spec.dtype == "float32"


def _kernels(races: Races) -> tuple[str, list[str]]:
    parts = []
    for race in races.select("icm_loss", lambda spec: _plain(spec) and spec.size in LOSS):
        alone = race.timed.get(KERNELS)
        target = KERNELS_US.get(race.spec.size)
        met = "met" if alone and target and alone.median_us <= target else "**not met**"
        aim = f" (≤ {time(target)}: {met})" if target else ""
        parts += [f"{time(alone.median_us)} at {place(race.spec)}{aim}"] if alone else []
    return "The kernels alone, called below Python's autograd", parts


def _one_lam(races: Races) -> tuple[str, list[str]]:
    parts = []
    for race in races.select("icm_loss", lambda spec: _plain(spec) and _loss(spec)):
        ratio = times(race.ours, race.timed.get(f"{OURS} one lam for the batch"))
        if ratio is None:
            continue
        target = FEW_CLASSES_TIMES if race.spec.size == FEW_CLASSES else ONE_LAM_TIMES
        parts.append(f"{factor(ratio)} at {place(race.spec)} ({verdict(ratio, target)})")
    return "Speed with one lam for the batch, over that with one per sample", parts


def _axes(races: Races) -> tuple[str, list[str]]:
    """Against the cheaper axis."""
    parts = []
    for race in races.select("icm_loss", lambda spec: _plain(spec) and _loss(spec)):
        single = [race.timed.get(f"{OURS} axis={axis}") for axis in ("class", "pair")]
        ratios = [ratio for each in single if (ratio := times(race.ours, each))]
        if ratios:
            parts.append(f"{factor(max(ratios))} at {place(race.spec)} ({verdict(max(ratios), BOTH_AXES, True)})")
    return "Time of both axes together, over that of the cheaper one alone", parts


def _copies(races: Races) -> tuple[str, list[str]]:
    parts = []
    for race in races.select("mixup", lambda spec: not spec.variant and spec.dtype != "uint8"):
        copy = race.timed.get(COPY)
        shares = [times(copy, race.timed.get(name)) for name in (f"{OURS} out=", OURS)]
        if None not in shares:
            into, new = (f"{100 * share:.0f} %" for share in shares if share)
            met = "met" if shares[0] and shares[0] >= SHARE_OF_COPY else "**not met**"
            parts.append(
                f"{into} into given memory (≥ {100 * SHARE_OF_COPY:.0f} %: {met}), {new} into new at {place(race.spec)}"
            )
    return "Mixing, in parts of the speed of one copy of the images", parts


def _bytes(races: Races) -> tuple[str, list[str]]:
    parts = []
    for race in races.select("mixup", lambda spec: spec.dtype == "uint8"):
        for name in (BYTES_OF_TORCHVISION, WHOLE_OF_TORCHVISION):
            if name in race.timed or name in race.without_time:
                ratio = race.ratio(name)
                parts.append(f"{factor(ratio)} at {place(race.spec)} ({verdict(ratio, BYTES)})")
    return "Bytes to normalised floating point, mixed, over torchvision's chain", parts


def _cross_entropies(races: Races) -> tuple[str, list[str]]:
    parts = []
    for race in races.select("mixup_cross_entropy"):
        ratio = race.ratio("two cross-entropies")
        parts.append(f"{factor(ratio)} at {place(race.spec)} ({verdict(ratio, CROSS_ENTROPY)})")
    return "`mixup_cross_entropy`, over two calls of `F.cross_entropy`", parts
