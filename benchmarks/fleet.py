"""Agents, as far as a server can tell: one process, one loop, hardly any cost of its own.

``python fleet.py poll URL KEYS SECONDS CONNECTIONS`` polls without a pause and prints how often it was answered.
``python fleet.py live URL KEYS SECONDS`` lets every agent beat and wait for work at the pace of ours and prints how
late the answers were. ``KEYS`` is a file with an id and a key per line. Both print one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from itertools import cycle
from pathlib import Path
from statistics import quantiles
from urllib.parse import urlsplit

import uvloop
from certctl_agent.main import BEAT_SECONDS, LEAST_SECONDS, WAIT_SECONDS

BEAT = {"version": "1.0.0", "os": "linux", "architecture": "amd64", "capabilities": ["verify"], "boot_id": "boot-1"}
OPENED_A_SECOND = 200.0
"""So fast agents appear; what is answered meanwhile is not counted."""
BROKEN_SECONDS = 10.0
"""How late an answer counts that never came."""


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._read = b""
        self._answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what to write to."""
        self.transport: asyncio.WriteTransport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Collect an answer until it is whole."""
        self._read += data
        head, found, body = self._read.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) >= length and self._answer is not None and not self._answer.done():
            self._read = b""
            self._answer.set_result(head + b"\r\n\r\n" + body)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let whoever waits know."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError(f"closed without an answer: {exc}"))

    async def ask(self, request: bytes) -> bytes:
        """Return the answer to ``request``; raise RuntimeError unless it is 200."""
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        answer = await self._answer
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(answer.decode(errors="replace"))
        return answer


class Server:
    """Where it is, and how to talk to it."""

    def __init__(self, url: str) -> None:
        self._place = urlsplit(url)

    async def connect(self) -> Connection:
        """Open a connection."""
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(Connection, self._place.hostname, self._place.port))[1]

    def request(self, method: str, path: str, key: str, body: object = None) -> bytes:
        """Return the octets of a request."""
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._place.netloc}\r\nAuthorization: Bearer {key}\r\n"
        typed = f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n" if content else ""
        return f"{head}{typed}\r\n".encode() + content


async def poll(server: Server, keys: list[tuple[str, str]], seconds: float, connections: int) -> dict[str, float]:
    """Ask for work without a pause, each time as the next agent."""
    turns = cycle([server.request("GET", f"/api/v1/agents/{id}/work", key) for id, key in keys])
    counted = 0

    async def work(until: float) -> int:
        connection, count = await server.connect(), 0
        while time.perf_counter() < until:
            await connection.ask(next(turns))
            count += 1
        connection.transport.close()
        return count

    # The first poll of an hour leaves an audit row, the first use of a key is noted: afterwards it is as ever.
    first = [server.request("GET", f"/api/v1/agents/{id}/work", key) for id, key in keys]

    async def greet(requests: list[bytes]) -> None:
        connection = await server.connect()
        for request in requests:
            await connection.ask(request)
        connection.transport.close()

    await asyncio.gather(*(greet(first[number::connections]) for number in range(connections)))
    began = time.perf_counter()
    counted = sum(await asyncio.gather(*(work(began + seconds) for _ in range(connections))))
    return {"polls": counted, "seconds": time.perf_counter() - began}


class Life:
    """One agent: beats and polls, and how late each answer was, in seconds."""

    def __init__(self, server: Server, id: str, key: str) -> None:
        path = f"/api/v1/agents/{id}"
        self._server = server
        self._beat = server.request("POST", f"{path}/heartbeat", key, BEAT)
        self._polling = {
            wait: server.request("GET", f"{path}/work?wait={wait}", key) for wait in range(1, WAIT_SECONDS + 1)
        }
        self.late: list[tuple[float, float]] = []
        """When it was answered, and how late."""
        self.broken = 0
        """How many requests were never answered."""

    async def run(self, opening: float) -> None:
        """Live until cancelled."""
        await asyncio.sleep(opening)
        await self._beat_once()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beats())
            group.create_task(self._polls())

    async def _beats(self) -> None:
        await asyncio.sleep(random.uniform(0, BEAT_SECONDS))
        while True:
            await self._beat_once()
            await asyncio.sleep(BEAT_SECONDS)

    async def _beat_once(self) -> None:
        began = time.perf_counter()
        try:
            connection = await self._server.connect()
            await connection.ask(self._beat)
        except OSError:
            self._broke()
        else:
            connection.transport.close()
            self._note(began)

    async def _polls(self) -> None:
        connection: Connection | None = None
        wait = random.randint(1, WAIT_SECONDS)  # from the beginning as after an hour
        while True:
            began = time.perf_counter()
            try:
                connection = connection or await self._server.connect()
                answer = await connection.ask(self._polling[wait])
            except OSError:
                connection = None
                self._broke()
            else:
                self._note(began + (wait if b'"count":0' in answer else 0))
            await asyncio.sleep(LEAST_SECONDS)
            wait = WAIT_SECONDS

    def _broke(self) -> None:
        self.broken += 1
        self.late.append((time.perf_counter(), BROKEN_SECONDS))

    def _note(self, expected: float) -> None:
        now = time.perf_counter()
        self.late.append((now, max(0.0, now - expected)))


async def live(server: Server, keys: list[tuple[str, str]], seconds: float) -> dict[str, float]:
    """Let them all live for ``seconds`` once they are there; raise what any of them met."""
    lives = [Life(server, id, key) for id, key in keys]
    opening = len(keys) / OPENED_A_SECOND + 1
    tasks = [asyncio.create_task(life.run(number / OPENED_A_SECOND)) for number, life in enumerate(lives)]
    began = time.perf_counter() + opening
    done, _ = await asyncio.wait(tasks, timeout=opening + seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    late = [each for life in lives for at, each in life.late if at >= began]
    broken = sum(life.broken for life in lives)
    return {"answers": len(late), "p99": quantiles(late, n=100)[-1], "worst": max(late), "broken": broken}


def main(what: str, url: str, keys_file: str, seconds: float, connections: int = 0) -> None:
    """Measure and tell."""
    pairs = [tuple(line.split()) for line in Path(keys_file).read_text().splitlines()]
    keys = [(id, key) for id, key in pairs]
    server = Server(url)
    work = poll(server, keys, seconds, connections) if what == "poll" else live(server, keys, seconds)
    print(json.dumps(uvloop.run(work)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]), *map(int, sys.argv[5:]))
