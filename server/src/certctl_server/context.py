"""What a request handler, a worker and a loop are given: the one dependency there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, TypeAlias

from certctl_core.plugins import Plugins
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency

from certctl_server.sealing import Cipher
from certctl_server.settings import Settings


class Bell(Protocol):
    """Tells those who wait that there is work. A lost ring costs seconds, never work."""

    def ring(self, lane: str) -> None:
        """Say that the lane has a due job."""

    def ring_agent(self, agent_id: str) -> None:
        """Say that the agent has work."""


@dataclass(slots=True)
class Context:
    """One installation as one process sees it; the database is the process's own (``certctl_server.db``)."""

    settings: Settings
    plugins: Plugins
    cipher: Cipher
    clock: Callable[[], datetime]
    """The present, aware."""
    bell: Bell
    started_at: datetime
    engine: Any = None
    """The workers and loops of this process, once they run."""
    cursor_key: bytes = field(default=b"", repr=False)
    """Signs the tokens of lists; read from the database when first needed."""


Ctx: TypeAlias = NamedDependency[Context]
"""How a handler asks for it: ``ctx: Ctx``."""


def context_of(connection: ASGIConnection[Any, Any, Any, Any]) -> Context:
    """Return the context of the application that answers ``connection``."""
    ctx: Context = connection.app.state.ctx
    return ctx
