"""How fast to call a server that does not answer, and how often to say so."""

from __future__ import annotations

import logging
import random

from certctl_core.errors import TransientError

from certctl_agent.api import Refused

log = logging.getLogger(__name__)

FIRST_SECONDS = 1.0
LONGEST_SECONDS = 300.0
UNWELCOME = frozenset({401, 403})


class Pace:
    """The failures of one duty in a row. Each trouble is told once, and once that it is over."""

    def __init__(self, duty: str) -> None:
        self._duty = duty
        self._failures = 0
        self._told = ""

    def worked(self) -> None:
        """Note an answer."""
        if self._told:
            log.info("the server answers again", extra={"duty": self._duty, "failures": self._failures})
        self._failures, self._told = 0, ""

    def failed(self, error: Exception) -> float:
        """Note a failure; return the seconds to wait. A server that does not know us is told loudly, and left alone."""
        self._failures += 1
        unwelcome = isinstance(error, Refused) and error.status in UNWELCOME
        if unwelcome:
            log.error("the server refuses this agent: enrol it again", extra={"duty": self._duty, "said": str(error)})
        elif (kind := type(error).__name__) != self._told and not isinstance(error, (TransientError, Refused)):
            log.error("duty failed", extra={"duty": self._duty}, exc_info=error)
        elif kind != self._told:
            log.warning("the server does not help", extra={"duty": self._duty, "said": str(error)})
        else:
            log.debug("the server still does not help", extra={"duty": self._duty, "said": str(error), "kind": kind})
        self._told = type(error).__name__
        longest = (
            LONGEST_SECONDS if unwelcome else min(LONGEST_SECONDS, FIRST_SECONDS * 2 ** min(self._failures - 1, 9))
        )
        return longest * random.uniform(0.5, 1)
