"""Log lines: one JSON object each, or text for people. The standard library's logging, for its small size."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}


class JsonLines(logging.Formatter):
    """One JSON object per event, fields beside it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; control characters that a peer wrote stay escaped."""
        return json.dumps(
            {
                "time": datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z"),
                "level": record.levelname.lower(),
                "event": record.getMessage(),
                **_fields(record),
                **({"traceback": self.formatException(record.exc_info)} if record.exc_info else {}),
            },
            default=str,
        )


class Text(logging.Formatter):
    """The same for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, values quoted where they are not plain."""
        fields = "".join(f" {key}={json.dumps(value, default=str)}" for key, value in _fields(record).items())
        trace = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        return f"{self.formatTime(record)} {record.levelname.lower():7} {record.getMessage()}{fields}{trace}"


def configure(level: str, form: str) -> None:
    """Send everything to standard error, where systemd and containers look for it."""
    out = logging.StreamHandler(sys.stderr)
    out.setFormatter(JsonLines() if form == "json" else Text())
    logging.basicConfig(level=LEVELS[level], handlers=[out], force=True)
    # Libraries warn of odd certificates that lie on the disk; that is nothing to act on here.
    logging.captureWarnings(capture=True)
    logging.getLogger("py.warnings").setLevel(logging.NOTSET if level == "debug" else logging.ERROR)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in OWN}
