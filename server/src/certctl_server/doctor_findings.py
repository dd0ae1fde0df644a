"""What ``certctl doctor`` has to say of one thing that it looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """How bad it is, from good to bad."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look showed."""

    check: str
    state: State
    found: str
    advice: str = ""
    """What to do; empty if nothing is."""

    def as_row(self) -> dict[str, Any]:
        """Return it as the command shows it."""
        return {"check": self.check, "state": str(self.state), "found": self.found, "what_to_do": self.advice}


def worst(findings: Sequence[Finding]) -> State:
    """Return the worst state among ``findings``."""
    return max((finding.state for finding in findings), key=list(State).index, default=State.OK)
