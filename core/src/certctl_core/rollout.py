"""How a new version spreads over the targets of a certificate: in waves, each as wide as a share of all targets.

A wave is passed when every target that has been sent the version serves it, and has done so for the soak. A target that
is not served after its tries counts as failed; more failed ones than the plan tolerates halt the rollout.

Core says what the next step is. The server finds out how the targets are, and takes the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto

OVERRIDE = timedelta(hours=48)
"""What expires sooner than this is replaced without waiting for a wave."""
SHARE_OF_LIFE = 6
"""Of a life so short that 48 hours are much of it, this part takes their place."""


class Progress(Enum):
    """How far one target is."""

    HELD = auto()
    """Its wave has not begun."""
    SENT = auto()
    """The version is on its way."""
    SERVED = auto()
    """The version is there, and seen to be served where that can be seen."""
    FAILED = auto()
    """It is not there after its tries."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a renewal policy says."""

    waves: tuple[int, ...]
    """Percent of the mapped targets that have the version once each wave has begun; ascending, the last is 100."""
    soak: timedelta
    """How long a wave is served everywhere before the next one begins."""
    max_failures: int
    """How many failed targets are tolerated."""

    def allowed(self, wave: int, mapped: int) -> int:
        """Return how many of ``mapped`` targets may have the version in a wave, counted from 0: never none."""
        return -(-mapped * self.waves[wave] // 100)

    @property
    def last(self) -> int:
        """The number of the last wave."""
        return len(self.waves) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a rollout is."""

    wave: int
    targets: Sequence[Progress]
    """Those that lack the version, or lacked it when the rollout began."""
    mapped: int
    """How many targets the certificate has."""
    ready: int = 0
    """How many of them have had the newest version from the start."""
    expected: bool = False
    """Whether further targets will want a new version: their agents' orders are under way."""
    passed_at: datetime | None = None
    """Since when every target of the waves so far is served."""
    override_at: datetime | None = None
    """When what is in place on the targets that wait becomes too old to wait."""


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done now."""

    wave: int
    """The wave that the rollout is in from now on."""
    send: int = 0
    """To how many of the targets that wait, in their order, the version is sent."""
    halt: bool = False
    """Too many targets have failed."""
    over: bool = False
    """Every target has the version, or is tolerated not to."""
    override: bool = False
    """Nobody waits any longer, because what is in place expires."""
    passed_at: datetime | None = None
    """Since when the waves so far are served; None while they are not."""
    look_at: datetime | None = None
    """When the clock alone asks for the next step."""


def next_step(plan: Plan, standing: Standing, now: datetime) -> Step:
    """Return what to do with a rollout now."""
    counts = {each: sum(one is each for one in standing.targets) for each in Progress}
    held, sent = counts[Progress.HELD], len(standing.targets) - counts[Progress.HELD]
    wave = min(standing.wave, plan.last)
    if counts[Progress.FAILED] > plan.max_failures:
        return Step(wave, halt=True)
    if held and standing.override_at is not None and standing.override_at <= now:
        return Step(plan.last, send=held, override=True)

    def room(wave: int) -> int:
        left = plan.allowed(wave, standing.mapped) - standing.ready - sent
        return held if wave == plan.last else max(0, min(held, left))

    if not sent:  # what is ready has been through the waves before: begin with the first that adds something
        wave = next((each for each in range(wave, plan.last) if room(each) > 0), plan.last)
    if room(wave) > 0:
        return Step(wave, send=room(wave), look_at=standing.override_at)
    if counts[Progress.SENT]:
        return Step(wave, look_at=standing.override_at)
    passed_at = standing.passed_at or now
    if not held and (wave == plan.last or not standing.expected):
        step = Step(wave, over=True)
    elif now < passed_at + plan.soak:
        moments = (passed_at + plan.soak, standing.override_at)
        step = Step(wave, passed_at=passed_at, look_at=min(each for each in moments if each is not None))
    else:
        wave = next((each for each in range(wave + 1, plan.last) if room(each) > 0 or not held), plan.last)
        step = Step(wave, send=room(wave), look_at=standing.override_at)
    return step


def override_at(not_before: datetime, not_after: datetime) -> datetime:
    """Return when what is in place is too old to wait for a wave: 48 hours before its end, or a sixth of its life."""
    return not_after - min(OVERRIDE, (not_after - not_before) / SHARE_OF_LIFE)
