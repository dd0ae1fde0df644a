"""The product as real processes on loopback, and what looks at it from outside.

A module's processes end with the module; what they said is shown with each test of it that fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from certctl_sdk.http import httpx
from certctl_sdk.testing.fake_ca import FakeCA, csr_pem
from certctl_sdk.testing.nginx import Nginx
from certctl_sdk.testing.postgres import Postgres
from certctl_sdk.testing.redis import Redis
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

BIN = Path(sys.executable).parent
PORTS = range(18_000, 32_000)
START_SECONDS = 60
SHOWN_CHARACTERS = 8000
ADMIN = "an-admin-key-of-the-environment-for-tests"
STAGES = pytest.StashKey[list]()

#: It asks nobody, and so shows what became of an order that was under way for long.
THINKER = """
import asyncio
from certctl_core import hookimpl
from certctl_core.config import ConnectorConfig
from certctl_core.errors import RejectedError
from certctl_core.issuer import Issuer

class Config(ConnectorConfig):
    '''No options.'''

class Thinker(Issuer):
    kind = "Thinker"
    Config = Config
    async def issue(self, request, run):
        await asyncio.sleep(SECONDS)
        raise RejectedError("thought about it")

@hookimpl
def certctl_issuers():
    return [Thinker]
"""


def free_port():
    """Return a port that no outgoing connection of this machine gets by chance before a server takes it."""
    while True:
        port = PORTS[secrets.randbelow(len(PORTS))]
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def wait(done, what, seconds=30.0, pause=0.05):
    """Return the first true answer of ``done``; fail, saying what was waited for, if there is none in time."""
    end = time.monotonic() + seconds
    while not (found := done()):
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds:g} s in vain for {what}")
        time.sleep(pause)
    return found


class Program:
    """One process of ours, in a session of its own, that knows nothing of the environment of the tests."""

    def __init__(self, name, arguments, root, environ):
        self.name = name
        self.log = root / f"{name}.log"
        self.environ = {"PATH": os.environ["PATH"], "HOME": str(root), "LANG": "C.UTF-8", **environ}
        self._arguments = [str(BIN / arguments[0]), *map(str, arguments[1:])]
        self._process = None
        root.mkdir(parents=True, exist_ok=True)

    @property
    def pid(self):
        return self._process.pid

    @property
    def running(self):
        return self._process is not None and self._process.poll() is None

    def launch(self, *, terminal=False):
        """Start it; with a ``terminal``, as if somebody sat there and saw what it says."""
        options = {"env": self.environ, "cwd": self.log.parent, "start_new_session": True}
        if not terminal:
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options
                )
            return
        ours, theirs = pty.openpty()
        self._process = subprocess.Popen(self._arguments, stdin=theirs, stdout=theirs, stderr=theirs, **options)
        os.close(theirs)
        threading.Thread(target=self._watch, args=(ours,), daemon=True).start()

    def _watch(self, terminal):
        with self.log.open("ab", buffering=0) as log, contextlib.suppress(OSError):  # how a terminal ends
            while shown := os.read(terminal, 4096):
                log.write(shown)
        os.close(terminal)

    def end(self, how=signal.SIGTERM, seconds=40):
        """Return how it ended."""
        if self.running:
            os.killpg(self._process.pid, how) if how is signal.SIGKILL else self._process.send_signal(how)
        return self._process.wait(seconds)

    def kill(self):
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)

    @property
    def said(self):
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def state(self):
        """For people who look at a failed test."""
        code = self._process.poll() if self._process else None
        return (
            f"{self.name} {'ran' if self.running else 'did not run' if code is None else f'ended with {code}'} and said"
        )

    def told(self):
        """What it said but for calls that went well."""
        return "\n".join(
            line for line in self.said.splitlines() if '"answered"' not in line or '"status": 2' not in line
        )

    def events(self, event):
        """What it logged under this name, oldest first."""
        found = [json.loads(line) for line in self.said.splitlines() if line.startswith("{")]
        return [each for each in found if each.get("event", each.get("message")) == event]


class Server(Program):
    """``certctl up``, and its API as an admin sees it."""

    def __init__(self, root, *, database_url="", **environ):
        self.data_dir = root / "server"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        where = {"CERTCTL_DATA_DIR": str(self.data_dir)}
        if database_url:
            where |= {
                "CERTCTL_DATABASE_URL": database_url,
                "CERTCTL_CONFIG_ENCRYPTION_KEY": os.urandom(32).hex(),
                "CERTCTL_AUTH_SECRET": ADMIN,
            }
        self.key = ADMIN if "CERTCTL_AUTH_SECRET" in where else ""
        super().__init__("server", ["certctl", "up", "--port", self.port], root, where | environ)
        self._http = None

    def start(self, *, terminal=False, key=""):
        """Return once it is ready; ``key`` is an admin's, if none was left in a file."""
        self.launch(terminal=terminal)
        wait(lambda: not self.running or self.ready(), "/ready to answer 200", START_SECONDS, 0.02)
        assert self.running, "the server ended instead of serving"
        if self._http is None and not terminal:
            self.speak(key or self.key or (self.data_dir / "admin-key").read_text().strip())
        return self

    def speak(self, key):
        """Call the API with this key from now on."""
        self.key = key
        if self._http is not None:
            self._http.close()
        self._http = self.client(key)

    def ready(self):
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/ready", timeout=5).status_code == 200
        return False

    def kill(self):
        super().kill()
        if self._http is not None:
            self._http.close()

    def client(self, key, url=""):
        """Make an HTTP client that speaks with ``key``; whoever makes it closes it."""
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=url or self.url, headers=headers, timeout=30)

    def files(self):
        """Return what is in its data directory, by path; files that come and go meanwhile may be missing."""
        found = {}
        for path in self.data_dir.rglob("*"):
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                found[path] = path.read_bytes()
        return found

    def call(self, method, path, body=None, **query):
        """Return status and body of any answer."""
        answer = self._http.request(method, f"/api/v1/{path}", json=body, params=query)
        return answer.status_code, answer.json() if answer.content else None

    def get(self, path, **query):
        return self._good(*self.call("GET", path, **query))

    def post(self, path, body=None, **query):
        return self._good(*self.call("POST", path, body or {}, **query))

    def put(self, path, body):
        return self._good(*self.call("PUT", path, body))

    def _good(self, status, body):
        assert status < 300, f"{status}: {body}"
        return body

    def all(self, path, **query):
        """Every row of a list that fits on one page, oldest first."""
        found = self.get(path, per_page=500, **query)
        assert found["total"] == len(found["data"])
        return found["data"][::-1]

    def jobs(self, certificate_id, **query):
        return self.all("jobs", certificate_id=certificate_id, **query)

    def audit(self, resource_id):
        return [event["action"] for event in self.all("audit", resource_id=resource_id)]

    def target(self, agent, nginx, **config):
        """Make a target for what ``nginx`` serves; return its id."""
        options = {
            "cert_path": str(nginx.cert),
            "key_path": str(nginx.key),
            "validate_command": "nginx-check",
            "reload_command": "nginx-reload",
            "host": "127.0.0.1",
            "port": nginx.port,
        }
        body = {"name": f"nginx-{nginx.port}", "type": "NGINX", "agent_id": agent.id, "config": options | config}
        return self.post("targets", body)["id"]

    def order(self, name, *target_ids, **more):
        """Order a certificate; return the new row."""
        owners = {"owner_id": "o-unassigned", "team_id": "t-unassigned"}
        body = {"common_name": name, "issuer_id": "iss-local", "target_ids": list(target_ids), **owners, **more}
        return self.post("certificates", body)

    def until(self, path, fits, what, seconds=30.0):
        """Return the object at ``path`` once it ``fits``."""
        last = {}

        def look():
            nonlocal last
            last = self.get(path)
            return last if fits(last) else None

        with contextlib.suppress(pytest.fail.Exception):
            return wait(look, what, seconds)
        return pytest.fail(f"waited {seconds:g} s in vain for {what}; {path} is {last}")

    def served(self, certificate_id, seconds=30.0):
        """Return the row once every target of the certificate proved that it is served."""
        fits = lambda row: row["deployment_state"] == "served" and row["status"] == "Active"  # noqa: E731
        return self.until(f"certificates/{certificate_id}", fits, "the certificate to be served", seconds)

    def sign(self, certificate_id, name, seconds=30.0):
        """Let a key of the caller's be certified; return how long it took."""
        before, began = len(self.fingerprints(certificate_id)), time.monotonic()
        self.post(f"certificates/{certificate_id}/renew", {"csr_pem": csr_pem(name)})
        while len(self.fingerprints(certificate_id)) == before:
            assert time.monotonic() - began < seconds, self.jobs(certificate_id)
            time.sleep(0.05)
        return time.monotonic() - began

    def fingerprints(self, certificate_id):
        """Of every version, oldest first."""
        return [row["fingerprint_sha256"] for row in self.all(f"certificates/{certificate_id}/versions")]

    def root_pem(self, certificate_id):
        """The root above the newest version, as PEM."""
        [*_, newest] = self.all(f"certificates/{certificate_id}/versions")
        [*_, root] = x509.load_pem_x509_certificates(newest["pem_chain"].encode())
        assert root.issuer == root.subject
        root.verify_directly_issued_by(root)
        return root.public_bytes(Encoding.PEM).decode()


class Worker(Program):
    """``certctl-server worker``, on the database and the broker of ``server``."""

    def __init__(self, server, root, name):
        environ = {name: value for name, value in server.environ.items() if name.startswith("CERTCTL_")}
        environ["CERTCTL_DATA_DIR"] = str(root / name)
        super().__init__(name, ["certctl-server", "worker"], root, environ)

    def start(self):
        """Return once it takes jobs."""
        told = len(self.events("worker ready"))
        self.launch()
        wait(lambda: not self.running or len(self.events("worker ready")) > told, "the worker", START_SECONDS)
        assert self.running, "the worker ended instead of working"
        return self


class Agent(Program):
    """``certctl-agent run`` with a state directory of its own; it may touch what ``allow`` says, so nothing at first.

    ``url`` is where it finds the server, if that is not the server itself.
    """

    def __init__(self, server, root, *, name="agent", url="", **environ):
        self.state_dir = root / name
        self._config = self.state_dir / "agent.toml"
        self._server = server
        where = {"CERTCTL_SERVER_URL": url or server.url, "CERTCTL_DATA_DIR": str(self.state_dir)}
        super().__init__(name, ["certctl-agent", "run"], root, where | environ)

    @property
    def id(self):
        return self._identity["id"]

    @property
    def key(self):
        return self._identity["api_key"]

    @property
    def _identity(self):
        return json.loads((self.state_dir / "agent.json").read_text())

    def allow(self, *directories, **commands):
        """Replace what its ``agent.toml`` says; names of commands are spelt with ``_`` for ``-``."""
        lines = [f"directories = {json.dumps([*map(str, directories)])}", "[commands]"]
        lines += [f"{name.replace('_', '-')} = {json.dumps([*map(str, call)])}" for name, call in commands.items()]
        self.state_dir.mkdir(exist_ok=True)
        self._config.write_text("\n".join(lines) + "\n")
        self._config.chmod(0o600)

    def allow_all_of(self, nginx, **commands):
        """Let it write where ``nginx`` reads, and check and reload it."""
        own = {"nginx_check": nginx.check_command, "nginx_reload": nginx.reload_command}
        self.allow(nginx.cert.parent, nginx.key.parent, **own | commands)

    def enroll(self):
        """Let it become an agent of the server, with a token of its own."""
        if not self._config.exists():
            self.allow()
        token = self._server.post("agents/tokens")["token"]
        arguments = [BIN / "certctl-agent", "enroll", "--yes", "--token-file", "-", "--name", self.name]
        done = subprocess.run(
            arguments, env=self.environ, cwd=self.log.parent, input=token, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return self

    def start(self):
        """Let it run; return once the server heard of it."""
        self.launch()
        online = lambda row: row["status"] == "Online" and "capabilities" in row  # noqa: E731
        self._server.until(f"agents/{self.id}", online, "the agent's heartbeat")
        assert self.running, "the agent ended instead of serving"
        return self


@dataclass
class Visitor:
    """A client that trusts one root only and shakes hands in a closed loop, from a thread of its own."""

    port: int
    name: str
    root_pem: str
    seen: list[bytes] = field(default_factory=list)
    """What was served, as DER, handshake by handshake."""
    failures: list[str] = field(default_factory=list)

    def visit(self):
        """Return the certificate, as DER, or raise OSError."""
        context = ssl.create_default_context(cadata=self.root_pem)
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=self.name) as connection,
        ):
            return connection.getpeercert(binary_form=True)

    def sees(self, fingerprint):
        """Whether it gets the certificate with this fingerprint, which it must trust."""
        with contextlib.suppress(OSError):
            return x509.load_der_x509_certificate(self.visit()).fingerprint(SHA256()).hex() == fingerprint
        return False

    def _loop(self, over):
        while not over.is_set():
            try:
                self.seen.append(self.visit())
            except OSError as exc:
                self.failures.append(repr(exc))

    @contextlib.contextmanager
    def visiting(self):
        """Shake hands all the time meanwhile, at least five times after the end of what is done."""
        over = threading.Event()
        thread = threading.Thread(target=self._loop, args=(over,))
        thread.start()
        try:
            yield
            last = len(self.seen) + len(self.failures)
            wait(lambda: len(self.seen) + len(self.failures) >= last + 5, "five more handshakes")
        finally:
            over.set()
            thread.join()


class Receiver:
    """An HTTP endpoint on loopback that keeps what is posted to it and answers ``status``."""

    def __init__(self, status):
        self.status = status
        self.posted = []
        """Bodies, as JSON."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                receiver.posted.append(json.loads(body or b"null"))
                said = receiver.answer(self.path, self.headers.items(), body)
                self.send_response(receiver.status)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            do_GET = do_POST  # noqa: N815  # so http.server finds it

            def log_message(self, *_):
                """Not on the terminal of the tests."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, path, headers, body):
        """A peer that refuses repeats everything it was sent, as some do."""
        if self.status < 400:
            return b""
        told = " ".join([path, body.decode(), *(f"{name}: {value}" for name, value in headers)])
        return json.dumps(dict.fromkeys(("error", "message", "detail"), told)).encode()

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


class Stage:
    """Makes what a module needs, and ends it."""

    def __init__(self, root, stack):
        self.root = root
        self.stack = stack
        self.programs = []

    def _keep(self, program):
        self.programs.append(program)
        self.stack.callback(program.kill)
        return program

    def _place(self, name):
        place = self.root / f"{name}-{len(list(self.root.iterdir()))}"
        place.mkdir()
        return place

    def server(self, *, database_url="", **environ):
        """Make a server on a fresh SQLite file, or on a database that is ready; start it yourself."""
        return self._keep(Server(self._place("server"), database_url=database_url, **environ))

    def worker(self, server, name="worker"):
        """Make a worker beside a server that has a broker; start it yourself."""
        return self._keep(Worker(server, self._place(name), name))

    def agent(self, server, *, name="agent", url="", **environ):
        """Enrol an agent with a running server; start it yourself."""
        return self._keep(Agent(server, self._place(name), name=name, url=url, **environ)).enroll()

    def nginx(self, tls=None):
        """Make a running NGINX that serves a certificate which nobody trusts, from plain files below ``tls``."""
        root = self._place("nginx")
        tls = tls or root
        nginx = Nginx(root, cert=tls / "certs" / "site.crt", key=tls / "private" / "site.key")
        old = FakeCA().bundle("old.example")
        nginx.cert.write_text(old.cert_pem)
        nginx.key.write_text(old.key_pem)
        nginx.key.chmod(0o600)
        return self.stack.enter_context(nginx)

    def receiver(self, status=200):
        """Make an endpoint for notifiers; the server needs CERTCTL_EGRESS_ALLOW=127.0.0.1 to reach it."""
        return self.stack.enter_context(Receiver(status))

    def distribution(self, directory, name, source, version="1.0"):
        """Install a connector package of one module into a directory for PYTHONPATH."""
        module = name.replace("-", "_")
        (info := directory / f"{module}-{version}.dist-info").mkdir(parents=True)
        (directory / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: certctl-core>=1.0,<2\n"
        )
        (info / "entry_points.txt").write_text(f"[certctl]\n{name} = {module}\n")

    def thinker(self, seconds):
        """Install an issuer ``Thinker`` that thinks for so long and then refuses; return the PYTHONPATH."""
        place = self._place("packages")
        self.distribution(place, "certctl-issuer-thinker", THINKER.replace("SECONDS", str(seconds)))
        return place

    def visitor(self, nginx, name, root_pem):
        """Make a client of ``nginx``."""
        return Visitor(nginx.port, name, root_pem)

    def run(self, program, *arguments, code=0, **environ):
        """Run one of our commands to its end, on ``program``'s environment and more; return what came of it."""
        command = [str(BIN / arguments[0]), *map(str, arguments[1:])]
        environ = program.environ | environ
        done = subprocess.run(
            command, env=environ, cwd=self.root, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done


@pytest.fixture(scope="module")
def stage(tmp_path_factory, request):
    """Where the processes of a module are made."""
    with contextlib.ExitStack() as stack:
        made = Stage(tmp_path_factory.mktemp(request.module.__name__.rpartition(".")[2]), stack)
        request.node.stash[STAGES] = [made]
        yield made


@pytest.fixture(scope="session")
def postgres():
    """A private PostgreSQL."""
    with Postgres() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def redis():
    """A private Redis."""
    with Redis() as server:
        yield server


@pytest.fixture(scope="session")
def waiting():
    """``wait``, for test modules."""
    return wait


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.failed:
        module = item.getparent(pytest.Module)
        for stage in module.stash.get(STAGES, []) if module else []:
            report.sections += [(each.state, each.told()[-SHOWN_CHARACTERS:]) for each in stage.programs]
    return report
