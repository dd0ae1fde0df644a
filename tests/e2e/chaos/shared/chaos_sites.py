"""What the tests of chaos share: short leases, sites that are deployed to, and who looks at them all the time."""

import contextlib
import threading
from pathlib import Path

from certctl_sdk.testing.fake_ca import FakeCA
from certctl_server import db
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
MOVES = db.Sql("SELECT resource_id, details FROM audit_event WHERE resource_type = 'job' ORDER BY number")


class Site:
    """One server block with files of its own."""

    def __init__(self, nginx, name):
        self.name = name
        self.cert, self.key = nginx.cert.parent / f"{name}.crt", nginx.key.parent / f"{name}.key"
        old = FakeCA().bundle(name)
        self.cert.write_text(old.cert_pem)
        self.key.write_text(old.key_pem)
        nginx.site(name, self.cert, self.key)

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
