"""What is measured against what: one line per goal, and the line that counts them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure and what it is held against."""

    what: str
    figure: float
    limit: float
    unit: str
    most: bool
    """Whether ``limit`` is the most it may be, else the least."""
    note: str

    @property
    def met(self) -> bool:
        """Whether it is good enough."""
        return self.figure <= self.limit if self.most else self.figure >= self.limit

    def line(self) -> str:
        """Return its row of the table."""
        held = f"{'<=' if self.most else '>='} {self.limit:g}"
        mark = "met" if self.met else "MISSED"
        return f"{self.what:<44} {self.figure:>9.2f} {held:>9} {self.unit:<7} {mark:<7} {self.note}"


def tell(found: Iterable[Goal], say: Callable[[str], None]) -> int:
    """Say each goal as soon as it is measured and then how many are met; return the exit code."""
    told = []
    for goal in found:
        told.append(goal)
        say(goal.line())
    say(f"{sum(goal.met for goal in told)} of {len(told)} goals met")
    return 0 if all(goal.met for goal in told) else 1
