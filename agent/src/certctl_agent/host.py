"""What this program gives the connectors that run in it: ``Host`` once, ``Run`` with every call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from certctl_core.run import Allowed, Clock, Egress, State

from certctl_agent import private


class FileStore:
    """A connector's memory: one file of mode 0600, written anew and durably at each swap.

    One process and one loop use it, so comparing and setting need no lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    async def get(self, key: str) -> str | None:
        """The value last swapped in."""
        value = private.read_object(self.path).get(key)
        return None if value is None else str(value)

    async def swap(self, key: str, *, old: str | None, new: str | None) -> bool:
        """Set ``key`` to ``new`` if it still is ``old``."""
        values: dict[str, Any] = private.read_object(self.path)
        if values.get(key) != old:
            return False
        values.pop(key, None)
        private.write(self.path, json.dumps(values if new is None else {**values, key: new}))
        return True


def now() -> datetime:
    """Return the time, aware UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class AgentHost:
    """The agent, as one connector instance sees it."""

    store: FileStore
    egress: Egress
    allowed: Allowed
    clock: Clock = now


class JobRun:
    """One attempt at one job, whose saved state outlives a crash."""

    def __init__(self, job_id: str, deadline: datetime, path: Path) -> None:
        self.key = job_id
        self.deadline = deadline
        self._path = path
        self._state: Mapping[str, Any] = private.read_object(path)

    @property
    def state(self) -> State:
        """What was saved last."""
        return self._state

    async def save(self, state: State) -> None:
        """Keep ``state`` for the next attempt at the same job."""
        private.write(self._path, json.dumps(dict(state)))
        self._state = dict(state)

    def forget(self) -> None:
        """Drop the state: the job is done."""
        private.remove(self._path)
