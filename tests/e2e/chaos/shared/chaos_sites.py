"""What the tests of chaos share: short leases, sites that are deployed to, who looks at them, and the last account."""

import contextlib
import threading
from collections import Counter
from pathlib import Path

from certctl_sdk.testing.crash import broken_histories, unexplained_signatures
from certctl_sdk.testing.fake_ca import FakeCA
from certctl_server import db
from certctl_server.tables import TABLES
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

DYING = Path(__file__).parents[1] / "dying"
"""What is in PYTHONPATH of programs that die where they are told."""
SHORT_LEASES = {
    "CERTCTL_JOB_LEASE": "1s",
    "CERTCTL_AGENT_OFFER_LEASE": "2s",
    "CERTCTL_AGENT_RUN_LEASE": "10s",
    "CERTCTL_SCHEDULER_JOB_PROCESSOR_INTERVAL": "500ms",
    "CERTCTL_SCHEDULER_RETRY_INTERVAL": "1s",
    "CERTCTL_RATE_LIMIT_ENABLED": "false",
}
# What an agent reports is a row of its own beside the move that follows from it.
MOVES = db.Sql(
    """
    SELECT resource_id, details FROM audit_event
    WHERE resource_type = 'job' AND action <> 'job_status_reported' ORDER BY number
    """
)


class Site:
    """One server block with files of its own."""

    def __init__(self, nginx, name):
        self.name, self._port = name, nginx.port
        self.cert, self.key = nginx.cert.parent / f"{name}.crt", nginx.key.parent / f"{name}.key"
        old = FakeCA().bundle(name)
        self.cert.write_text(old.cert_pem)
        self.key.write_text(old.key_pem)
        nginx.site(name, self.cert, self.key)

    def order(self, server, agent):
        """Have the agent deploy a new certificate to here; return its id."""
        config = {"cert_path": str(self.cert), "key_path": str(self.key), "host": "127.0.0.1", "port": self._port}
        commands = {"validate_command": "nginx-check", "reload_command": "nginx-reload"}
        body = {"name": self.name, "type": "NGINX", "agent_id": agent.id, "config": config | commands}
        return server.order(self.name, server.post("targets", body)["id"])["id"]

    def pair(self):
        """What is served from now; read again if it changed while it was read."""
        for _ in range(20):
            before = self._generation()
            found = self.cert.read_bytes(), self.key.read_bytes()
            if self._generation() == before:
                return found
        raise AssertionError(f"{self.cert} changed whenever it was read")

    def _generation(self):
        with contextlib.suppress(FileNotFoundError):
            return (self.cert.parent / f".{self.cert.name}.certctl" / "current").readlink()
        return None


class Observer:
    """Reads what every site is to serve, all the time, and remembers every pair that does not match."""

    def __init__(self, sites):
        self.reads, self.seen, self.wrong = 0, {}, []
        self._sites = sites
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _look(self):
        while not self._over.wait(0.005):
            for site in self._sites:
                try:
                    pair = site.pair()
                    if pair not in self.seen:
                        self.seen[pair] = fits(*pair)
                    if not self.seen[pair]:
                        self.wrong.append(f"{site.name}: the key does not fit the certificate")
                except (AssertionError, OSError, ValueError) as exc:
                    self.wrong.append(f"{site.name}: {exc!r}")
                self.reads += 1


def fits(cert_pem, key_pem):
    key = load_pem_private_key(key_pem, password=None)
    return x509.load_pem_x509_certificate(cert_pem).public_key() == key.public_key()


async def nothing_was_doubled(url, journal):
    """All jobs: each came to a good end, and each order to one certificate, with no signature that nobody explains."""
    await db.connect(url, TABLES)
    try:
        jobs = await db.fetch(db.Sql("SELECT * FROM job"))
        intents = await db.fetch(db.Sql("SELECT * FROM intent ORDER BY job_id, number"))
        moves = await db.fetch(MOVES)
        versions = await db.fetch(db.Sql("SELECT job_id FROM certificate_version"))
    finally:
        await db.close()
    assert {job["status"] for job in jobs} <= {"Completed", "Cancelled"}
    assert {job["last_error"] for job in jobs if job["status"] == "Cancelled"} <= {"superseded by a newer version"}
    orders = [job["id"] for job in jobs if job["type"] in {"Issuance", "Renewal"}]
    assert Counter(version["job_id"] for version in versions) == Counter(orders)
    assert unexplained_signatures(journal, intents) == []
    assert broken_histories(moves, {job["id"]: job["fence"] for job in jobs}) == []
    return jobs
