"""Talk to a certctl server: one place that knows paths, headers, envelopes and errors."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar, cast
from urllib.parse import quote, urlsplit

from certctl_sdk import profile_file
from certctl_sdk.api import Call, Page, Rows
from certctl_sdk.api import Json as Json
from certctl_sdk.http import httpx

TIMEOUT_SECONDS = 30.0
"""For one call."""
MOST_PER_PAGE = 500
"""The longest page that the server sends."""
A = TypeVar("A")
T = TypeVar("T")


class ClientError(Exception):
    """The call came to nothing. The message is for people."""


class Unreachable(ClientError):
    """The server was not reached, or is not who it should be."""


class ApiError(ClientError):
    """The server refused."""

    def __init__(self, status: int, body: str, retry_after: float = 0.0) -> None:
        super().__init__(f"API error (HTTP {status}): {body}")
        self.status = status
        """The HTTP status, 400 or more."""
        self.body = body
        """The answer as it came: JSON in the envelope of the API, but for what sits in between."""
        self.retry_after = retry_after
        """After how many seconds to come back; 0 if it did not say."""


@dataclass(frozen=True, slots=True)
class Access:
    """Where the server is, and how to be known there."""

    url: str
    """Without a path; ``http`` or ``https``."""
    api_key: str = field(default="", repr=False)
    """Sent as Bearer; empty sends none."""
    ca_file: str = ""
    """A PEM file with the roots for its certificate; empty trusts the system's."""

    @property
    def in_the_clear(self) -> bool:
        """Whether the key would cross a network unencrypted."""
        parts = urlsplit(self.url)
        if parts.scheme == "https" or not self.api_key:
            return False
        try:
            return not ip_address(parts.hostname or "").is_loopback
        except ValueError:
            return parts.hostname != "localhost"


def access(environ: Mapping[str, str], *, server: str = "", api_key: str = "", ca_file: str = "") -> Access:
    """Return how to reach the server: by what is given, else the environment, else ``client.toml``.

    The key and the roots of ``client.toml`` are used towards its own address only.

    Raises:
        Unreachable: the address is no http or https URL, or a file with the key cannot be read.
    """
    left = profile_file.read(profile_file.data_dir(environ))
    url = (server or environ.get("CERTCTL_SERVER_URL") or left.url or profile_file.DEFAULT_URL).rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise Unreachable(f"{url!r} is not an address like https://certctl.example:8443")
    key = api_key or environ.get("CERTCTL_API_KEY") or _from_file(environ.get("CERTCTL_API_KEY_FILE", ""))
    roots = ca_file or environ.get("CERTCTL_SERVER_CA_FILE", "")
    if url == left.url.rstrip("/"):
        key, roots = key or left.api_key, roots or left.ca_file
    return Access(url=url, api_key=key, ca_file=roots)


def _from_file(path: str) -> str:
    if not path:
        return ""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as exc:
        raise Unreachable(f"the key file {path} cannot be read: {exc}") from exc


class Client:
    """A server's API. Use it as a context manager; not for several threads at once.

    ``send`` makes the calls of ``certctl_sdk.api``, whose answers have types. The methods named after those of HTTP
    take a path in parts, for what those calls do not know.
    """

    def __init__(self, access: Access, *, timeout: float = TIMEOUT_SECONDS) -> None:
        self._url = access.url
        self._http = httpx.Client(**_terms(access, timeout))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(self, call: Call[A]) -> A:
        """Make a call and return its answer; None if it has none.

        Raises:
            ApiError: the server refused.
            Unreachable: it did not answer.
        """
        try:
            response = self._http.request(**_request(call))
        except httpx.HTTPError as exc:
            raise _away(self._url, exc) from exc
        return _answer(self._url, call, response)

    def walk(self, call: Call[Page[T]]) -> Iterator[T]:
        """Walk through all rows of a list, each that exists throughout exactly once; errors as of ``send``."""
        part: Call[Page[T]] | None = _first(call)
        while part is not None:
            page = self.send(part)
            yield from page.data
            part = _next(part, page)

    def get(self, *path: str, **query: object) -> Json:
        """Return the object at ``/api/v1/`` and the parts of ``path``; errors as of ``send``."""
        return self.send(Call[Json]("GET", _path(path), query)) or {}

    def post(self, *path: str, body: Mapping[str, Any] | None = None) -> Json:
        """Send ``body`` to ``/api/v1/`` and the parts of ``path``; return the answer; errors as of ``send``."""
        return self.send(Call[Json]("POST", _path(path), body=body or {})) or {}

    def put(self, *path: str, body: Mapping[str, Any]) -> Json:
        """Merge ``body`` into what is there and return what is there now; errors as of ``send``."""
        return self.send(Call[Json]("PUT", _path(path), body=body)) or {}

    def delete(self, *path: str) -> None:
        """Remove what is there; errors as of ``send``."""
        self.send(Call[None]("DELETE", _path(path)))

    def page(self, *path: str, **query: object) -> Page[Json]:
        """Return some rows of a list; errors as of ``send``."""
        return self.send(Rows[Json, Json]("/".join(path)).list(query))

    def series(self, *path: str, **query: object) -> list[Json]:
        """Return the rows of a list that has no pages; errors as of ``send``."""
        return self.send(Call[list[Json]]("GET", _path(path), query, series=True))

    def every(self, *path: str, **query: object) -> Iterator[Json]:
        """Walk through all rows of a list, as ``walk`` does."""
        yield from self.walk(Rows[Json, Json]("/".join(path)).list(query))

    def save(self, out: BinaryIO, *path: str, **query: object) -> None:
        """Write what is at ``/api/v1/`` and the parts of ``path`` to ``out`` as it comes; errors as of ``send``."""
        call = Call[None]("GET", _path(path), query)
        try:
            with self._http.stream("GET", call.path, params=call.pairs) as response:
                if response.status_code >= 300:  # noqa: PLR2004  # as in _answer
                    response.read()
                    raise ApiError(response.status_code, response.text.strip())
                out.writelines(response.iter_bytes())
        except httpx.HTTPError as exc:
            raise Unreachable(f"{self._url} did not answer to the end: {exc}") from exc


class AsyncClient:
    """As Client, for programs that run on an event loop: what is sent is the same, and so is what comes back."""

    def __init__(self, access: Access, *, timeout: float = TIMEOUT_SECONDS) -> None:
        self._url = access.url
        self._http = httpx.AsyncClient(**_terms(access, timeout))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def send(self, call: Call[A]) -> A:
        """As ``Client.send``."""
        try:
            response = await self._http.request(**_request(call))
        except httpx.HTTPError as exc:
            raise _away(self._url, exc) from exc
        return _answer(self._url, call, response)

    async def walk(self, call: Call[Page[T]]) -> AsyncIterator[T]:
        """As ``Client.walk``."""
        part: Call[Page[T]] | None = _first(call)
        while part is not None:
            page = await self.send(part)
            for row in page.data:
                yield row
            part = _next(part, page)


def _terms(access: Access, timeout: float) -> dict[str, Any]:
    headers = {"Accept": "application/json"}
    if access.api_key:
        headers["Authorization"] = f"Bearer {access.api_key}"
    # Loading the system's roots takes 25 ms, which plain HTTP need not pay; without any it trusts nobody.
    plain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    verify = _trusting(access.ca_file) if access.url.startswith("https:") else plain
    # A proxy of the environment would see the key of a server that is usually in the same house.
    return {"base_url": access.url, "headers": headers, "timeout": timeout, "verify": verify, "trust_env": False}


def _path(parts: tuple[str, ...]) -> str:
    return "/".join(["/api/v1", *(quote(part, safe="") for part in parts)])


def _request(call: Call[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"method": call.method, "url": call.path, "params": call.pairs}
    if call.body is not None:
        found |= {"content": json.dumps(call.body).encode(), "headers": {"Content-Type": "application/json"}}
    return found


def _away(url: str, exc: httpx.HTTPError) -> Unreachable:
    return Unreachable(f"{url} did not answer: {exc}")


def _answer(url: str, call: Call[A], response: httpx.Response) -> A:
    if response.status_code >= 300:  # noqa: PLR2004  # RFC 9110 section 15: neither is what was asked for
        wait = response.headers.get("Retry-After", "")
        raise ApiError(response.status_code, response.text.strip(), float(wait) if wait.isdecimal() else 0.0)
    if not response.content:
        return cast(A, None)
    try:
        found = response.json()
    except ValueError as exc:
        raise Unreachable(f"{url} answered without JSON: it is no certctl server") from exc
    if not isinstance(found, list if call.series else dict):
        raise Unreachable(f"{url} answered with other JSON than was asked for")
    return cast(A, _page(url, cast("Json", found)) if call.rows else found)


def _page(url: str, found: Json) -> Page[Any]:
    data, total = found.get("data"), found.get("total")
    if not isinstance(data, list) or not isinstance(total, int):
        raise Unreachable(f"{url} answered without a list: it is no certctl server, or a strange one")
    return Page(data, total, str(found.get("next_cursor", "")))


def _first(call: Call[Page[T]]) -> Call[Page[T]]:
    return replace(call, query={**call.query, "cursor": "", "page_size": MOST_PER_PAGE})


def _next(call: Call[Page[T]], page: Page[T]) -> Call[Page[T]] | None:
    return replace(call, query={**call.query, "cursor": page.next_cursor}) if page.next_cursor else None


def _trusting(ca_file: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except OSError as exc:
        raise Unreachable(f"the server's CA file {ca_file} cannot be read: {exc.strerror or exc}") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file:
        # What was named is trusted as it is, an intermediate CA as well.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
