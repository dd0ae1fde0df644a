"""A control plane on a loopback socket, a service with TLS, and the agent as a process between them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from certctl_core.job import JobState, check
from certctl_sdk.testing.fake_ca import FakeCA
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

PLUGIN = '''
from functools import partial
from pathlib import Path

from certctl_core import hookimpl
from certctl_core.config import ConnectorConfig
from certctl_core.target import Endpoint, Receipt, Target
from certctl_sdk.commands import named, run as run_command
from certctl_sdk.files import ServedFile, deploy_files, roll_back_files
from pydantic import Field


class FilesConfig(ConnectorConfig):
    cert_path: Path = Field(description="x")
    key_path: Path = Field(description="x")
    check_command: str = Field(description="x")
    reload_command: str = Field(description="x")
    port: int | None = Field(None, description="x")


class FilesTarget(Target):
    kind = "Files"
    Config = FilesConfig

    async def deploy(self, request, run):
        step = {
            name: partial(run_command, named(getattr(self.config, f"{name}_command"), self.host.allowed), step=name)
            for name in ("check", "reload")
        }
        bundle = request.bundle
        files = [
            ServedFile(self.config.cert_path, bundle.cert_pem + bundle.chain_pem, 0o644),
            ServedFile(self.config.key_path, bundle.key_pem, 0o600),
        ]
        return await deploy_files(files, self.host.allowed, **step, verify=request.verify)

    async def endpoints(self, run):
        return (Endpoint(host="127.0.0.1", port=self.config.port),) if self.config.port else ()


class CarelessTarget(FilesTarget):
    """Keeps the older contract: it does not look at ``request.verify``."""

    kind = "Careless"

    async def deploy(self, request, run):
        return await super().deploy(type(request)(bundle=request.bundle, names=request.names), run)

    async def rollback(self, request, run):
        reload = partial(run_command, named(self.config.reload_command, self.host.allowed), step="reload")
        paths = [self.config.cert_path, self.config.key_path]
        await roll_back_files(paths, request.receipt, self.host.allowed, reload=reload)


class BuggyTarget(FilesTarget):
    kind = "Buggy"

    async def deploy(self, request, run):
        raise ZeroDivisionError("oops")


@hookimpl
def certctl_targets():
    return [FilesTarget, CarelessTarget, BuggyTarget]
'''


class ControlPlane:
    """Speaks the server's side of the agent's contract and holds real state; ``faults`` lists what an agent broke."""

    def __init__(self) -> None:
        self.ca = FakeCA()
        self.url = ""
        self.agents: dict[str, str] = {}
        self.tokens: set[str] = set()
        self.jobs: dict[str, dict[str, Any]] = {}
        self.certificates: dict[str, str] = {}
        self.csrs: dict[str, str] = {}
        self.targets: dict[str, dict[str, Any]] = {}
        self.verifications: list[tuple[str, dict[str, Any]]] = []
        self.beats: list[dict[str, Any]] = []
        self.seen: list[tuple[str, str, bytes]] = []
        self.faults: list[str] = []
        self.forced: dict[str, tuple[int, dict[str, Any]]] = {}
        self.waits = True
        self.closing = False
        self.key_for_csr = {"key_algorithm": "ECDSA", "key_size": 256}
        self.at: tuple[str, str, Callable[[], object]] | None = None
        """Where (a regular expression over ``METHOD path body``), when (before, after), and what to do once."""
        self._leased: set[str] = set()
        self._boot = ""
        self.changed = threading.Condition()

    def close(self) -> None:
        """Answer all who wait."""
        with self.changed:
            self.closing = True
            self.changed.notify_all()

    def order(self, certificate_id: str, *names: str, agent: str = "ag-1") -> str:
        """Want a new certificate; return the id of its job."""
        with self.changed:
            job_id = f"job-{len(self.jobs) + 1}"
            self.jobs[job_id] = {
                "id": job_id, "type": "Issuance", "certificate_id": certificate_id, "common_name": names[0],
                "sans": list(names), "status": "AwaitingCSR", **self.key_for_csr, "agent": agent,
            }  # fmt: skip
            self.changed.notify_all()
            return job_id

    def deployments(self) -> list[dict[str, Any]]:
        """The deployment jobs, in the order they were made."""
        return [job for job in self.jobs.values() if job["type"] == "Deployment"]

    def until(self, done: Callable[[], object], seconds: float = 20) -> None:
        """Wait for ``done``."""
        with self.changed:
            if not self.changed.wait_for(done, seconds):
                pytest.fail(f"not in {seconds} s; jobs: {self.jobs}; last calls: {[s[:2] for s in self.seen[-8:]]}")

    def deploy_again(self, job_id: str) -> None:
        """What the schedule or a person does with a failed job."""
        with self.changed:
            self._leased.discard(job_id)
            self.jobs[job_id]["status"] = "Pending"
            self.changed.notify_all()

    def answer(self, method: str, path: str, query: str, body: dict[str, Any], key: str) -> tuple[int, dict[str, Any]]:
        """One request, authenticated as the real server would."""
        for pattern, forced in self.forced.items():
            if re.search(pattern, f"{method} {path}"):
                return forced
        if (method, path) == ("POST", "/api/v1/agents"):
            return self._register(body, key)
        agent_id = next((name for name, known in self.agents.items() if known == key), None)
        if agent_id is None:
            return 401, {"error": "Unauthorized", "message": "Invalid API key"}
        if path == "/api/v1/auth/check":
            return 200, {"status": "authenticated", "role": "agent"}
        if match := re.fullmatch(r"/api/v1/jobs/([^/]+)/verify", path):
            return self._verified(match[1], body)
        if not (match := re.fullmatch(rf"/api/v1/agents/{agent_id}/(.+)", path)):
            return 403, {"error": "Forbidden", "message": "not yours"}
        return self._own(method, match[1], query, body)

    def _own(self, method: str, rest: str, query: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        match method, rest.split("/"):
            case "POST", ["heartbeat"]:
                self.beats.append(body)
                if body["boot_id"] != self._boot:
                    self._boot, self._leased = body["boot_id"], set()
                return 200, {"status": "heartbeat_recorded"}
            case "GET", ["work"]:
                return self._work(query)
            case "POST", ["csr"]:
                return self._csr(body)
            case "GET", ["certificates", certificate_id]:
                pem = self.certificates.get(certificate_id)
                return (200, {"certificate_pem": pem}) if pem else (404, {"message": "Certificate not found"})
            case "POST", ["jobs", job_id, "status"]:
                return self._status(job_id, body)
            case "POST", ["discoveries"]:
                return 202, {}
        return 404, {"message": "Not Found"}

    def _register(self, body: dict[str, Any], key: str) -> tuple[int, dict[str, Any]]:
        if key not in self.tokens:
            return 401, {"error": "Unauthorized", "message": "Invalid API key"}
        self.tokens.discard(key)
        self.agents["ag-1"] = "own-key"
        return 201, {"id": "ag-1", "api_key": "own-key", **body}

    def _work(self, query: str) -> tuple[int, dict[str, Any]]:
        if query and not self.waits:
            return 400, {"error": "Bad Request", "message": "unknown query parameter wait"}
        boot = self._boot
        if query:
            self.changed.wait_for(lambda: self._due() or self._boot != boot or self.closing, int(query[5:]))
        items = self._due() if self._boot == boot else []  # nobody is left to hear an earlier run's answer
        self._leased |= {job["id"] for job in items}
        return 200, {"jobs": items, "count": len(items)}

    def _due(self) -> list[dict[str, Any]]:
        def offered(job: dict[str, Any]) -> bool:
            if job["id"] in self._leased:
                return False
            return job["status"] == "AwaitingCSR" or (job["type"] == "Deployment" and job["status"] in OPEN)

        return [job for job in self.jobs.values() if offered(job)]

    def _csr(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        mine = [job for job in self.jobs.values() if job["certificate_id"] == body["certificate_id"]]
        job = next(job for job in reversed(mine) if job["type"] == "Issuance")
        if self.csrs.setdefault(job["id"], body["csr_pem"]) != body["csr_pem"]:
            self.faults.append(f"another CSR for {job['id']}")
            return 400, {"error": "Bad Request", "message": "another CSR for this job"}
        if job["status"] == "AwaitingCSR":
            leaf = self.ca.sign(body["csr_pem"])
            self.certificates[job["certificate_id"]] = leaf
            job["status"] = "Completed"
            for target_id, target in self.targets.items():
                job_id = f"job-{len(self.jobs) + 1}"
                self.jobs[job_id] = {
                    "id": job_id, "type": "Deployment", "status": "Pending", "certificate_id": job["certificate_id"],
                    "target_id": target_id, "expected_fingerprint": sha256_of(leaf), **target,
                }  # fmt: skip
        return 202, {"status": "csr_signed"}

    def _status(self, job_id: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if not (job := self.jobs.get(job_id)):
            return 404, {"message": "Job not found"}
        old = job["status"]
        if body["status"] != old:
            try:
                check(JobState(old), JobState(body["status"]))
            except ValueError as exc:
                return 409, {"error": "Conflict", "message": str(exc)}
            job["status"] = body["status"]
        job["reports"] = [*job.get("reports", []), body]
        return 200, {"status": "updated"}

    def _verified(self, job_id: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        job = self.jobs[job_id]
        if body["target_id"] != job["target_id"] or body["expected_fingerprint"] != job["expected_fingerprint"]:
            self.faults.append(f"verification of something else: {body}")
            return 400, {"message": "target_id or expected_fingerprint is not the job's"}
        self.verifications.append((job_id, body))
        return 200, {"job_id": job_id, "verified": body["verified"]}


OPEN = frozenset({"Pending", "Running"})


def sha256_of(pem: str) -> str:
    return hashlib.sha256(x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER)).hexdigest()


def _handler(plane: ControlPlane) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._serve(b"")

        def do_POST(self) -> None:
            self._serve(self.rfile.read(int(self.headers.get("Content-Length", 0))))

        def _serve(self, raw: bytes) -> None:
            path, _, query = self.path.partition("?")
            line = f"{self.command} {path} {raw.decode()}"
            key = self.headers.get("Authorization", "").removeprefix("Bearer ")
            with plane.changed:
                plane.seen.append((self.command, self.path, raw))
                plane.changed.notify_all()
                if self._struck(line, "before"):
                    return
                status, answer = plane.answer(self.command, path, query, json.loads(raw or b"{}"), key)
                plane.changed.notify_all()
                if self._struck(line, "after"):
                    return
            data = json.dumps(answer).encode() + b"\n"
            with contextlib.suppress(ConnectionError):
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def _struck(self, line: str, when: str) -> bool:
            if plane.at and plane.at[1] == when and re.search(plane.at[0], line, re.DOTALL):
                strike, plane.at = plane.at[2], None
                strike()
                self.close_connection = True
                return True
            return False

        def log_message(self, *_: object) -> None:
            pass

    return Handler


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, address: Any) -> None:
        """Agents that are killed, and handshakes that are meant to fail, are no news."""


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Serve a control plane, with TLS if a certificate and key file are given; return its address."""
    with contextlib.ExitStack() as running:

        def start(plane: ControlPlane, chain: Path | None = None, key: Path | None = None) -> str:
            server = _Quiet(("127.0.0.1", 0), _handler(plane))
            if chain and key:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(chain, key)
                server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
            thread.start()
            running.callback(server.server_close)
            running.callback(server.shutdown)
            running.callback(plane.close)
            plane.url = f"{'https' if chain else 'http'}://127.0.0.1:{server.server_address[1]}"
            return plane.url

        yield start


@pytest.fixture
def plane(serve: Callable[..., str]) -> ControlPlane:
    """A control plane that knows one agent."""
    plane = ControlPlane()
    plane.agents["ag-1"] = "own-key"
    serve(plane)
    return plane


class Service:
    """Reads its certificate and key anew for every handshake, and remembers when they did not fit."""

    def __init__(self, root: Path) -> None:
        self.cert, self.key = root / "site.crt", root / "site.key"
        self.misfits: list[str] = []
        self.pinned: ssl.SSLContext | None = None
        """Serve this instead, whatever the files say."""
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def context(self) -> ssl.SSLContext:
        """What the files say now."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, self.key)
        return context

    def fits(self) -> bool:
        """Whether both files are there and belong together, or neither is there."""
        if not self.cert.exists() and not self.key.exists():
            return True
        try:
            self.context()
        except (OSError, ssl.SSLError) as exc:
            self.misfits.append(str(exc))
            return False
        return True

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                with contextlib.suppress(OSError), connection:
                    connection.settimeout(5)
                    (self.pinned or self.context()).wrap_socket(connection, server_side=True).close()

    def close(self) -> None:
        """Stop."""
        self._socket.close()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A service on this machine."""
    root = tmp_path / "tls"
    root.mkdir()
    service = Service(root)
    yield service
    service.close()


class AgentProcess:
    """``certctl-agent run`` as systemd would start it."""

    def __init__(self, root: Path, plane: ControlPlane, plugins: Path) -> None:
        self.state = root / "state"
        self.toml = self.state / "agent.toml"
        self.log = root / "agent.log"
        self._plane = plane
        self.environ = {
            "PATH": os.environ["PATH"], "PYTHONPATH": str(plugins), "HOME": str(root),
            "CERTCTL_DATA_DIR": str(self.state),
            "CERTCTL_SERVER_URL": plane.url, "CERTCTL_AGENT_ID": "ag-1", "CERTCTL_API_KEY": "own-key",
            "CERTCTL_VERIFY_DELAY": "10ms", "CERTCTL_VERIFY_TIMEOUT": "2s", "CERTCTL_LOG_FORMAT": "text",
        }  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None
        self.state.mkdir(mode=0o700)

    def allow(self, *directories: Path, **commands: list[str]) -> None:
        """Write agent.toml."""
        lines = [f"directories = {json.dumps([str(each) for each in directories])}", "[commands]"]
        self.toml.write_text("\n".join([*lines, *(f"{name} = {json.dumps(args)}" for name, args in commands.items())]))

    def start(self, *arguments: str) -> None:
        """Start it."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "certctl_agent", *arguments], env=self.environ, stderr=log, stdout=log
            )

    def kill(self) -> None:
        """As a power cut would."""
        assert self.process
        self.process.kill()

    def ended(self, seconds: float = 20) -> int:
        """Wait for its end; return the exit code."""
        assert self.process
        return self.process.wait(seconds)

    def stop(self) -> int:
        """As systemd would."""
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        return self.ended()

    @property
    def said(self) -> str:
        """Its log."""
        return self.log.read_text()

    def close(self) -> None:
        """Make sure that it is gone."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def agent(tmp_path: Path, plane: ControlPlane) -> Iterator[AgentProcess]:
    """An agent with a target connector for plain files; not started."""
    plugins = tmp_path / "plugins"
    info = plugins / "agent_test_targets-1.0.dist-info"
    info.mkdir(parents=True)
    (plugins / "agent_test_targets.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: agent-test-targets\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[certctl]\ntarget-files = agent_test_targets\n")
    process = AgentProcess(tmp_path, plane, plugins)
    yield process
    process.close()
    if os.environ.get("SHOW_AGENT_LOG"):
        sys.stderr.write(process.said)


@pytest.fixture
def deployable(plane: ControlPlane, agent: AgentProcess, service: Service) -> Path:
    """Map a target at the service to every certificate; return the script that its reload runs."""
    script = service.cert.parent / "reload.sh"
    script.write_text("#!/bin/sh\n:\n")
    script.chmod(0o755)
    agent.allow(service.cert.parent, check=["true"], reload=[str(script)])
    plane.targets["tgt-1"] = {
        "target_type": "Files",
        "target_config": {
            "cert_path": str(service.cert), "key_path": str(service.key), "check_command": "check",
            "reload_command": "reload", "port": service.port,
        },
    }  # fmt: skip
    return script


def wait_until(done: Callable[[], object], seconds: float = 10) -> None:
    """Poll for what no condition announces."""
    until = time.monotonic() + seconds
    while not done():
        if time.monotonic() > until:
            pytest.fail("not in time")
        time.sleep(0.02)
