"""What is told on standard error: one JSON object per line, or text for people."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.types import EventDict, Processor, WrappedLogger

from certctl_server.settings import Log

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
#: Libraries that tell at info what nobody asked for.
QUIET = ("asyncio", "httpx", "httpcore", "dramatiq", "aiosqlite", "piccolo")


def configure(settings: Log) -> None:
    """Send everything that is logged, ours and the libraries', to standard error."""
    last: Processor = (
        structlog.processors.JSONRenderer()
        if settings.format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    )
    shape: list[Processor] = [
        structlog.stdlib.ExtraAdder(),
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _without_control_characters,
    ]
    if settings.format == "json":
        shape.append(structlog.processors.format_exc_info)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shape, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last]
    )
    out = logging.StreamHandler(sys.stderr)
    out.setFormatter(formatter)
    logging.basicConfig(level=LEVELS[settings.level], handlers=[out], force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(LEVELS[settings.level], logging.WARNING))


def _without_control_characters(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """What peers wrote is text, never a command to the terminal that shows it."""
    return {key: _inert(value) if isinstance(value, str) else value for key, value in event.items()}


def _inert(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
