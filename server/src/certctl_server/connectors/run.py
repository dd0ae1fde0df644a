"""One attempt at one job, as a connector sees it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from certctl_core.run import State

from certctl_server.connectors.loop import ConnectorLoop
from certctl_server.jobs.state import Claimed, save


class JobRun:
    """``Run`` over a claimed job: what is saved is committed under the job's fence, on the main loop."""

    def __init__(self, job: Claimed, deadline: datetime, loop: ConnectorLoop) -> None:
        self._job = job
        self._state: dict[str, Any] = dict(job.run_state)
        self._deadline = deadline
        self._loop = loop

    @property
    def key(self) -> str:
        """The job's id: the same over all attempts."""
        return self._job.id

    @property
    def state(self) -> State:
        """What was saved last."""
        return self._state

    @property
    def deadline(self) -> datetime:
        """When this attempt is cancelled."""
        return self._deadline

    async def save(self, state: State) -> None:
        """Replace the state, durably.

        Raises:
            LeaseLost: nothing was written.
        """
        await self._loop.back(lambda: save(self._job, state))
        self._state = dict(state)


class CallRun:
    """``Run`` for a call outside any job (a test button): what it saves lasts as long as the call."""

    def __init__(self, key: str, deadline: datetime) -> None:
        self._key = key
        self._deadline = deadline
        self._state: Mapping[str, Any] = {}

    @property
    def key(self) -> str:
        """A name for this call alone."""
        return self._key

    @property
    def state(self) -> State:
        """What this call saved last."""
        return self._state

    @property
    def deadline(self) -> datetime:
        """When the call is cancelled."""
        return self._deadline

    async def save(self, state: State) -> None:
        """Remember ``state`` until the call is over."""
        self._state = dict(state)
