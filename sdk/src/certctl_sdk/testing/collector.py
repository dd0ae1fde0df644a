"""A collector of traces on a free loopback port: what OpenTelemetry exports to it over HTTP can be looked at."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Sent

KINDS = ("unspecified", "internal", "server", "client", "producer", "consumer")


@dataclass(frozen=True, slots=True)
class Seen:
    """A span that arrived; ids are lower hex."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    """Empty for the first of a trace."""
    error: str | None
    """What its status says if it failed."""
    attributes: dict[str, Any] = field(default_factory=dict)


class Collector:
    """Takes spans while it is entered."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self.spans))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        """What OTEL_EXPORTER_OTLP_ENDPOINT is to say."""

    @property
    def environ(self) -> dict[str, str]:
        """The variables that make a process export to here, soon."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}

    def named(self, name: str) -> list[Seen]:
        """Return the spans of that name, in the order in which they arrived."""
        return [span for span in list(self.spans) if span.name == name]

    def until(self, seen: Callable[[], object], seconds: float = 20) -> None:
        """Wait for what ``seen`` looks for; raise TimeoutError, saying what is there, if it does not come."""
        end = time.monotonic() + seconds
        while not seen():
            if time.monotonic() > end:
                raise TimeoutError(f"only these spans arrived: {[(each.service, each.name) for each in self.spans]}")
            time.sleep(0.05)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(spans: list[Seen]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            spans.extend(_read(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Not on the terminal of the tests."""

    return Handler


def _read(body: bytes) -> list[Seen]:
    sent = ExportTraceServiceRequest.FromString(body)
    return [
        _seen(str(_plain(process.resource.attributes).get("service.name", "")), span)
        for process in sent.resource_spans
        for scope in process.scope_spans
        for span in scope.spans
    ]


def _seen(service: str, span: Sent) -> Seen:
    return Seen(
        service=service,
        name=span.name,
        kind=KINDS[span.kind],
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        error=span.status.message if span.status.code == span.status.STATUS_CODE_ERROR else None,
        attributes=_plain(span.attributes),
    )


def _plain(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair) for pair in pairs}


def _value(pair: KeyValue) -> Any:
    which = pair.value.WhichOneof("value")
    return getattr(pair.value, which) if which else None
