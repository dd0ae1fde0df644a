from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from importlib.metadata import version

import pytest
from certctl_sdk.http import httpx
from certctl_server.page import Page
from certctl_server.settings import Settings
from certctl_server.welcome import NEXT

VOID = {"meta", "link", "br"}


@pytest.fixture
async def browser():
    transport = httpx.ASGITransport(Page(Settings()))
    async with httpx.AsyncClient(transport=transport, base_url="http://certctl.example") as found:
        yield found


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.ids, self.addresses, self.styled = [], [], [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.addresses += [given[name] for name in ("src", "href", "action") if name in given]
        self.styled += [name for name in given if name == "style" or name.startswith("on")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


async def test_any_path_shows_the_page(browser):
    for path in ("/", "/anything/else"):
        answer = await browser.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert version("certctl-server") in answer.text


async def test_the_page_is_whole_and_needs_nothing_from_elsewhere(browser):
    reader = Reader()
    reader.feed((await browser.get("/")).text)
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids))
    assert [address for address in reader.addresses if not address.startswith(("/", "data:"))] == []


async def test_only_what_the_page_brings_itself_may_run(browser):
    answer = await browser.get("/")
    policy = answer.headers["content-security-policy"]
    for kind in ("style", "script"):
        [body] = re.findall(rf"<{kind}>(.*?)</{kind}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    reader = Reader()
    reader.feed(answer.text)
    assert reader.styled == []


async def test_the_page_shows_the_next_commands_and_no_placeholder(browser):
    text = (await browser.get("/")).text
    for _, line in NEXT:
        assert line.format(certctl="certctl", agent="certctl-agent", token="") in text
    assert re.findall(r"\{[a-z]+\}", re.sub(r"<(script|style)>.*?</\1>", "", text, flags=re.DOTALL)) == []


async def test_a_browser_that_has_the_page_is_told_so(browser):
    tag = (await browser.get("/")).headers["etag"]
    again = await browser.get("/", headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")


async def test_the_page_cannot_be_changed(browser):
    answer = await browser.post("/")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
