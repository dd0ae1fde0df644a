"""Processes that end by SIGKILL at a named step of their work, for tests of what a crash leaves behind.

The code under test knows nothing of this: a script of the test wraps functions from outside and then starts the
program. Where to die comes with ``CRASH_AT``, what happened goes to the file ``CRASH_LOG``, a line per event.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

SEED = "CERTCTL_TEST_SEED"
"""Names the variable that replays what a test drew at random, by the number that it printed."""
BEFORE, AFTER = "before", "after"


def seed() -> int:
    """Return the seed to use, the one to be replayed or else a new one, and print it."""
    number = int(os.environ.get(SEED) or random.SystemRandom().randrange(1_000_000))
    tell(f"{SEED}={number}")
    return number


def tell(*lines: str) -> None:
    """Print ``lines`` into the output of the test."""
    sys.stdout.writelines(f"{line}\n" for line in lines)


@dataclass(frozen=True, slots=True)
class Death:
    """Where a process is to die."""

    step: str
    """As named to ``Steps.wrap``."""
    when: Literal["before", "after"]
    """Whether the step is done by then."""
    turn: int = 1
    """Which time it gets there."""

    def __str__(self) -> str:
        return f"{self.when} {self.step}"

    def environment(self) -> dict[str, str]:
        """Return the variable that tells the process."""
        return {"CRASH_AT": f"{self.step}:{self.when}:{self.turn}"}

    @classmethod
    def read(cls, text: str) -> Self:
        """Return what ``environment`` wrote."""
        step, when, turn = text.rsplit(":", 2)
        return cls(step, "before" if when == BEFORE else "after", int(turn))


class Journal:
    """What processes did, in one file that they all append to; a line is whole or not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, event: str, **fields: Any) -> None:
        """Append one event with the process's id and the machine's monotonic clock."""
        line = {"event": event, "pid": os.getpid(), "at": time.clock_gettime(time.CLOCK_MONOTONIC), **fields}
        os.write(self._fd, (json.dumps(line) + "\n").encode())

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return every ``event`` noted so far, in order."""
        lines = (json.loads(line) for line in self.path.read_text().splitlines())
        return [line for line in lines if line["event"] == event]

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)


class Steps:
    """The steps of this process, and the one at which it dies."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.journal = Journal(Path(environ["CRASH_LOG"]))
        self._death = Death.read(environ["CRASH_AT"]) if environ.get("CRASH_AT") else None
        self._turns: Counter[str] = Counter()
        self._lock = threading.Lock()

    def reach(self, step: str, when: str) -> None:
        """Die here if this is the place."""
        if self._death is None or (self._death.step, self._death.when) != (step, when):
            return
        with self._lock:
            self._turns[step] += 1
            if self._turns[step] == self._death.turn:
                self.journal.note("died", step=step, when=when)
                os.kill(os.getpid(), signal.SIGKILL)

    def wrap(self, owner: object, name: str, step: str) -> None:
        """Make the function or coroutine function ``name`` of a module or class a step.

        Raises:
            AttributeError: there is none of that name.
        """
        function = getattr(owner, name)
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def stepped(*args: Any, **kwargs: Any) -> Any:
                self.reach(step, BEFORE)
                result = await function(*args, **kwargs)
                self.reach(step, AFTER)
                return result

            setattr(owner, name, stepped)
            return

        @functools.wraps(function)
        def stepped_at_once(*args: Any, **kwargs: Any) -> Any:
            self.reach(step, BEFORE)
            result = function(*args, **kwargs)
            self.reach(step, AFTER)
            return result

        setattr(owner, name, stepped_at_once)


def unexplained_signatures(journal: Journal, intents: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what is wrong with what was signed: keys certified more than once without a reason on record.

    ``journal`` has an event ``signed`` for every signature, with ``key`` and ``tbs``: SHA-256, hex, of the public key
    and of the bytes that were signed. ``intents`` are the rows of that table, in order of their number.
    """
    meant = defaultdict(list)
    for intent in intents:
        meant[intent["public_key_sha256"]].append(intent)
    signed = defaultdict(set)
    for event in journal.events("signed"):
        signed[event["key"]].add(event["tbs"])
    wrong = [f"key {key} was signed without an intent" for key in signed.keys() - meant.keys()]
    for key, rows in meant.items():
        if len(signed[key]) > len(rows):
            wrong.append(f"key {key} was certified {len(signed[key])} times on {len(rows)} intents")
        wrong += [f"intent {row['number']} of {row['job_id']} has no reason" for row in rows[1:] if not row["reason"]]
    return wrong


def broken_histories(events: Iterable[Mapping[str, Any]], fences: Mapping[str, int]) -> list[str]:
    """Return what is wrong with the moves of jobs: moves that do not follow from the one before, two owners at once.

    ``events`` are audit rows of jobs in order, with ``details`` as JSON; ``fences`` say, by job, how often it was
    taken from an owner or given to one.
    """
    state: dict[str, str] = {}
    taken: Counter[str] = Counter(dict.fromkeys(fences, 0))
    wrong = []
    for event in events:
        moved, job = json.loads(event["details"]), event["resource_id"]
        if "to" not in moved:
            continue
        before, after = state.get(job, ""), moved["to"]
        # A claim does not say where it came from, and what made a job not where it begins.
        if before and (moved["from"] or before) != before:
            wrong.append(f"{job} went from {moved['from']} to {after}, but was {before}")
        if before == after == "Running":
            wrong.append(f"{job} was taken while it ran")
        state[job] = after
        taken[job] += after == "Running" or (after == "Cancelled" and before != "Failed")
    wrong += [
        f"{job} has fence {fences[job]} after {times} owners" for job, times in taken.items() if fences[job] != times
    ]
    return wrong
