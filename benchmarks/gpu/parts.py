"""A list of parts, each with a time limit of its own, all within one budget; none ends the others."""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["passed", "failed", "not run"]
LEAST_S = 10.0  # starting Python and torch alone takes half of it
NO_TIME = "no time left of the budget"


@dataclass(frozen=True)
class Outcome:
    """What became of a part. `note`: counts, or the reason when it did not pass."""

    state: State
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Part:
    """`work` gets the seconds that it may take. `alone`: beside others it would want memory or disturb a timing."""

    name: str
    limit_s: float
    work: Callable[[float], Outcome]
    alone: bool = False


@dataclass(frozen=True)
class Budget:
    """A deadline, and the clock that it is on."""

    deadline: float
    now: Callable[[], float] = time.monotonic

    @classmethod
    def of(cls, seconds: float) -> Budget:
        """So many seconds from now."""
        return cls(time.monotonic() + seconds)

    def left(self) -> float:
        """Seconds left."""
        return self.deadline - self.now()

    def allowance(self, limit_s: float, least_s: float = LEAST_S) -> float | None:
        """What a part with this limit may take; None if too little is left to start it."""
        left = self.left()
        return min(limit_s, left) if left >= min(limit_s, least_s) else None


def run_parts(parts: Sequence[Part], budget: Budget, jobs: int, ended: Callable[[str, Outcome], None]) -> None:
    """Run them, `jobs` at a time and those that want to be alone last; `ended` hears of each, one at a time."""
    together, alone = ([part for part in parts if part.alone == wish] for wish in (False, True))
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        running = {pool.submit(run_part, part, budget): part.name for part in together}
        for future in as_completed(running):
            ended(running[future], future.result())
    for part in alone:
        ended(part.name, run_part(part, budget))


def run_part(part: Part, budget: Budget) -> Outcome:
    """One part: an exception of its own is its failure, no one else's."""
    limit_s = budget.allowance(part.limit_s)
    if limit_s is None:
        return Outcome("not run", NO_TIME)
    started = budget.now()
    try:
        outcome = part.work(limit_s)
    except Exception as error:
        outcome = Outcome("failed", f"{type(error).__name__}: {error}", {"traceback": traceback.format_exc()})
    return dataclasses.replace(outcome, seconds=budget.now() - started)
