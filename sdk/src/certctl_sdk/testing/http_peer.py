"""A peer that speaks HTTP/1.1 on a real loopback socket, well or badly, and remembers what it was sent."""

from __future__ import annotations

import asyncio
import contextlib
import json as _json
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from typing import Any, Self, TypeAlias

SPLIT = b"\r\n\r\n"


@dataclass(frozen=True)
class Received:
    """A request as it came over the wire."""

    method: str
    target: str
    """Path and query."""
    header_list: tuple[tuple[str, str], ...]
    """Names in lower case, in the order they came."""
    body: bytes

    @cached_property
    def headers(self) -> Mapping[str, str]:
        """The headers by name in lower case; of repeated ones the last."""
        return dict(self.header_list)

    def json(self) -> Any:
        """The body, decoded."""
        return _json.loads(self.body)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What to answer. ``raw`` replaces the whole answer; ``hang`` answers never; ``cut`` closes half-way."""

    status: int = field(default=200, kw_only=False)
    json: Any = None
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    hang: bool = False
    cut: bool = False
    pause: float = 0.0
    """Seconds between the bytes of the answer's body."""

    def encoded(self) -> tuple[bytes, bytes]:
        """Return head and body, ready for the wire."""
        if self.raw is not None:
            return self.raw, b""
        body = self.body if self.json is None else _json.dumps(self.json).encode()
        phrase = {int(status): status.phrase for status in HTTPStatus}.get(self.status, "Unheard Of")
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **self.headers}
        lines = [f"HTTP/1.1 {self.status} {phrase}", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join(lines).encode() + SPLIT, body


Answer: TypeAlias = Reply | Callable[[Received], Reply] | Callable[[Received], Awaitable[Reply]]


class HttpPeer:
    """``async with HttpPeer(Reply(json={})) as peer:`` serves on ``peer.url`` until the block ends.

    ``answer`` is a reply, or a function that gets the request and returns one; it may be set anew at any time.
    """

    def __init__(self, answer: Answer | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        self.answer: Answer = answer or Reply()
        self.requests: list[Received] = []
        self.connections = 0
        """How many are open now."""
        self.accepted = 0
        """How many were ever opened."""
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._tls)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        """Its address, without a path."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.accepted += 1
        try:
            await self._serve(reader, writer)
        except (asyncio.IncompleteReadError, OSError):
            pass  # the client left
        except asyncio.CancelledError:
            # The test is over: TLS would wait for the client to say goodbye, too.
            writer.transport.abort()
        finally:
            self.connections -= 1
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await _receive(reader)
            self.requests.append(request)
            answer = self.answer
            reply = answer if isinstance(answer, Reply) else answer(request)
            if not isinstance(reply, Reply):
                reply = await reply
            if reply.hang:
                await reader.read()
                return
            await _send(writer, reply)
            if reply.cut or reply.raw is not None:
                return


async def _receive(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(SPLIT)).decode("latin-1")
    first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
    method, target, _ = first.split(" ", 2)
    pairs = (line.partition(":") for line in lines)
    headers = tuple((name.strip().lower(), value.strip()) for name, _, value in pairs)
    body = await reader.readexactly(int(dict(headers).get("content-length", "0")))
    return Received(method, target, headers, body)


async def _send(writer: asyncio.StreamWriter, reply: Reply) -> None:
    head, body = reply.encoded()
    writer.write(head)
    if reply.cut:
        writer.write(body[: len(body) // 2])
    elif reply.pause:
        for byte in body:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(reply.pause)
    else:
        writer.write(body)
    await writer.drain()
