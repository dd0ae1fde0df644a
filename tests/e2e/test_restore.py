"""A server that is restored to what it was earlier does nothing twice, tells of it, and goes on."""

import json
import re
import shutil
import signal
import subprocess
from hashlib import sha256

import pytest
from certctl_sdk.testing.fake_ca import csr_pem

NAME = "web.example.com"
WAYS = ("restore", "copied back", "postgres")


class Saved:
    """One way to save what a server knows, and to bring it back once it was killed."""

    def __init__(self, stage, server, way, url):
        self._stage, self._server, self._url = stage, server, url
        self._file = stage.root / f"saved-{WAYS.index(way)}"
        self._way = way

    def save(self):
        if self._url:
            self._tool("pg_dump", "-Fc", "-f", self._file, self._url)
        else:
            said = self._stage.run(self._server, "certctl", "backup", self._file).stdout
            assert "keep a copy of that apart" in said

    def bring_back(self):
        if self._url:
            self._tool("pg_restore", "--clean", "--if-exists", "-d", self._url, self._file)
        elif self._way == "restore":
            said = self._stage.run(self._server, "certctl", "restore", self._file).stdout
            assert "this is epoch 2" in said
        else:
            for part in ("-wal", "-shm"):
                (self._server.data_dir / f"certctl.db{part}").unlink(missing_ok=True)
            shutil.copy(self._file, self._server.data_dir / "certctl.db")

    def _tool(self, *command):
        subprocess.run([*map(str, command)], check=True, capture_output=True)


@pytest.fixture(scope="module", params=WAYS)
def way(request):
    return request.param


@pytest.fixture(scope="module")
def url(way, request):
    return request.getfixturevalue("postgres").create("restored") if way == "postgres" else ""


@pytest.fixture(scope="module")
def server(stage, url):
    return stage.server(database_url=url).start()


def leader(stage, server):
    """The epoch of who leads, as the doctor sees it."""
    told = json.loads(stage.run(server, "certctl", "doctor", "--format", "json").stdout)
    assert told["state"] != "fail"
    [found] = [each["found"] for each in told["findings"] if each["check"] == "leader"]
    return int(re.search(r"epoch (\d+)", found)[1])


def issued(server, name):
    """Get a certificate for a CSR made here."""
    certificate = server.order(name)["id"]
    server.post(f"certificates/{certificate}/renew", {"csr_pem": csr_pem(name)})
    return server.until(f"certificates/{certificate}", lambda row: row["status"] == "Active", "the certificate")


def test_after_a_restore_nothing_is_done_twice_and_all_of_it_is_told(stage, server, way, url, waiting):
    nginx = stage.nginx()
    agent = stage.agent(server, name=f"agent-{WAYS.index(way)}")
    agent.allow_all_of(nginx)
    agent.start()
    certificate = server.order(NAME, server.target(agent, nginx))["id"]
    first = server.served(certificate)["fingerprint"]
    agent.end()
    renewal = server.post(f"certificates/{certificate}/renew")["job_id"]
    epoch = leader(stage, server)
    for name in ("admin-key", "enrol-token"):
        (server.data_dir / name).unlink(missing_ok=True)
    saved = Saved(stage, server, way, url)
    saved.save()

    agent.start()
    waiting(lambda: len(server.fingerprints(certificate)) > 1, "the second version")
    second = server.served(certificate)["fingerprint"]
    lost = issued(server, "lost.example.com")
    visitor = stage.visitor(nginx, NAME, server.root_pem(certificate))
    seen = json.loads((server.data_dir / "audit-head").read_text())

    server.end(signal.SIGKILL)
    agent.end()  # else it would wait for half a minute before it asks again
    with visitor.visiting():
        saved.bring_back()
        server.start()
        agent.start()
        server.until(f"jobs/{renewal}", lambda row: row["status"] == "Completed", "the order to be settled")
        third = server.served(certificate, 60)["fingerprint"]
    served = {sha256(der).hexdigest() for der in visitor.seen}
    assert first not in served, "an older certificate was deployed over a newer one"
    assert served <= {second, third}

    orders = [row["id"] for row in server.jobs(certificate) if row["type"] != "Deployment"]
    assert (len(orders), orders[-1]) == (2, renewal)
    assert len(server.fingerprints(certificate)) == 2
    assert server.call("GET", f"certificates/{lost['id']}")[0] == 404
    assert "order_repeated" in server.audit(renewal)
    [restore] = server.all("audit", action="database_restored")
    assert restore["details"]["epoch"] == 2
    assert restore["details"]["seen_sequence"] >= seen["sequence"] > restore["details"]["sequence"]
    assert restore["details"]["orders_in_doubt"] == 1
    assert leader(stage, server) > max(epoch, 1_000_000_000)
    assert not [name for name in ("admin-key", "enrol-token") if (server.data_dir / name).exists()]
    verified = stage.run(server, "certctl-server", "audit", "verify").stdout
    assert f"{restore['details']['seen_sequence']} was seen before" in verified

    later = issued(server, "later.example.com")
    assert server.end() == 0
    server.start()
    assert server.get(f"certificates/{later['id']}")["status"] == "Active"
    assert len(server.all("audit", action="database_restored")) == 1
    agent.end()
