"""Durations as Go programs write them: ``30s``, ``1h30m``, ``500ms``."""

from __future__ import annotations

import re
from datetime import timedelta

SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|us|µs|ns|h|m|s)")


def parse(text: str) -> timedelta:
    """Return the length that ``text`` writes.

    Raises:
        ValueError: it is no sequence of numbers with units.
    """
    if text == "0":
        return timedelta()
    parts = list(PART.finditer(text))
    if not parts or "".join(part[0] for part in parts) != text:
        raise ValueError(f"{text!r} is not a duration like 30s or 1h30m")
    return timedelta(seconds=sum(float(part[1]) * SECONDS[part[2]] for part in parts))
