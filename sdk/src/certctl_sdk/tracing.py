"""Traces: to what each piece of work belongs, and how long it took, where somebody wants to know.

What it belongs to is data: a W3C ``traceparent`` that goes from request to job to peer to agent in any case. Spans are
made only where the standard ``OTEL_*`` variables name an exporter; elsewhere nothing of OpenTelemetry is even imported,
and ``span`` costs a microsecond.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping
from contextvars import ContextVar, Token
from importlib.metadata import version
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

if TYPE_CHECKING:
    from certctl_sdk.spans import Exporter, Live

log = logging.getLogger(__name__)
HEADER = "traceparent"
Kind: TypeAlias = Literal["internal", "server", "client", "producer", "consumer"]
Attributes: TypeAlias = Mapping[str, str | int]
#: https://www.w3.org/TR/trace-context/#versioning-of-traceparent: what later versions append is left out.
_FORM = re.compile(r"(?!ff)([0-9a-f]{2})(-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-[!-~]*)?")
CLOSE_SECONDS = 5.0
"""How long the end of a process waits for a collector that is away."""
KNOWN = ("console", "none", "otlp")
PROTOCOL = "http/protobuf"

_exporter: Exporter | None = None


class Span:
    """A piece of work, from entering this context to leaving it. An exception that leaves it is noted."""

    __slots__ = ("_attributes", "_kind", "_live", "_name", "_token", "traceparent")

    def __init__(self, name: str, kind: Kind, parent: str, attributes: Attributes) -> None:
        self._name, self._kind, self._attributes = name, kind, attributes
        self.traceparent = parent
        """What is done inside belongs to this; "" if to nothing."""
        self._live: Live | None = None
        self._token: Token[Span] | None = None

    @property
    def recorded(self) -> bool:
        """Whether anybody will see it, so that finding out more about it is worth while."""
        return self._live is not None and self._live.is_recording()

    def describe(self, attributes: Attributes, *, name: str = "") -> None:
        """Add what is known only now."""
        if self._live is not None:
            self._live.set_attributes(dict(attributes))
            if name:
                self._live.update_name(name)

    def fail(self, kind: str, message: str = "") -> None:
        """Say that the work did not succeed: the ``kind`` of error, and its words."""
        if self._live is not None:
            self._live.fail(kind, message)

    def __enter__(self) -> Self:
        if _exporter is not None and self._name:
            self._live = _exporter.begin(self._name, self._kind, self.traceparent, self._attributes)
            self.traceparent = self._live.traceparent
        self._token = _here.set(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._token is not None:
            _here.reset(self._token)
        if self._live is not None:
            if kind is not None:
                self._live.fail(kind.__name__, str(error))
            self._live.end()


_here: ContextVar[Span] = ContextVar("_here", default=Span("", "internal", "", {}))  # noqa: B039  # never written to


def span(
    name: str, kind: Kind = "internal", *, parent: str | None = None, attributes: Attributes | None = None
) -> Span:
    """Return the context in which a piece of work is done.

    Args:
        name: What is done; few different ones, so ids belong into the attributes.
        kind: Its part in the exchange with others, as OpenTelemetry has it.
        parent: The ``traceparent`` it belongs to, "" to begin a trace; None: where we are.
        attributes: What distinguishes it; nothing secret.
    """
    return Span(name, kind, current() if parent is None else parent, attributes or {})


def carry(traceparent: str) -> Span:
    """Return a context in which everything belongs to ``traceparent``, and that is no span itself."""
    return Span("", "internal", traceparent, {})


def current() -> str:
    """Return the ``traceparent`` of what is being done, "" if it belongs to nothing."""
    return _here.get().traceparent


def origin(name: str, attributes: Attributes) -> str:
    """Return the ``traceparent`` for work that begins here and is done elsewhere.

    It is the present one; without any it is that of a new trace whose first span says ``name``, or "" where nothing is
    exported.
    """
    if (here := current()) or _exporter is None:
        return here
    with span(name, "producer", parent="", attributes=attributes) as first:
        return first.traceparent


def fail(kind: str, message: str) -> None:
    """Say that the innermost span did not succeed, although nothing will be raised."""
    _here.get().fail(kind, message)


def read(text: str) -> str:
    """Return the ``traceparent`` that a stranger sent if it is one, else ""."""
    found = _FORM.fullmatch(text)
    if found is None or (found[3] and found[1] == "00"):
        return ""
    return text if found[1] == "00" else f"00{found[2]}"


def configure(service: str, package: str, environ: Mapping[str, str]) -> None:
    """Export spans from now on if ``OTEL_*`` variables ask for it, under the name ``service`` unless they say another.

    What is wrong with them is logged, and nothing is exported: no certificate shall expire for want of a collector.
    ``package`` is the distribution that runs; its extra ``otlp`` brings what exporting takes.
    """
    global _exporter  # noqa: PLW0603  # one per process, as OpenTelemetry's variables are
    try:
        if not (wanted := exporters(environ)):
            return
        from certctl_sdk.spans import Exporter  # noqa: PLC0415  # what nobody asks for is not imported

        _exporter = Exporter(service, version(package), wanted)
    except ImportError as exc:
        log.error("no traces: OTEL_* asks for them, but %s[otlp] is not installed: %s", package, exc)
    except (ValueError, OSError) as exc:
        log.error("no traces: %s", exc)
    else:
        log.info("traces are exported", extra={"service": service, "exporters": wanted})


def exporters(environ: Mapping[str, str]) -> list[str]:
    """Return where spans go by what ``OTEL_*`` variables say: ``otlp``, ``console``, both, or nowhere.

    Raises:
        ValueError: they ask for what we have not got; the variable is named.
    """
    given = {name: value.strip() for name, value in environ.items() if name.startswith("OTEL_") and value.strip()}
    if given.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return []
    endpoint = given.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or given.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    asked = given.get("OTEL_TRACES_EXPORTER", "otlp" if endpoint else "none")
    wanted = list(dict.fromkeys(each.strip() for each in asked.split(",") if each.strip()))
    if unknown := [each for each in wanted if each not in KNOWN]:
        raise ValueError(f"OTEL_TRACES_EXPORTER: {', '.join(unknown)} is none of {', '.join(KNOWN)}")
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = given.get(variable, PROTOCOL)
        if "otlp" in wanted and protocol != PROTOCOL:
            raise ValueError(f"{variable}: {protocol} is not supported, {PROTOCOL} is")
        if variable in given:
            break
    return [] if "none" in wanted else wanted


def close() -> None:
    """Send what waits, for a few seconds at most, and export nothing more; call it when all work has ended."""
    global _exporter
    exporter, _exporter = _exporter, None
    if exporter is not None:
        sending = threading.Thread(target=exporter.close, name="last spans", daemon=True)
        sending.start()
        sending.join(CLOSE_SECONDS)
