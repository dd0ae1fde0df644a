"""Maintenance windows as the rules of core read them."""

from __future__ import annotations

import json
from functools import lru_cache
from zoneinfo import available_timezones

from certctl_core.windows import Window, windows_of

LOCAL = frozenset({"localtime", "Factory"})
"""What a machine calls its own zone: names nothing to another one."""


@lru_cache(maxsize=1024)
def of_text(text: str) -> tuple[Window, ...]:
    """Return the windows that ``renewal_policy.maintenance_windows`` holds."""
    return windows_of(json.loads(text))


@lru_cache(maxsize=1)
def _zones() -> frozenset[str]:
    return frozenset(available_timezones() | {"UTC"}) - LOCAL


def zone_fault(name: str) -> str | None:
    """Return what is wrong with the name of a time zone, None if nothing is."""
    return None if name in _zones() else "is no time zone's IANA name, such as Europe/Berlin"
