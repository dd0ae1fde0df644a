"""Who may call what. Every route says ``opt={"roles": ...}`` with one of these; without it, nobody may call it."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """What a principal is."""

    ADMIN = "admin"
    OPERATOR = "operator"
    VIEWER = "viewer"
    AGENT = "agent"
    ENROLMENT = "enrolment"
    """Holds an enrolment token: may register an agent."""
    ANONYMOUS = "anonymous"
    """Showed no key."""


R = Role
OPEN = frozenset(R)
"""No key is asked for, and none is looked at."""
ADMIN = frozenset({R.ADMIN})
WRITE = frozenset({R.ADMIN, R.OPERATOR})
"""Changes, and reads that viewers may not do."""
READ = WRITE | {R.VIEWER}
"""Reads of people and programs."""
ANY_KEY = READ | {R.AGENT}
"""Whoever has a key of any kind."""
OWN_AGENT = WRITE | {R.AGENT}
"""An agent about itself and its own jobs; the handler asks ``agent_caller`` whom the others may stand in for."""
OWN_AGENT_READ = READ | {R.AGENT}
"""Reads that an agent may do about itself, and people and programs about any."""
ENROL = WRITE | {R.AGENT, R.ENROLMENT}
"""Registration of an agent."""
STORED = (R.ADMIN, R.OPERATOR, R.VIEWER, R.AGENT)
"""What keys in the database may be."""
LISTED = frozenset({"*"})
"""``opt["query"]`` of a route that answers ``list_response``, which checks the parameters itself.

Other routes name theirs there, with their types if they are no text; one that names none takes none. What else a route
says of itself in ``opt`` is in ``certctl_server.openapi``.
"""
