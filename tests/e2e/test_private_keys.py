"""A private key stays on the machine that serves it: not on the wire, not at the server, not in its backups."""

import base64
import re
import socket
import sqlite3
import threading
from contextlib import closing, suppress

import pytest
from certctl_server import db, sealing, start
from certctl_server.settings import Database, Settings
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

MARKER = b"PRIVATE KEY"
FORMS = {
    "PKCS #8": (Encoding.DER, PrivateFormat.PKCS8),
    "SEC 1": (Encoding.DER, PrivateFormat.TraditionalOpenSSL),
}
BREAKS = re.compile(rb"\\r|\\n|\s")


def traces(key):
    """What gives the key away, whatever it is wrapped in: by name, bytes that look like nothing else."""
    scalar = key.private_numbers().private_value.to_bytes((key.curve.key_size + 7) // 8, "big")
    found = {"scalar": scalar, "hex": scalar.hex().encode(), "HEX": scalar.hex().upper().encode()}
    found["decimal"] = str(key.private_numbers().private_value).encode()
    for name, (encoding, form) in FORMS.items():
        found[name] = key.private_bytes(encoding, form, NoEncryption())
    for offset in range(3):
        # The same bytes look different at each place of a group of three; the ends depend on the neighbours.
        core = base64.b64encode(bytes(offset) + scalar)[4:-4]
        found[f"base64 at {offset}"] = core
        found[f"base64url at {offset}"] = core.translate(bytes.maketrans(b"+/", b"-_"))
    return found


def leaks(haystack, keys):
    """What of ``keys`` is in ``haystack``, by name."""
    texts = (haystack, BREAKS.sub(b"", haystack))
    found = {"marker"} if any(MARKER in text for text in texts) else set()
    return found | {name for key in keys for name, trace in traces(key).items() if any(trace in text for text in texts)}


class Wire:
    """Passes bytes on between agents and a server, and keeps all of them."""

    def __init__(self, port):
        self._upstream = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.up, self.down = bytearray(), bytearray()
        self._ends, self._threads = [], []

    def __enter__(self):
        self._run(self._accept)
        return self

    def __exit__(self, *_):
        for open_socket in [self._listener, *self._ends]:
            with suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)
        while self._threads:
            self._threads.pop().join()
        for open_socket in [self._listener, *self._ends]:
            open_socket.close()

    def _run(self, work, *arguments):
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._upstream))
                self._ends += [near, far]
                self._run(self._pass, near, far, self.up)
                self._run(self._pass, far, near, self.down)

    @staticmethod
    def _pass(source, sink, record):
        with suppress(OSError):
            while piece := source.recv(65536):
                record += piece
                sink.sendall(piece)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def server(stage, request):
    url = request.getfixturevalue("postgres").create("private_keys") if request.param == "postgres" else ""
    return stage.server(database_url=url, CERTCTL_LOG_LEVEL="debug").start()


@pytest.fixture(scope="module")
def wire(server):
    with Wire(server.port) as wire:
        yield wire


@pytest.fixture(scope="module")
def ours(stage, server, wire, waiting):
    """Every key that was made in a run with a renewal, a failed deployment and one that waits for its certificate."""
    nginx = stage.nginx()
    agent = stage.agent(server, url=wire.url, CERTCTL_VERIFY_DELAY="50ms", CERTCTL_LOG_LEVEL="debug")
    agent.allow_all_of(nginx)
    agent.start()
    target = server.target(agent, nginx)
    certificate = server.order("web.example.com", target)["id"]
    server.served(certificate)
    server.post(f"certificates/{certificate}/renew")
    waiting(lambda: len(server.fingerprints(certificate)) == 2, "the renewal")
    server.served(certificate)
    agent.allow_all_of(nginx, nginx_check=("sh", "-c", "cat site.key; exit 1"))
    server.post(f"certificates/{certificate}/renew")
    waiting(lambda: any(job["status"] == "Failed" for job in server.jobs(certificate)), "a deployment to fail")
    paths = [path for place in (agent.state_dir, nginx.root) for path in place.rglob("*") if path.is_file()]
    texts = {path.read_bytes() for path in paths if MARKER in path.read_bytes()}
    keys = [load_pem_private_key(text[text.index(b"-----BEGIN") :], None) for text in texts]
    assert len({key.private_numbers().private_value for key in keys}) >= 3
    agent.end()
    return keys, agent


@pytest.fixture(scope="module")
def keys(ours):
    return ours[0]


WRAPPINGS = {
    "PEM in JSON": lambda pem, _: pem.replace(b"\n", b"\\n"),
    "body of a PEM": lambda pem, _: b"".join(pem.splitlines()[1:-1]),
    "DER among bytes": lambda _, der: b"\0\1" + der + b"\2",
    "DER in hex": lambda _, der: der.hex().encode(),
    "base64 of more": lambda _, der: base64.urlsafe_b64encode(b"x" + der),
    "base64 in lines": lambda _, der: base64.encodebytes(b"xy" + der),
}


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_key_is_found_however_it_is_wrapped(wrapping, curve):
    key, other = ec.generate_private_key(curve), ec.generate_private_key(curve)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    text = WRAPPINGS[wrapping](pem, key.private_bytes(*FORMS["SEC 1"], NoEncryption()))
    assert leaks(text, [key])
    assert leaks(text, [other]) <= {"marker"}


def test_nothing_of_a_private_key_crosses_the_wire(keys, wire):
    up, down = bytes(wire.up), bytes(wire.down)
    assert up.count(b"BEGIN CERTIFICATE REQUEST") == 3
    assert down.count(b"-----BEGIN CERTIFICATE-----") >= 6
    assert leaks(up, keys) == leaks(down, keys) == set()


def test_nothing_of_a_private_key_is_in_the_files_of_the_server(keys, server):
    for path, content in (server.files() | {server.log: server.log.read_bytes()}).items():
        assert leaks(content, keys) == set(), path


def test_nothing_of_a_private_key_is_in_the_log_of_the_agent(ours):
    keys, agent = ours
    assert leaks(agent.log.read_bytes(), keys) == set()


def test_nothing_of_a_private_key_is_in_a_backup(keys, server, request, tmp_path):
    copy = backup(server, request, tmp_path)
    assert b"BEGIN CERTIFICATE REQUEST" in copy
    assert leaks(copy, keys) == set()


async def test_the_key_of_our_own_authority_is_stored_sealed_only(keys, server, request, tmp_path):
    key = await authority_key(server)
    copy = backup(server, request, tmp_path)
    for found in [copy, server.log.read_bytes(), *server.files().values()]:
        assert leaks(found, [key]) == set()


def backup(server, request, tmp_path):
    if "CERTCTL_DATABASE_URL" in server.environ:
        return request.getfixturevalue("postgres").dump("private_keys")
    with (
        closing(sqlite3.connect(f"file:{server.data_dir}/certctl.db?mode=ro", uri=True)) as live,
        closing(sqlite3.connect(tmp_path / "backup.db")) as copy,
    ):
        live.backup(copy)
    return (tmp_path / "backup.db").read_bytes()


async def authority_key(server):
    """Open what is sealed, as the server does."""
    database = Database(url=server.environ.get("CERTCTL_DATABASE_URL", ""))
    seal = server.environ.get("CERTCTL_CONFIG_ENCRYPTION_KEY", "")
    settings = Settings(data_dir=server.data_dir, database=database, config_encryption_key=seal)
    async with start.connected(settings):
        cipher = await sealing.load(settings)
        rows = await db.fetch(db.Sql("SELECT connector_id || '/' || name AS place, value FROM connector_memory"))
    opened = [cipher.open(row["value"], sealing.place("connector_memory", row["place"], "value")) for row in rows]
    [pem] = [
        match for text in opened for match in re.findall(r"-----BEGIN [A-Z ]*PRIVATE KEY.*?KEY-----", text, re.DOTALL)
    ]
    return load_pem_private_key(pem.replace("\\n", "\n").encode(), None)
