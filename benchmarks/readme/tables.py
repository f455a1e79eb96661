"""README.md's tables of the races on the CPU. What is slower than a rival is printed like the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..speed import crossover
from ..speed.contenders import BOUND, OURS, OURSELVES, UNMIXED
from ..speed.suite import TABLE
from ..speed.workloads import OPERATIONS, Spec
from . import targets
from .cpu import Race, Races, Timed, factor, memory, place, spread, table, time, times

LOSS = "icm_loss"
AUTHORS = "authors' formulation"


def loss_block(races: Races) -> str:
    """The loss at the sizes that have targets, and what else was aimed at."""
    header = ["(B, C)", "icm_fast", "vs the authors' formulation", "target", "vs the best torch.compile", "target"]
    header += ["extra memory", "the authors'", "`F.cross_entropy`, labels unmixed"]
    rows = [_loss_row(race) for race in races.select(LOSS, _is_in_table)]
    intro = f"{races.where()}, float32, one lam per sample; medians, in brackets p20–p80:"
    return "\n".join([intro, "", *table(header, rows), "", *targets.sentences(races), *_without_time(races)])


def _is_in_table(spec: Spec) -> bool:
    return spec == Spec(LOSS, spec.size) and spec.size in TABLE


def _loss_row(race: Race) -> list[str]:
    authors, compiled = race.timed.get(AUTHORS), race.best(lambda each: each.is_compiled)
    ratios = [times(each, race.ours) for each in (authors, compiled)]
    aims = targets.LOSS.get(race.spec.size)
    cells = [place(race.spec), spread(race.ours)]
    for at, ratio in enumerate(ratios):
        cells += [factor(ratio), targets.verdict(ratio, aims[at]) if aims else ""]
    cells += [_memory(race.ours), _memory(authors)]
    unmixed = race.timed.get(UNMIXED)
    return [*cells, time(unmixed.median_us) if unmixed else "not timed"]


def _memory(timed: Timed | None) -> str:
    return memory(timed.peak_extra_bytes) if timed else "not measured"


def _without_time(races: Races) -> list[str]:
    """Contenders that were not run, failed or were wrong, ours too."""
    found: dict[tuple[str, str], list[str]] = {}
    for race in races.of.values():
        for name, reason in race.without_time.items():
            found.setdefault((name, reason), []).append(f"`{race.spec.operation}` {place(race.spec)}")
    return [
        f"- No time for {name}, {reason}: {', '.join(places) if len(places) <= 3 else f'{len(places)} workloads'}."
        for (name, reason), places in found.items()
    ]


def operations_block(races: Races, ways: dict[str, Any]) -> str:
    """Every operation and type that the first table lacks, each with every rival."""
    header = ["operation", "size", "icm_fast", "each rival's time over it", "over the floor", "extra memory"]
    header += ["the fastest rival's"]
    others = [race for race in _in_order(races) if not _is_swept(race.spec)]
    lines = table(header, (_operation_row(race) for race in others))
    notes = {
        "flipped, rolled": "whole calls, images and labels in, mixed images and a target out, with the partners that "
        "timm and torchvision take; the others mix with an index and lam that are given",
        "uint8": "normalised to float32 in the same call",
    }
    said = [f"- {name}: {text}." for name, text in notes.items()]
    return "\n".join(
        [
            f"{races.where()}; medians, in brackets p20–p80:",
            "",
            *lines,
            "",
            *said,
            *_options(others),
            f"- {crossover.sentence(ways)}",
        ]
    )


def _is_swept(spec: Spec) -> bool:
    """Of the first table and the figures."""
    return spec == Spec(LOSS, spec.size)


def _in_order(races: Races) -> Iterable[Race]:
    for operation in OPERATIONS:
        yield from races.select(operation)


def _operation_row(race: Race) -> list[str]:
    floors = [each for each in race.timed.values() if each.role == BOUND]
    rivals = sorted(race.rivals(), key=lambda each: each.median_us)
    against = "<br>".join(f"{factor(times(each, race.ours))} {each.name}" for each in rivals)
    over = factor(times(race.ours, floors[0])) if floors else ""
    best = race.best()
    cells = [f"`{race.spec.operation}`", place(race.spec), spread(race.ours), against or "none timed", over]
    return [*cells, _memory(race.ours), _memory(best)]


def _options(races: Iterable[Race]) -> list[str]:
    """What else of ours comes to the same."""
    others: dict[str, list[str]] = {}
    for race in races:
        for name, each in race.timed.items():
            if each.role == OURSELVES and name != OURS:
                text = f"{time(each.median_us)}, {memory(each.peak_extra_bytes)} at {place(race.spec)}"
                others.setdefault(name.removeprefix(f"{OURS} "), []).append(text)
    return [f"- `{other}`: {'; '.join(texts)}." for other, texts in others.items()]
