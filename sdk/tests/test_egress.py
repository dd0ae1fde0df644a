import asyncio
import socket
from ipaddress import IPv4Network, ip_address

import pytest
from certctl_core.errors import MisconfiguredError, TransientError
from certctl_sdk.egress import Guard, Reach, parse_allow, reach, system_resolve
from certctl_sdk.http import Client
from certctl_sdk.testing.fake_host import FakeHost
from certctl_sdk.testing.http_peer import HttpPeer, Reply
from hypothesis import given
from hypothesis import strategies as st

NEVER = [
    "169.254.169.254", "169.254.170.2", "fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "192.0.0.192",
    "168.63.129.16", "fe80::1", "fe80::1%1", "fec0::1", "0.0.0.0", "0.1.2.3", "::", "224.0.0.1", "ff02::1", "240.0.0.1",
    "255.255.255.255", "::ffff:169.254.169.254", "::169.254.169.254", "::ffff:0:169.254.169.254",
    "64:ff9b::169.254.169.254", "64:ff9b:1::a9fe:a9fe", "2002:a9fe:a9fe::1", "2001:0:a9fe:a9fe::1",
    "2001:0:808:808::5601:5601", "2a00::5efe:a9fe:a9fe",
]  # fmt: skip
PRIVATE = [
    "127.0.0.1", "127.255.0.1", "::1", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1",
    "100.127.255.254", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "fc00::1", "fd12::1",
    "2001:db8::1", "64:ff9b:1::808:808", "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::10.0.0.1", "2002:7f00:1::",
    "2002:c0a8:101::1", "2001:0:7f00:1::f7f7:f7f7",
]  # fmt: skip
PUBLIC = [
    "8.8.8.8", "172.15.255.255", "172.32.0.1", "100.63.255.255", "100.128.0.1", "192.0.1.1", "169.253.1.1",
    "2606:4700::1111", "2a00::1", "64:ff9b::808:808", "2002:808:808::1",
]  # fmt: skip


def resolving(*addresses):
    async def resolve(host, port):
        return addresses

    return resolve


def guard(*addresses, private_allowed=False, allow=()):
    return Guard(private_allowed=private_allowed, allow=allow, resolve=resolving(*addresses))


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [(NEVER, Reach.NEVER), (PRIVATE, Reach.PRIVATE), (PUBLIC, Reach.PUBLIC)],
    ids=["never", "private", "public"],
)
def test_every_address_is_known_for_what_it_reaches(addresses, expected):
    assert {text: reach(ip_address(text)) for text in addresses} == dict.fromkeys(addresses, expected)


@given(st.ip_addresses(v=4))
def test_wrapping_an_address_in_ipv6_never_makes_it_reach_less(inner):
    number = int(inner)
    wrapped = [f"::ffff:{inner}", f"64:ff9b::{inner}", f"2002:{number >> 16:x}:{number & 0xFFFF:x}::1"]
    assert all(reach(ip_address(text)) >= reach(inner) for text in wrapped)


@pytest.mark.parametrize("address", NEVER)
async def test_link_local_and_metadata_pass_no_rule_however_it_is_written(address):
    everything = (*parse_allow("0.0.0.0/0 ::/0"), "a.example")
    with pytest.raises(MisconfiguredError, match="may not be called"):
        await guard(address, private_allowed=True, allow=everything).admit("a.example", 443)


@pytest.mark.parametrize("address", PRIVATE)
async def test_private_addresses_pass_for_an_operators_host_and_for_no_peers(address):
    issuers, notifiers = guard(address, private_allowed=True), guard(address)
    assert await issuers.admit("ca.example", 443)
    for refused in (issuers.admit("ca.example", 443, from_peer=True), notifiers.admit("ca.example", 443)):
        with pytest.raises(MisconfiguredError, match=r"ca\.example leads to .*CERTCTL_EGRESS_ALLOW"):
            await refused


@pytest.mark.parametrize("address", PUBLIC)
async def test_public_addresses_pass_for_everyone(address):
    assert await guard(address).admit("a.example", 443, from_peer=True) == ip_address(address)


@pytest.mark.parametrize(
    ("allow", "host", "passes"),
    [
        ("10.0.0.0/8", "hooks.example", True),
        ("10.1.2.3", "hooks.example", True),
        ("10.2.0.0/16", "hooks.example", False),
        ("hooks.example", "HOOKS.example.", True),
        ("hooks.example", "other.hooks.example", False),
        ("hooks.example", "hooks.example.evil.example", False),
    ],
)
async def test_what_the_allow_list_names_passes_and_nothing_else(allow, host, passes):
    call = guard("10.1.2.3", allow=parse_allow(allow)).admit(host, 443, from_peer=True)
    if passes:
        assert await call == ip_address("10.1.2.3")
    else:
        with pytest.raises(MisconfiguredError):
            await call


async def test_the_first_address_that_may_be_dialled_is_the_one():
    assert await guard("10.0.0.1", "8.8.8.8", "8.8.4.4").admit("a.example", 443) == ip_address("8.8.8.8")


async def test_a_mapped_address_is_dialled_as_the_ipv4_address_that_it_is():
    assert await guard("::ffff:8.8.8.8").admit("a.example", 443) == ip_address("8.8.8.8")


@pytest.mark.parametrize(
    "host",
    ["2130706433", "0x7f000001", "0x7f.1", "017700000001", "127.1", "0177.0.0.1", "127.0.0.1.1", "1.0x", "127.0.0.01"],
)
async def test_addresses_in_odd_spellings_are_refused_before_anyone_resolves_them(host):
    with pytest.raises(MisconfiguredError, match="neither a name nor an address"):
        await guard("8.8.8.8", private_allowed=True).admit(host, 80)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1.", "[::1]", "::1", "127。0。0。1"])
async def test_a_plain_address_is_judged_as_itself(host):
    assert (await guard(private_allowed=True).admit(host, 80)).is_loopback
    with pytest.raises(MisconfiguredError, match="may not be called"):
        await guard("8.8.8.8").admit(host, 80)


@pytest.mark.parametrize(
    "host",
    ["", ".", "a..example", "-a.example", "a b", "a\r\nb", "a\0b", "a" * 64, "a." * 127 + "toolong", "a/b", "ä" * 99],
)
async def test_what_is_no_host_name_is_refused_without_repeating_control_characters(host):
    with pytest.raises(MisconfiguredError, match="is not a host name") as refused:
        await guard("8.8.8.8").admit(host, 80)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("failure", [socket.gaierror(socket.EAI_AGAIN, "try again"), None], ids=["error", "empty"])
async def test_a_name_that_cannot_be_resolved_now_is_worth_another_try(failure):
    async def resolve(host, port):
        if failure:
            raise failure
        return ()

    with pytest.raises(TransientError, match=r"a\.example"):
        await Guard(private_allowed=False, resolve=resolve).admit("a.example", 443)


async def test_a_resolver_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr("certctl_sdk.egress.RESOLVE_SECONDS", 0.05)
    guarded = Guard(private_allowed=False, resolve=lambda host, port: asyncio.sleep(60))
    with pytest.raises(TransientError, match=r"a\.example could not be resolved within 0\.05 s"):
        await guarded.admit("a.example", 443)


async def test_the_systems_resolver_is_asked_by_default():
    assert set(await system_resolve("localhost", 80)) <= {"127.0.0.1", "::1"}
    with pytest.raises(MisconfiguredError, match="localhost leads to"):
        await Guard(private_allowed=False).admit("localhost", 80)


@pytest.mark.parametrize("text", ["10.0.0.1/8", "a b/c", "0x7f.1", "-", "10.0.0.0/33"])
def test_an_allow_list_with_a_slip_is_refused_by_name(text):
    with pytest.raises(ValueError, match="is neither a network"):
        parse_allow(text)


def test_an_allow_list_holds_networks_and_names():
    assert parse_allow(" 10.0.0.0/8,Hooks.Example. \n 192.0.2.1") == (
        IPv4Network("10.0.0.0/8"), "hooks.example", IPv4Network("192.0.2.1/32"),
    )  # fmt: skip
    assert parse_allow("") == ()


class Rebinding:
    """Says ``first`` once and ``then`` ever after."""

    def __init__(self, first, then):
        self.answers, self.then = [first], then

    async def __call__(self, host, port):
        return [self.answers.pop() if self.answers else self.then]


async def test_a_rebinding_name_is_dialled_where_it_was_admitted():
    async with HttpPeer(Reply(json={"from": "admitted"})) as admitted:
        # 127.0.0.2 stands for the public address: of all addresses that this machine has, it alone is allowed.
        rebinding = Rebinding("127.0.0.1", "127.0.0.2")
        guarded = Guard(private_allowed=False, allow=parse_allow("127.0.0.1"), resolve=rebinding)
        client = Client("The peer", FakeHost(egress=guarded), f"http://rebind.example:{admitted.port}")
        assert await client.get("/") == {"from": "admitted"}
        with pytest.raises(MisconfiguredError, match=r"rebind\.example leads to 127\.0\.0\.2"):
            await client.get("/")
        await client.aclose()
    assert [request.headers["host"] for request in admitted.requests] == [f"rebind.example:{admitted.port}"]


async def test_a_redirect_into_a_private_network_is_not_followed_though_the_operators_host_is_private():
    async with HttpPeer(Reply(json={"secret": 1})) as inner, HttpPeer() as outer:
        outer.answer = Reply(302, headers={"Location": f"http://localhost:{inner.port}/"})
        guarded = Guard(private_allowed=True, resolve=resolving("127.0.0.1"))
        client = Client("The peer", FakeHost(egress=guarded), outer.url, redirects=5)
        with pytest.raises(MisconfiguredError, match="localhost leads to"):
            await client.get("/")
        await client.aclose()
    assert len(outer.requests) == 1
    assert not inner.requests
