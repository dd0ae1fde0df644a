"""What is told on standard error: one JSON object per line, or text for people.

Whatever is told while a request is answered carries its id: ``during`` says which.
"""

from __future__ import annotations

import logging
import sys
from contextlib import AbstractContextManager

import structlog
from structlog.types import EventDict, Processor, WrappedLogger

from certctl_server.settings import Log

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
TRACEBACK = "exception"
"""Where structlog puts a traceback, which has lines."""
#: Libraries that tell at info what nobody asked for.
QUIET = ("asyncio", "httpx", "httpcore", "dramatiq", "aiosqlite", "piccolo")


def configure(settings: Log) -> None:
    """Send everything that is logged, ours and the libraries', to standard error."""
    last: Processor = (
        structlog.processors.JSONRenderer()
        if settings.format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
        )
    )
    shape: list[Processor] = [
        structlog.stdlib.ExtraAdder(),
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        # Not the renderer's: that would show the variables of every frame, and secrets among them.
        structlog.processors.format_exc_info,
        _without_control_characters,
    ]
    if settings.format == "text":
        shape.append(_indented)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shape, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last]
    )
    out = logging.StreamHandler(sys.stderr)
    out.setFormatter(formatter)
    logging.basicConfig(level=LEVELS[settings.level], handlers=[out], force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(LEVELS[settings.level], logging.WARNING))


def during(request_id: str) -> AbstractContextManager[None]:
    """Put the id of a request on every line that is told meanwhile, by its task and those that it starts."""
    return structlog.contextvars.bound_contextvars(request=request_id)


def _without_control_characters(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """What peers wrote is text, never a command to the terminal that shows it, nor a line of its own."""
    return {
        key: _inert(value, "\n" if key == TRACEBACK else "") if isinstance(value, str) else value
        for key, value in event.items()
    }


def _indented(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """No line of a traceback, which may repeat what a peer wrote, begins where events do."""
    if told := event.get(TRACEBACK):
        event[TRACEBACK] = "    " + str(told).replace("\n", "\n    ")
    return event


def _inert(text: str, kept: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else f"\\x{ord(c):02x}" for c in text)
