"""One attempt at one job, as a connector sees it."""

from __future__ import annotations

from datetime import datetime

from certctl_core.run import State

from certctl_server.connectors.loop import ConnectorLoop
from certctl_server.jobs.state import Claimed, save


class CallRun:
    """``Run`` for a call outside any job (a test button): what it saves lasts as long as the call."""

    def __init__(self, key: str, deadline: datetime, state: State | None = None) -> None:
        self._key = key
        self._deadline = deadline
        self._state: State = dict(state or {})

    @property
    def key(self) -> str:
        """The job's id, the same over all attempts; outside a job a name for this call alone."""
        return self._key

    @property
    def state(self) -> State:
        """What was saved last."""
        return self._state

    @property
    def deadline(self) -> datetime:
        """When this attempt is cancelled."""
        return self._deadline

    async def save(self, state: State) -> None:
        """Remember ``state`` until the call is over."""
        self._state = dict(state)


class JobRun(CallRun):
    """``Run`` over a claimed job: what is saved is committed under the job's fence, on the main loop."""

    def __init__(self, job: Claimed, deadline: datetime, loop: ConnectorLoop) -> None:
        super().__init__(job.id, deadline, job.run_state)
        self._job = job
        self._loop = loop

    async def save(self, state: State) -> None:
        """Replace the state, durably.

        Raises:
            LeaseLost: nothing was written.
        """
        await self._loop.back(lambda: save(self._job, state))
        await super().save(state)
