"""Spans for real, over the OpenTelemetry SDK. Imported only where they go somewhere; ``tracing`` decides."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from certctl_sdk.tracing import Attributes, Kind

MESSAGE_CHARACTERS = 300
NOWHERE = Context()
TRIES = "opentelemetry.exporter"
"""Who logs each try at a collector that is away; that a batch is given up is an error and told."""
KINDS = {kind.name.lower(): kind for kind in SpanKind}


class Live:
    """A span that has begun, under the names that ``tracing`` uses."""

    __slots__ = ("_span", "end", "is_recording", "set_attributes", "traceparent", "update_name")

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self.end, self.is_recording = span.end, span.is_recording
        self.set_attributes, self.update_name = span.set_attributes, span.update_name
        found = span.get_span_context()
        self.traceparent = f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"

    def fail(self, kind: str, message: str) -> None:
        """Say what went wrong."""
        self._span.set_attribute("error.type", kind)
        self._span.set_status(Status(StatusCode.ERROR, message[:MESSAGE_CHARACTERS]))


class Exporter:
    """Makes spans and sends them, many at a time, from a thread of its own.

    Where to, how much of it and how often stands in the ``OTEL_*`` variables, which the SDK reads itself.
    """

    def __init__(self, service: str, version: str, exporters: Sequence[str]) -> None:
        """Raise ImportError if a package is missing, ValueError if a variable makes no sense."""
        resource = Resource.create({SERVICE_VERSION: version})
        # The SDK fills in a name of its own where the environment has none.
        if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: service}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        for name in exporters:
            self._provider.add_span_processor(_processor(name))
        logging.getLogger(TRIES).setLevel(logging.ERROR)
        self._tracer = self._provider.get_tracer("certctl", version)

    def begin(self, name: str, kind: Kind, parent: str, attributes: Attributes) -> Live:
        """Return a span that has begun; ``parent`` is a ``traceparent``, "" begins a trace."""
        around = trace.set_span_in_context(_remote(parent), NOWHERE) if parent else NOWHERE
        return Live(self._tracer.start_span(name, around, KINDS[kind], dict(attributes)))

    def close(self) -> None:
        """Send what waits, and stop; blocks for as long as the collector takes."""
        self._provider.shutdown()


def _processor(exporter: str) -> SpanProcessor:
    if exporter == "console":
        return SimpleSpanProcessor(ConsoleSpanExporter())
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415  # the extra

    return BatchSpanProcessor(OTLPSpanExporter())


def _remote(traceparent: str) -> NonRecordingSpan:
    _, trace_id, span_id, flags = traceparent.split("-")
    known = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
    return NonRecordingSpan(known)
