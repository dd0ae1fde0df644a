from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from datetime import timedelta

import pytest
from certctl_agent.settings import VerifySettings
from certctl_agent.verify import Proof, difference, look
from certctl_core.errors import DeploymentError
from certctl_core.target import Bundle, Endpoint
from certctl_sdk.egress import Guard
from certctl_sdk.testing.fake_ca import FakeCA

GUARD = Guard(private_allowed=True)
QUICK = VerifySettings(timeout=timedelta(seconds=1.5), delay=timedelta())


@pytest.fixture
def serving(tmp_path):
    """Serve PEM text on a free port; return the port and the names that clients asked for."""
    sockets = []

    def start(chain_pem: str, key_pem: str, *, after: float = 0):
        chain, key = tmp_path / f"{len(sockets)}.crt", tmp_path / f"{len(sockets)}.key"
        chain.write_text(chain_pem)
        key.write_text(key_pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain, key)
        asked: list[str | None] = []
        context.sni_callback = lambda _, name, __: asked.append(name)
        listener = socket.create_server(("127.0.0.1", 0))
        sockets.append(listener)
        begin = time.monotonic() + after

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    if time.monotonic() >= begin:
                        try:
                            context.wrap_socket(connection, server_side=True).close()
                        except OSError:
                            continue

        threading.Thread(target=accept, daemon=True).start()
        return listener.getsockname()[1], asked

    yield start
    for each in sockets:
        each.close()


def proof(bundle, *ports, settings=QUICK):
    return Proof(bundle, [Endpoint(host="127.0.0.1", port=port) for port in ports], GUARD, settings)


async def test_what_is_served_by_every_endpoint_is_proved(serving):
    bundle = FakeCA().bundle("a.example")
    ports = [serving(bundle.cert_pem + bundle.chain_pem, bundle.key_pem)[0] for _ in range(2)]
    look_at = proof(bundle, *ports)
    await look_at()
    assert look_at.passed
    assert look_at.actual_fingerprint == look_at.expected_fingerprint


async def test_one_endpoint_that_serves_another_certificate_fails_the_proof(serving):
    ca = FakeCA()
    new, old = ca.bundle("a.example"), ca.bundle("a.example")
    ports = [serving(each.cert_pem, each.key_pem)[0] for each in (new, old)]
    look_at = proof(new, *ports)
    with pytest.raises(DeploymentError, match=f"127.0.0.1:{ports[1]} serves another certificate"):
        await look_at()
    assert not look_at.passed
    assert look_at.actual_fingerprint == proof(old).expected_fingerprint


async def test_a_service_that_comes_late_is_waited_for(serving):
    bundle = FakeCA().bundle("a.example")
    look_at = proof(bundle, serving(bundle.cert_pem, bundle.key_pem, after=0.5)[0])
    await look_at()
    assert look_at.passed


async def test_nobody_listening_is_told_as_that():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    look_at = proof(FakeCA().bundle("a.example"), port)
    with pytest.raises(DeploymentError, match="did not answer"):
        await look_at()
    assert look_at.actual_fingerprint == ""


async def test_a_peer_without_tls_is_told_as_that():
    def greet(_, writer):
        writer.write(b"220 mail\r\n")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        seen = await look(Endpoint(host="127.0.0.1", port=server.sockets[0].getsockname()[1]), GUARD)
    assert "TLS handshake" in seen.trouble


async def test_the_server_name_is_sent_and_an_address_is_not(serving):
    bundle = FakeCA().bundle("a.example")
    port, asked = serving(bundle.cert_pem, bundle.key_pem)
    await look(Endpoint(host="127.0.0.1", port=port, server_name="a.example"), GUARD)
    await look(Endpoint(host="127.0.0.1", port=port), GUARD)
    assert asked == ["a.example", None]


async def test_addresses_that_may_not_be_called_are_not_called():
    seen = await look(Endpoint(host="169.254.169.254", port=443), GUARD)
    assert "may not be called" in seen.trouble


CHAINS = {
    "all of it": (b"LIA", ""),
    "with a root behind": (b"LIAR", ""),
    "no intermediate": (b"L", "without its intermediate"),
    "wrong order": (b"LAI", "wrong order"),
    "another leaf": (b"X", "another certificate"),
    "nothing": (b"", "no certificate"),
}


@pytest.mark.parametrize(("served", "words"), CHAINS.values(), ids=CHAINS)
def test_differences_are_told_in_plain_words(served, words):
    found = difference([b"L", b"I", b"A"], [bytes([each]) for each in served])
    assert (words in found) if words else not found


async def test_a_root_in_the_chain_need_not_be_served(serving):
    bundle = FakeCA().bundle("a.example")
    assert bundle.chain_pem
    look_at = proof(
        Bundle(bundle.cert_pem, bundle.chain_pem, bundle.key_pem), serving(bundle.cert_pem, bundle.key_pem)[0]
    )
    await look_at()
    assert look_at.passed
