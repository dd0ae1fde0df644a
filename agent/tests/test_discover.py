from __future__ import annotations

import json

import pytest
from certctl_agent import discover as discover_module
from certctl_agent.api import AgentApi, Server
from certctl_agent.discover import discover
from certctl_core.config import ConnectorConfig
from certctl_core.errors import TransientError
from certctl_core.plugins import Plugins
from certctl_core.scanner import Finding, Scanner
from certctl_sdk.egress import Guard
from certctl_sdk.testing.fake_ca import FakeCA
from pydantic import Field


class Config(ConnectorConfig):
    directories: tuple[str, ...] = Field(description="x")


def scanner(*found, error=None):
    class FakeScanner(Scanner):
        kind = "Filesystem"

        async def scan(self, request, run):
            assert self.config.directories == ("/srv/tls",)
            for pem in found:
                yield Finding(cert_pem=pem, source_path="/srv/tls/a.crt", source_format="PEM")
            if error:
                raise error

    FakeScanner.Config = Config
    return Plugins(scanners={"Filesystem": FakeScanner})


@pytest.fixture
def scan(plane, tmp_path):
    """Scan with a scanner and return what the server got."""
    (tmp_path / "stores").mkdir()

    async def run(plugins):
        server = Server(plane.url, key="own-key")
        api = AgentApi(server, "ag-1")
        await discover(["/srv/tls"], api=api, plugins=plugins, egress=Guard(private_allowed=True), state_dir=tmp_path)
        server.close()
        return [json.loads(raw) for _, path, raw in plane.seen if path.endswith("/discoveries")]

    return run


async def test_certificates_found_are_reported_as_the_api_describes_them(scan):
    bundle = FakeCA().bundle("a.example", "b.example")
    [report] = await scan(scanner(bundle.cert_pem))
    assert (report["agent_id"], report["directories"]) == ("ag-1", ["/srv/tls"])
    [entry] = report["certificates"]
    assert entry["sans"] == ["a.example", "b.example"]
    assert (entry["key_algorithm"], entry["key_size"], entry["is_ca"]) == ("ECDSA", 256, False)
    assert entry["pem_data"] == bundle.cert_pem
    assert entry["not_after"].endswith("Z")
    assert (entry["source_path"], entry["source_format"]) == ("/srv/tls/a.crt", "PEM")


async def test_nothing_found_is_no_report(scan):
    assert await scan(scanner()) == []


async def test_much_is_reported_in_parts_that_a_server_takes(scan):
    pem = FakeCA().bundle(*(f"host-{number}.a.example" for number in range(200))).cert_pem
    reports = await scan(scanner(*[pem] * 120))
    assert len(reports) > 1
    assert sum(len(report["certificates"]) for report in reports) == 120
    assert max(len(json.dumps(report)) for report in reports) < 1024 * 1024


async def test_what_cannot_be_read_or_scanned_is_reported_as_an_error(scan):
    pem = FakeCA().bundle("a.example").cert_pem
    [report] = await scan(scanner("nonsense", pem, error=TransientError("the disk does not answer")))
    assert len(report["certificates"]) == 1
    assert "no certificate can be read" in report["errors"][0]
    assert report["errors"][1] == "the disk does not answer"


async def test_an_agent_without_the_scanner_says_so(scan):
    [report] = await scan(Plugins())
    assert f"no connector of kind {discover_module.KIND}" in report["errors"][0]
