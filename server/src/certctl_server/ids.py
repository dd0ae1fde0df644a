"""Names for rows that clients did not name."""

from __future__ import annotations

from uuid_utils import uuid7

PATTERN = r"^[A-Za-z0-9](?!.*\.\.)[A-Za-z0-9._-]{0,127}\Z"


def new_id(prefix: str) -> str:
    """Return ``prefix`` and a suffix that is unique and sorts by time (RFC 9562 UUIDv7)."""
    return f"{prefix}-{uuid7().hex}"
