"""Bells: they say where to look, never what to do, and losing one costs seconds.

A lane's bell wakes whoever claims its jobs; an agent's bell answers its waiting poll, a poke turns a loop. Rung inside
a transaction, they sound after it is committed, here and in every other server.

Step 2 of the main flow (docs/main-flow.md).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable

from certctl_server import db

AGENT, LOOP, AGAIN = "agent", "loop", "again"
_ring: Callable[[str], object] | None = None
_poke: Callable[..., object] | None = None
_tell: Callable[[str], object] | None = None
_waiting: dict[str, set[asyncio.Event]] = defaultdict(set)
_draining = False


def connect(
    ring: Callable[[str], object] | None,
    poke: Callable[..., object] | None,
    tell: Callable[[str], object] | None = None,
) -> None:
    """Send lanes' bells to ``ring``, wake loops through ``poke``, and ``tell`` other servers, from now on.

    None: nobody listens.
    """
    global _ring, _poke, _tell  # one worker pool per process, as there is one database
    _ring, _poke, _tell = ring, poke, tell


def ring(lane: str) -> None:
    """Say that ``lane`` has a due job, once that is committed."""
    db.after_commit(lambda: _ring and _ring(lane))


def poke(*loops: str) -> None:
    """Let loops look again, once that is committed: what they wait for may come sooner than they think."""

    def sound() -> None:
        if _poke:
            _poke(*loops)
        for name in loops:
            _say(LOOP, name)

    db.after_commit(sound)


def ring_agent(agent_id: str) -> None:
    """Say that there is work for an agent, once that is committed."""

    def sound() -> None:
        _wake(agent_id)
        _say(AGENT, agent_id)

    db.after_commit(sound)


def hear(word: str) -> None:
    """Do what another server says: wake a poll that waits here, or a loop."""
    kind, _, name = word.partition(":")
    if kind == AGENT:
        _wake(name)
    elif kind == LOOP and _poke:
        _poke(name)
    elif kind == AGAIN:
        for agent_id in list(_waiting):
            _wake(agent_id)
        if _poke:
            _poke()


def _say(kind: str, name: str) -> None:
    if _tell:
        _tell(f"{kind}:{name}")


def _wake(agent_id: str) -> None:
    for event in _waiting.get(agent_id, ()):
        event.set()


class Waiter:
    """A poll that waits for its agent's bell; use as a context manager around looking and waiting."""

    def __init__(self, agent_id: str) -> None:
        self._agent_id = agent_id
        self._event = asyncio.Event()

    def __enter__(self) -> asyncio.Event:
        _waiting[self._agent_id].add(self._event)
        return self._event

    def __exit__(self, *_: object) -> None:
        _waiting[self._agent_id].discard(self._event)
        if not _waiting[self._agent_id]:
            del _waiting[self._agent_id]


def waiting() -> list[str]:
    """Return the agents whose polls wait in this process."""
    return list(_waiting)


def answer_all() -> None:
    """Let every waiting poll answer now: the process is about to stop."""
    global _draining  # noqa: PLW0603
    _draining = True
    for events in list(_waiting.values()):
        for event in events:
            event.set()


def draining() -> bool:
    """Whether the process is about to stop, so that nobody should wait."""
    return _draining
