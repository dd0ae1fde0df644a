"""Tell the server how a job went, in the words of its errors, and go on telling until it hears."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from importlib.metadata import entry_points
from typing import TypeVar

from certctl_core.errors import ConnectorError, TransientError
from certctl_core.hookspecs import PROJECT
from certctl_core.job import Cause, cause_of

from certctl_agent.api import Refused

log = logging.getLogger(__name__)
T = TypeVar("T")

LATER = frozenset({408, 425, 429})
PATIENCE = timedelta(minutes=10)
LONGEST_PAUSE = 60.0


def passes(refused: Refused) -> bool:
    """Whether the same call may be answered otherwise a moment later."""
    return refused.status in LATER or refused.status >= 500  # noqa: PLR2004


async def insist(call: Callable[[], Awaitable[T]], *, patience: timedelta = PATIENCE) -> T:
    """Return what ``call`` returns, made again until it is answered or ``patience`` runs out.

    Raises:
        TransientError, Refused: the last thing that came of it.
    """
    loop = asyncio.get_running_loop()
    until, pause = loop.time() + patience.total_seconds(), 1.0
    while True:
        try:
            return await call()
        except (TransientError, Refused) as exc:
            if (isinstance(exc, Refused) and not passes(exc)) or loop.time() + pause > until:
                raise
        await asyncio.sleep(pause * random.uniform(0.5, 1))
        pause = min(2 * pause, LONGEST_PAUSE)


def told(error: Exception, connector: type[object] | None = None) -> tuple[str, str]:
    """Return the message and the ``error_kind`` that the server gets for ``error``.

    What is none of our errors is the connector's bug: it is named with its distribution and version.
    """
    notes = getattr(error, "__notes__", [])
    if isinstance(error, ConnectorError):
        return "; ".join([str(error), *notes]), cause_of(error, Cause.DEPLOYMENT).value
    if isinstance(error, Refused):
        return str(error), "transient" if passes(error) else "rejected"
    where = f" in {connector.kind} ({_dist(connector)})" if connector and hasattr(connector, "kind") else ""
    return "; ".join([f"{type(error).__name__}{where}: {error}", *notes]), "deployment"


def _dist(connector: type[object]) -> str:
    module = connector.__module__.partition(".")[0]
    for entry in entry_points(group=PROJECT):
        if entry.value.partition(".")[0].partition(":")[0] == module and entry.dist:
            return f"{entry.dist.name} {entry.dist.version}"
    return module
