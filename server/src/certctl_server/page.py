"""The page at ``/``: what is running and what to type next. One file, no key, nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import html
import re
import sys
from http import HTTPStatus
from importlib.metadata import version
from importlib.resources import files

from litestar.enums import ScopeType
from litestar.types import Receive, Scope, Send

from certctl_server.settings import Settings
from certctl_server.welcome import NEXT, program

INLINE = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


class Page:
    """An ASGI application that answers every path with the page."""

    def __init__(self, settings: Settings) -> None:
        text = files("certctl_server").joinpath("page.html").read_text(encoding="utf-8")
        policy = _policy(text)
        for name, value in _said(settings).items():
            text = text.replace(f"{{{name}}}", value)
        self._body = text.encode()
        self._tag = f'"{hashlib.sha256(self._body).hexdigest()[:32]}"'
        self._headers = [
            (b"content-type", b"text/html; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"etag", self._tag.encode()),
            (b"content-security-policy", policy.encode()),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer GET; a browser that has the page already is told so."""
        if scope["type"] != ScopeType.HTTP:
            return
        status, body, headers = HTTPStatus.OK, self._body, self._headers
        if scope["method"] != "GET":
            status, body, headers = HTTPStatus.METHOD_NOT_ALLOWED, b"", [(b"allow", b"GET, HEAD, OPTIONS")]
        elif (b"if-none-match", self._tag.encode()) in scope["headers"]:
            status, body, headers = HTTPStatus.NOT_MODIFIED, b"", self._headers[1:]
        if status != HTTPStatus.NOT_MODIFIED:
            headers = [*headers, (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})


def _policy(text: str) -> str:
    """Name by hash what the page has inline; nothing else may run, and nothing comes from elsewhere."""
    hashes = {
        kind: base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for kind, body in INLINE.findall(text)
    }
    return (
        f"default-src 'none'; style-src 'sha256-{hashes['style']}'; script-src 'sha256-{hashes['script']}';"
        " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _said(settings: Settings) -> dict[str, str]:
    words = {"certctl": program("certctl", sys.argv[0]), "agent": program("certctl-agent", sys.argv[0]), "token": ""}
    commands = [
        (f"<p>{html.escape(why)}</p>" if why else "")
        + f'<div class="command"><code>{html.escape(line.format(**words))}</code>'
        f'<button type="button" aria-label="Copy {html.escape(line.format(**words))}">Copy</button></div>'
        for why, line in NEXT
    ]
    workers = "in processes of their own" if settings.broker else "in every server process"
    return {
        "version": html.escape(version("certctl-server")),
        "database": "SQLite, one file" if settings.database_url.startswith("sqlite:") else "PostgreSQL",
        "workers": "in this process" if settings.embedded else workers,
        "commands": "\n".join(f"<li>{command}</li>" for command in commands),
    }
