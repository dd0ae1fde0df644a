"""The doors of the process: sockets, timeouts, signals, and an end that cuts nobody off."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import ssl
from asyncio import TimerHandle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import uvicorn
from certctl_core.errors import MisconfiguredError
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_SECONDS, READ_SECONDS, WRITE_SECONDS = 5, 15, 15
IDLE_SECONDS, DRAIN_SECONDS = 60, 30
HEADER_BYTES = 64 * 1024
BACKLOG = 1024
STARTED_SECONDS = 0.01
DRAIN = asyncio.Event()
"""Set when the process is about to stop: whoever makes a client wait answers now."""


class Protocol(HttpToolsProtocol):
    """HTTP/1.1 with the time limits that uvicorn lacks; uvicorn itself ends idle connections.

    A connection has ``HEADER_SECONDS`` for the head of each request, the first counted from its beginning,
    ``READ_SECONDS`` for the body, and while an answer waits to be read, ``WRITE_SECONDS`` to take some of it.
    How long the answer takes to be made is the application's affair.
    """

    _reading: TimerHandle | None = None
    _writing: TimerHandle | None = None
    _in_head = True
    _loose_bytes = 0
    """Of a head, or since there last was some of a body: framing and trailers."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to count."""
        super().connection_made(transport)
        self._expect(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the limits."""
        self._expect(None)
        self._stop_writing_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, unless the head of a request, or what comes after its body, grows without end."""
        self._loose_bytes += len(data)
        super().data_received(data)
        if self._loose_bytes > HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response("The head of the request is too long.")

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_head = True
        if self._reading is None:
            self._expect(HEADER_SECONDS)

    def on_headers_complete(self) -> None:
        """Its head is there."""
        self._in_head, self._loose_bytes = False, 0
        self._expect(READ_SECONDS)
        super().on_headers_complete()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. Trailers are not looked at: they would join the headers of a request that is under way."""
        if self._in_head:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Some of the body is there."""
        self._loose_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """All of it is there."""
        self._expect(None)
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        self._stop_writing_clock()
        self._writing = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        self._stop_writing_clock()
        super().resume_writing()

    def _expect(self, seconds: float | None) -> None:
        if self._reading is not None:
            self._reading.cancel()
        self._reading = None if seconds is None else self.loop.call_later(seconds, self.transport.close)

    def _stop_writing_clock(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None


class Listener(uvicorn.Server):
    """One of several in a process that has its signals to itself."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield


@dataclass(frozen=True, slots=True)
class Door:
    """What answers on which sockets, over TLS if there is a context for it.

    ``begins`` says that the application wants to be told when it starts and stops; one door tells it.
    """

    app: Any
    sockets: Sequence[socket.socket]
    tls: ssl.SSLContext | None = None
    begins: bool = False

    def url(self, host: str = "") -> str:
        """Return where it is: at ``host``, else at the first address it is bound to."""
        address, port = self.sockets[0].getsockname()[:2]
        name = host or address
        return f"{'https' if self.tls else 'http'}://{f'[{name}]' if ':' in name else name}:{port}"


def bind(host: str, port: int, variable: str) -> list[socket.socket]:
    """Return a socket for every address of ``host``, bound to ``port``.

    Raises:
        MisconfiguredError: there is no such address here, or the port is taken; ``variable`` is what sets it.
    """
    bound: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sock = socket.socket(family, kind, protocol)
            bound.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # Beside IPv4 addresses of the same name it must leave those alone; ``::`` by itself means them too.
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host.strip("[]") != "::")
            sock.bind(address)
    except OSError as exc:
        for sock in bound:
            sock.close()
        raise MisconfiguredError(f"cannot listen on {host}:{port}: {exc.strerror or exc}; {variable} sets it") from exc
    return bound


async def serve(
    doors: Sequence[Door],
    *,
    ready: Callable[[], None] = lambda: None,
    reload: Callable[[], None] = lambda: None,
    drain: Callable[[], None] = lambda: None,
) -> None:
    """Answer on every door until the process is told to stop, then let what is being answered come to its end.

    ``ready`` is called once all of them answer, ``reload`` on SIGHUP, ``drain`` when the end begins. A second
    SIGTERM or SIGINT ends at once.
    """
    DRAIN.clear()
    listeners = [_listener(door) for door in doors]
    stop = _Stop(listeners, drain)
    running = [
        asyncio.create_task(listener.serve(sockets=list(door.sockets)))
        for listener, door in zip(listeners, doors, strict=True)
    ]
    with _signals({signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGHUP: reload}):
        try:
            while not all(listener.started for listener in listeners):
                if ended := [task for task in running if task.done()]:
                    ended[0].result()
                    break
                await asyncio.sleep(STARTED_SECONDS)
            else:
                ready()
            await asyncio.gather(*running)
        finally:
            stop()
            await asyncio.gather(*running, return_exceptions=True)


class _Stop:
    """The first call asks for an end, the second for one without manners."""

    def __init__(self, listeners: Sequence[Listener], drain: Callable[[], None]) -> None:
        self._listeners = listeners
        self._drain = drain

    def __call__(self) -> None:
        for listener in self._listeners:
            listener.force_exit = listener.should_exit
            listener.should_exit = True
        DRAIN.set()
        self._drain()


async def told_to_stop() -> None:
    """Return on SIGTERM or SIGINT; the second one ends the process at once."""
    told = asyncio.Event()

    def stop() -> None:
        if told.is_set():
            os._exit(1)
        told.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    await told.wait()


@contextlib.contextmanager
def _signals(calls: dict[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number, call in calls.items():
        loop.add_signal_handler(number, call)
    try:
        yield
    finally:
        for number in calls:
            loop.remove_signal_handler(number)


def _listener(door: Door) -> Listener:
    config = uvicorn.Config(
        door.app,
        http=Protocol,
        ws="none",
        lifespan="on" if door.begins else "off",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    config.load()
    config.ssl = door.tls
    return Listener(config)


def settle_memory() -> None:
    """Call once everything is loaded: what is there stays, so that the collector need not look at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
