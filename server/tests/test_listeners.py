from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl

import pytest
from certctl_core.errors import MisconfiguredError
from certctl_sdk.http import httpx
from certctl_server import listeners
from certctl_server.listeners import DRAIN, Door, bind, serve

PARTS, PART = 400, 65536


class App:
    """Answers by path; remembers what it was told."""

    def __init__(self):
        self.told = []
        self.entered = asyncio.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        self.entered.set()
        if scope["path"] == "/long":
            await self._answer_at_length(send)
            return
        body = b"ok"
        if scope["path"] == "/slow":
            await asyncio.sleep(0.5)
        elif scope["path"] == "/poll":
            await DRAIN.wait()
            body = b"drained"
        elif scope["path"] == "/body":
            while (await receive()).get("more_body"):
                pass
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _live(self, receive, send):
        while (message := await receive())["type"] != "lifespan.shutdown":
            self.told.append(message["type"])
            await send({"type": "lifespan.startup.complete"})
        self.told.append("lifespan.shutdown")
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer_at_length(self, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(PARTS):
            await send({"type": "http.response.body", "body": b"x" * PART, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@contextlib.asynccontextmanager
async def running(*doors, **calls):
    ready = asyncio.Event()
    task = asyncio.create_task(serve(doors, ready=ready.set, **calls))
    try:
        await asyncio.wait([task, asyncio.create_task(ready.wait())], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        yield task
    finally:
        if not task.done():
            os.kill(os.getpid(), signal.SIGTERM)
            async with asyncio.timeout(10):
                await task


def door(app, **more):
    return Door(app, bind("127.0.0.1", 0, "CERTCTL_SERVER_PORT"), **more)


async def read_all(reader, seconds=5):
    async with asyncio.timeout(seconds):
        return await reader.read()


async def connect(door):
    host, port = door.sockets[0].getsockname()[:2]
    return await asyncio.open_connection(host, port)


async def test_several_doors_answer_at_once():
    one, two = door(App()), door(App())
    async with running(one, two), httpx.AsyncClient() as client:
        assert (await client.get(one.url())).text == "ok"
        assert (await client.get(two.url())).text == "ok"


async def test_the_application_is_told_once_when_it_starts_and_stops():
    app = App()
    async with running(door(app, begins=True), door(app)):
        assert app.told == ["lifespan.startup"]
    assert app.told == ["lifespan.startup", "lifespan.shutdown"]


async def test_sigterm_lets_answers_come_to_their_end_and_wakes_those_that_wait():
    app, drained = App(), []
    open_door = door(app)
    async with running(open_door, drain=lambda: drained.append(1)) as task, httpx.AsyncClient() as client:
        slow = asyncio.create_task(client.get(f"{open_door.url()}/slow"))
        poll = asyncio.create_task(client.get(f"{open_door.url()}/poll"))
        await app.entered.wait()
        await asyncio.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert (await slow).text == "ok"
        assert (await poll).text == "drained"
        async with asyncio.timeout(5):
            await task
    assert drained


async def test_a_second_sigterm_does_not_wait_for_anyone(monkeypatch):
    app = App()
    open_door = door(app)
    async with running(open_door) as task:
        reader, writer = await connect(open_door)
        writer.write(b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n")
        await app.entered.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.3)
        assert not task.done()
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(3):
            await task
        writer.transport.abort()
        assert reader


async def test_sighup_reloads_and_nothing_ends():
    reloaded = asyncio.Event()
    open_door = door(App())
    async with running(open_door, reload=reloaded.set), httpx.AsyncClient() as client:
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(5):
            await reloaded.wait()
        assert (await client.get(open_door.url())).status_code == 200


@pytest.mark.parametrize(
    ("limit", "sent"),
    [
        ("HEADER_SECONDS", b""),
        ("HEADER_SECONDS", b"GET / HTTP/1.1\r\nHost:"),
        ("READ_SECONDS", b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhal"),
        ("IDLE_SECONDS", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    ],
    ids=["says nothing", "half a head", "half a body", "idle"],
)
async def test_a_connection_that_makes_no_progress_is_closed(monkeypatch, limit, sent):
    monkeypatch.setattr(listeners, limit, 1)
    open_door = door(App())
    async with running(open_door):
        reader, writer = await connect(open_door)
        writer.write(sent)
        async with asyncio.timeout(4):
            await reader.read()
        writer.close()
        await writer.wait_closed()


async def test_a_client_that_does_not_read_is_cut_off(monkeypatch):
    monkeypatch.setattr(listeners, "WRITE_SECONDS", 0.3)
    app = App()
    open_door = door(app)
    async with running(open_door):
        reader, writer = await connect(open_door)
        writer.transport.pause_reading()
        writer.write(b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n")
        await app.entered.wait()
        await asyncio.sleep(1)
        writer.transport.resume_reading()
        with contextlib.suppress(ConnectionError):
            assert len(await read_all(reader)) < PARTS * PART
        writer.transport.abort()


async def test_a_client_that_reads_slowly_gets_everything(monkeypatch):
    monkeypatch.setattr(listeners, "WRITE_SECONDS", 2)
    app = App()
    open_door = door(app)
    async with running(open_door):
        reader, writer = await connect(open_door)
        writer.write(b"GET /long HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        got = 0
        while part := await reader.read(2**21):
            got += len(part)
            await asyncio.sleep(0.02)
        assert got > PARTS * PART
        writer.close()
        await writer.wait_closed()


async def test_a_head_without_end_is_refused():
    open_door = door(App())
    async with running(open_door):
        reader, writer = await connect(open_door)
        writer.write(b"GET / HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            for number in range(4000):
                writer.write(b"X-%d: %s\r\n" % (number, b"y" * 100))
                await writer.drain()
            assert (await read_all(reader)).startswith(b"HTTP/1.1 400 ")
        writer.transport.abort()


@pytest.mark.parametrize("trailers", [1, 10_000], ids=["few", "without end"])
async def test_trailers_join_no_headers_and_have_an_end(trailers):
    seen = []

    async def app(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        seen.append(dict(scope["headers"]))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    open_door = door(app)
    async with running(open_door):
        reader, writer = await connect(open_door)
        writer.write(
            b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n"
        )
        writer.write(b"Authorization: Bearer a\r\n" * trailers + b"\r\n")
        answer = await read_all(reader)
        writer.close()
    assert answer.split()[1] == (b"204" if trailers == 1 else b"400")
    assert b"authorization" not in (seen or [{}])[0]


async def test_a_body_of_many_small_chunks_is_no_head_without_end():
    open_door = door(App())
    async with running(open_door):
        reader, writer = await connect(open_door)
        writer.write(b"POST /body HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"1\r\na\r\n" * 100_000 + b"0\r\n\r\n")
        assert b"200" in (await read_all(reader)).split(b"\r\n")[0]
        writer.close()


async def test_pipelined_requests_are_answered_in_order():
    open_door = door(App())
    async with running(open_door):
        reader, writer = await connect(open_door)
        writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await read_all(reader)).count(b"HTTP/1.1 200 OK") == 2
        writer.close()
        await writer.wait_closed()


def test_a_port_that_is_taken_is_told_with_its_variable():
    [held] = bind("127.0.0.1", 0, "CERTCTL_SERVER_PORT")
    with held:
        held.listen()
        port = held.getsockname()[1]
        with pytest.raises(MisconfiguredError, match=rf"127\.0\.0\.1:{port}: .*in use.*CERTCTL_SERVER_PORT"):
            bind("127.0.0.1", port, "CERTCTL_SERVER_PORT")


def test_an_address_that_is_not_ours_is_told():
    with pytest.raises(MisconfiguredError, match="cannot listen on 192"):
        bind("192.0.2.1", 0, "CERTCTL_SERVER_PORT")


def test_an_address_with_colons_is_bracketed_in_urls():
    sockets = bind("::1", 0, "CERTCTL_SERVER_PORT") if socket.has_ipv6 else pytest.skip("no IPv6 here")
    with sockets[0]:
        port = sockets[0].getsockname()[1]
        assert Door(None, sockets).url() == f"http://[::1]:{port}"
        assert Door(None, sockets, ssl.create_default_context()).url("localhost") == f"https://localhost:{port}"
