"""The server, as the agent sees it. Nothing else in this package speaks HTTP, and nothing here ever holds a key.

``http.client`` in threads, because it keeps the agent's memory small: httpx alone would be a tenth of it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlencode, urlsplit

from certctl_core.errors import TransientError
from certctl_sdk import tracing
from certctl_sdk.api import Call, agents, auth, jobs

from certctl_agent.threads import in_thread

if TYPE_CHECKING:
    from certctl_sdk.api.bodies import CsrBody, HeartbeatBody, Report, StatusBody, VerifyBody
    from certctl_sdk.api.replies import Checked, HeartbeatRecorded

A = TypeVar("A")
TIMEOUT = 30.0
ANSWER_BYTES = 8 * 1024 * 1024
IDLE_SECONDS = 30.0
SAID_CHARACTERS = 300


class Refused(Exception):
    """The server answered, and not with what the call asks for."""

    def __init__(self, what: str, status: int, said: str) -> None:
        super().__init__(f"{what}: the server answered HTTP {status}: {said}")
        self.status = status
        self.said = said


class Retired(Refused):
    """This agent is taken out of service and must not come back (HTTP 410)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was served after a deployment; fingerprints are lower hex SHA-256 of the leaf."""

    target_id: str
    expected_fingerprint: str
    actual_fingerprint: str
    verified: bool
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes


class _Call:
    """One request on one connection, in a thread; ``abandon`` ends it from outside."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection

    def send(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], timeout: float) -> _Answer:
        """Return the answer; the connection is closed if there is none."""
        self._connection.timeout = timeout
        if self._connection.sock:
            self._connection.sock.settimeout(timeout)
        try:
            self._connection.request(method, path, body=body, headers=dict(headers))
            response = self._connection.getresponse()
            answer = response.read(ANSWER_BYTES + 1)
            if len(answer) > ANSWER_BYTES:
                raise http.client.HTTPException(f"an answer of more than {ANSWER_BYTES} bytes")  # noqa: TRY301
        except BaseException:
            self._connection.close()
            raise
        return _Answer(response.status, answer)

    def abandon(self) -> None:
        """Wake the thread that waits for the answer."""
        with contextlib.suppress(OSError, AttributeError):  # not connected yet, or closed already
            self._connection.sock.shutdown(socket.SHUT_RDWR)


class Server:
    """One server, spoken to with one key; calls may run side by side."""

    def __init__(self, url: str, *, key: str, tls: ssl.SSLContext | None = None) -> None:
        self._parts = urlsplit(url)
        self._tls = tls
        self._headers = {
            "Authorization": f"Bearer {key}",
            "Accept": "application/json",
            "Content-Type": "application/json",
            "User-Agent": "certctl-agent",
        }
        self._idle: list[tuple[http.client.HTTPConnection, float]] = []

    def close(self) -> None:
        """Close the connections that are not in use."""
        while self._idle:
            self._idle.pop()[0].close()

    async def call(self, method: str, path: str, body: object = None, *, timeout: float = TIMEOUT) -> tuple[int, bytes]:
        """Return status and body of the answer, whatever it says.

        Raises:
            TransientError: there was none.
        """
        data = None if body is None else json.dumps(body).encode()
        try:
            return await self._attempt(self._reusable(), method, path, data, timeout)
        except _Stale:
            # A server may close a resting connection at any moment; every call here may be repeated.
            return await self._attempt(None, method, path, data, timeout)

    async def _attempt(
        self, reused: http.client.HTTPConnection | None, method: str, path: str, data: bytes | None, timeout: float
    ) -> tuple[int, bytes]:
        connection = reused or self._connection()
        call = _Call(connection)
        trace = tracing.current()
        headers = {**self._headers, tracing.HEADER: trace} if trace else self._headers
        try:
            answer = await in_thread(
                lambda: call.send(method, self._parts.path + path, data, headers, timeout), abandon=call.abandon
            )
        except (OSError, http.client.HTTPException) as exc:
            if reused and isinstance(exc, ConnectionError):
                raise _Stale from exc
            said = str(exc) or type(exc).__name__
            raise TransientError(f"the server at {self._parts.netloc} did not answer: {said}") from exc
        if connection.sock:
            self._idle.append((connection, time.monotonic()))
        return answer.status, answer.body

    def _reusable(self) -> http.client.HTTPConnection | None:
        while self._idle:
            connection, since = self._idle.pop()
            if time.monotonic() - since < IDLE_SECONDS:
                return connection
            connection.close()
        return None

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "https":
            return http.client.HTTPSConnection(host, port, context=self._tls)
        return http.client.HTTPConnection(host, port)

    async def expect(self, status: int, method: str, path: str, body: object = None, **timing: float) -> dict[str, Any]:
        """Return the object in an answer of exactly ``status``.

        Raises:
            TransientError: no answer.
            Retired: HTTP 410.
            Refused: any other answer.
        """
        got, answer = await self.call(method, path, body, **timing)
        found = _object(answer)
        what = f"{method} {path.partition('?')[0]}"
        if got == status:
            return found
        kind = Retired if got == http.HTTPStatus.GONE else Refused
        raise kind(what, got, _said(found, answer))

    async def send(self, call: Call[A], **timing: float) -> A:
        """Make a call and return its answer; errors as of ``expect``."""
        query = f"?{urlencode(call.pairs)}" if call.query else ""
        return cast(A, await self.expect(call.status, call.method, call.path + query, call.body, **timing))


class _Stale(Exception):
    """The server closed a connection that we had kept open."""


class AgentApi:
    """The calls of one enrolled agent."""

    def __init__(self, server: Server, agent_id: str) -> None:
        self._server = server
        self._agent_id = agent_id

    def close(self) -> None:
        """Close the connections."""
        self._server.close()

    async def heartbeat(self, body: HeartbeatBody) -> HeartbeatRecorded:
        """Say that we are alive; return what the server says of the time."""
        return await self._server.send(agents.heartbeat(self._agent_id, body))

    async def work(self, wait: int) -> list[dict[str, Any]]:
        """Return the items offered to us, waiting up to ``wait`` seconds for one; 0 does not wait."""
        call = agents.work(self._agent_id, {"wait": wait} if wait else {})
        jobs: Any = (await self._server.send(call, timeout=wait + TIMEOUT)).get("jobs")
        return [job for job in jobs if isinstance(job, dict)] if isinstance(jobs, list) else []

    async def send_csr(self, certificate_id: str, csr_pem: str) -> None:
        """Hand in a CSR; anything but HTTP 202 is Refused."""
        body: CsrBody = {"csr_pem": csr_pem, "certificate_id": certificate_id}
        await self._server.send(agents.csr(self._agent_id, body))

    async def certificate(self, certificate_id: str) -> str:
        """Return the newest certificate that is ours to deploy, leaf first, as PEM."""
        answer = await self._server.send(agents.certificate(self._agent_id, certificate_id))
        return str(answer.get("certificate_pem", ""))

    async def report(self, job_id: str, status: str, *, error: str = "", error_kind: str = "") -> None:
        """Say how a job stands: Running, Completed or Failed."""
        words = {"error": error, "error_kind": error_kind}
        body = {"status": status, **{key: value for key, value in words.items() if value}}
        await self._server.send(agents.report(self._agent_id, job_id, cast("StatusBody", body)))

    async def verified(self, job_id: str, verification: Verification) -> None:
        """Say what is served after the deployment of ``job_id``."""
        body = {key: value for key, value in asdict(verification).items() if key != "error" or value}
        await self._server.send(jobs.verify(job_id, cast("VerifyBody", body)))

    async def discovered(
        self, directories: Sequence[str], certificates: Sequence[object], errors: Sequence[str], duration_ms: int
    ) -> None:
        """Report what a scan found; anything but HTTP 202 is Refused."""
        report: Report = {
            "agent_id": self._agent_id,
            "directories": list(directories),
            "certificates": list(certificates),
            "errors": list(errors),
            "scan_duration_ms": duration_ms,
        }
        await self._server.send(agents.discovered(self._agent_id, report))

    async def who(self) -> Checked:
        """Return how the server knows us."""
        return await self._server.send(auth.check())


def _object(answer: bytes) -> dict[str, Any]:
    try:
        found = json.loads(answer)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _said(found: Mapping[str, Any], answer: bytes) -> str:
    """The server's words, fit for a log and a terminal."""
    said = str(found.get("message") or found.get("error") or answer.decode(errors="replace"))
    details = found.get("details")
    if isinstance(details, list):
        faults = [f"{each.get('field')}: {each.get('message')}" for each in details if isinstance(each, dict)]
        said = "; ".join([said, *faults])
    return "".join(c if c.isprintable() else " " for c in said)[:SAID_CHARACTERS].strip()
