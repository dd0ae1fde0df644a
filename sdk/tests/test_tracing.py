import logging
import subprocess
import sys

import pytest
from certctl_sdk import tracing
from certctl_sdk.http import Client, httpx
from certctl_sdk.testing.collector import Collector
from certctl_sdk.testing.fake_host import FakeHost

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = f"00-{TRACE}-{SPAN}-01"


@pytest.fixture
def collector(monkeypatch):
    with Collector() as collector:
        for name, value in collector.environ.items():
            monkeypatch.setenv(name, value)
        yield collector
        tracing.close()


@pytest.fixture
def exporting(collector):
    tracing.configure("test", "certctl-sdk", collector.environ)
    return collector


def test_a_span_belongs_to_the_one_around_it_and_both_to_the_trace_that_was_given(exporting):
    with tracing.span("outer", "server", parent=GIVEN), tracing.span("inner", attributes={"n": 1, "kind": "VaultPKI"}):
        here = tracing.current()
    tracing.close()
    inner, outer = exporting.spans
    assert (outer.service, outer.kind, outer.trace_id, outer.parent_id) == ("test", "server", TRACE, SPAN)
    assert (inner.kind, inner.trace_id, inner.parent_id) == ("internal", TRACE, outer.span_id)
    assert here == f"00-{TRACE}-{inner.span_id}-01"
    assert inner.attributes == {"n": 1, "kind": "VaultPKI"}
    assert tracing.current() == ""


def test_what_fails_says_so_raised_or_not(exporting):
    with pytest.raises(KeyError), tracing.span("raises"):
        raise KeyError("x")
    with tracing.span("outer"):
        with tracing.span("quiet"):
            tracing.fail("rejected", "no" * 500)
        tracing.current()
    tracing.close()
    [raises], [quiet], [outer] = (exporting.named(name) for name in ("raises", "quiet", "outer"))
    assert (raises.error, raises.attributes["error.type"]) == ("'x'", "KeyError")
    assert (quiet.error, quiet.attributes["error.type"]) == ("no" * 150, "rejected")
    assert outer.error is None


def test_work_that_begins_here_gets_a_trace_of_its_own_only_where_there_is_none(exporting):
    fresh = tracing.origin("create Renewal", {"certctl.job.id": "job-1"})
    with tracing.carry(GIVEN):
        assert tracing.origin("create Renewal", {}) == GIVEN
    tracing.close()
    [first] = exporting.spans
    assert (first.name, first.kind, first.parent_id) == ("create Renewal", "producer", "")
    assert fresh.startswith(f"00-{first.trace_id}-{first.span_id}-")
    assert tracing.read(fresh) == fresh


def test_a_trace_that_its_sender_does_not_sample_goes_on_unseen(exporting):
    unsampled = GIVEN.removesuffix("01") + "00"
    with tracing.span("work", parent=unsampled) as span:
        assert not span.recorded
        assert tracing.current().startswith(f"00-{TRACE}-")
        assert tracing.current().endswith("-00")
    tracing.close()
    assert exporting.spans == []


def test_without_an_exporter_a_trace_is_carried_unchanged_and_none_is_begun():
    with tracing.span("outer", parent=GIVEN), tracing.span("inner") as inner:
        assert tracing.current() == GIVEN
        assert not inner.recorded
        inner.describe({"a": "b"}, name="c")
        inner.fail("kind", "words")
    assert tracing.origin("create", {}) == ""
    with tracing.span("outer"):
        assert tracing.current() == ""


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        pytest.param(GIVEN, GIVEN, id="as it should be"),
        pytest.param(f"cc-{TRACE}-{SPAN}-01-what-comes-later", GIVEN, id="a later version"),
        pytest.param(f"cc-{TRACE}-{SPAN}-01", GIVEN, id="a later version that adds nothing"),
        pytest.param(f"ff-{TRACE}-{SPAN}-01", "", id="the version that never comes"),
        pytest.param(f"{GIVEN}-more", "", id="more than version 00 has"),
        pytest.param(GIVEN.upper(), "", id="capitals"),
        pytest.param(f"00-{'0' * 32}-{SPAN}-01", "", id="no trace"),
        pytest.param(f"00-{TRACE}-{'0' * 16}-01", "", id="no span"),
        pytest.param(f"{GIVEN}\r\nX-Admin: yes", "", id="a header more"),
        pytest.param(f"{GIVEN}\n", "", id="a line end"),
        pytest.param("", "", id="nothing"),
    ],
)
def test_a_stranger_s_traceparent_is_taken_only_if_it_is_one(sent, kept):
    assert tracing.read(sent) == kept


ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        pytest.param({}, [], id="nothing"),
        pytest.param({"OTEL_SERVICE_NAME": "x"}, [], id="no exporter"),
        pytest.param(ENDPOINT, ["otlp"], id="endpoint"),
        pytest.param({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/t"}, ["otlp"], id="endpoint of traces"),
        pytest.param({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, [], id="empty is not set"),
        pytest.param({"OTEL_TRACES_EXPORTER": "otlp"}, ["otlp"], id="exporter"),
        pytest.param({"OTEL_TRACES_EXPORTER": "console, otlp,otlp"}, ["console", "otlp"], id="two"),
        pytest.param(ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, [], id="none wins"),
        pytest.param(ENDPOINT | {"OTEL_SDK_DISABLED": "TRUE"}, [], id="disabled"),
        pytest.param(ENDPOINT | {"OTEL_SDK_DISABLED": "1"}, ["otlp"], id="disabled by true alone"),
        pytest.param(ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, ["otlp"], id="protocol"),
        pytest.param(
            ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"},
            ["otlp"],
            id="protocol of traces",
        ),
        pytest.param({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, [], id="a protocol that nobody speaks to"),
    ],
)
def test_the_standard_variables_say_where_spans_go(environ, wanted):
    assert tracing.exporters(environ) == wanted


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        pytest.param({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER", id="exporter"),
        pytest.param(ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL", id="protocol"),
    ],
)
def test_what_we_have_not_got_is_named_and_stops_nothing(environ, named, caplog):
    tracing.configure("test", "certctl-sdk", environ)
    assert named in caplog.text
    with tracing.span("work", parent=GIVEN) as span:
        assert not span.recorded


def test_a_missing_package_is_told_with_the_extra_that_brings_it(monkeypatch, caplog):
    for name in [name for name in sys.modules if name.startswith(("opentelemetry.exporter", "certctl_sdk.spans"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with caplog.at_level(logging.ERROR):
        tracing.configure("test", "certctl-sdk", ENDPOINT)
    assert "certctl-sdk[otlp] is not installed" in caplog.text
    assert tracing.origin("work", {}) == ""


def test_the_environment_s_name_of_the_service_wins(collector, monkeypatch):
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=theirs,deployment.environment=lab")
    tracing.configure("test", "certctl-sdk", collector.environ)
    with tracing.span("work"):
        pass
    tracing.close()
    assert [span.service for span in collector.spans] == ["theirs"]


def test_the_end_does_not_wait_for_a_collector_that_is_away(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(tracing, "CLOSE_SECONDS", 0.2)
    tracing.configure("test", "certctl-sdk", {"OTEL_TRACES_EXPORTER": "otlp"})
    with tracing.span("work"):
        pass
    tracing.close()
    assert tracing.origin("work", {}) == ""


async def test_the_peer_of_a_connector_is_told_the_trace_and_strangers_are_not():
    sent = {}

    def answer(request):
        sent[request.url.host] = request.headers.get("traceparent")
        return httpx.Response(302, headers={"Location": "http://elsewhere.example/"}) if len(sent) == 1 else OK

    client = Client("peer", FakeHost(), "http://peer.example", transport=httpx.MockTransport(answer), redirects=1)
    with tracing.carry(GIVEN):
        await client.get("/")
    assert sent == {"peer.example": GIVEN, "elsewhere.example": None}
    sent.clear()
    await client.exchange("GET", "http://peer.example/again")
    assert sent["peer.example"] is None


OK = httpx.Response(200, json={})
UNTRACED = """
import sys
from certctl_sdk import tracing
from certctl_sdk.http import Client
asked = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}
tracing.configure("test", "certctl-sdk", asked)
with tracing.span("work", parent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"):
    print(*[name for name in sys.modules if name.startswith(("opentelemetry", "requests", "google.protobuf"))])
"""


def test_nothing_of_opentelemetry_is_imported_where_nothing_is_exported():
    done = subprocess.run([sys.executable, "-c", UNTRACED], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
