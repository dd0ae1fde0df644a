"""Talk to a certctl server: one place that knows paths, headers, envelopes and errors."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeAlias
from urllib.parse import quote, urlsplit

from certctl_sdk import profile_file
from certctl_sdk.http import httpx

TIMEOUT_SECONDS = 30.0
"""For one call."""
MOST_PER_PAGE = 500
"""The longest page that the server sends."""
Json: TypeAlias = dict[str, Any]
"""A decoded JSON object."""


class ClientError(Exception):
    """The call came to nothing. The message is for people."""


class Unreachable(ClientError):
    """The server was not reached, or is not who it should be."""


class ApiError(ClientError):
    """The server refused."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"API error (HTTP {status}): {body}")
        self.status = status
        """The HTTP status, 400 or more."""
        self.body = body
        """The answer as it came: JSON in the envelope of the API, but for what sits in between."""


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


@dataclass(frozen=True, slots=True)
class Page:
    """Some rows of a list, and how many there are in all."""

    data: list[Json]
    """The rows, in the order asked for."""
    total: int
    """All that match, whatever the page holds."""


class Client:
    """A server's API. Use it as a context manager; not for several threads at once."""

    def __init__(self, access: Access, *, timeout: float = TIMEOUT_SECONDS) -> None:
        headers = {"Accept": "application/json"}
        if access.api_key:
            headers["Authorization"] = f"Bearer {access.api_key}"
        # Loading the system's roots takes 25 ms, which plain HTTP need not pay; without any it trusts nobody.
        plain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        verify = _trusting(access.ca_file) if access.url.startswith("https:") else plain
        # A proxy of the environment would see the key of a server that is usually in the same house.
        self._http = httpx.Client(base_url=access.url, headers=headers, timeout=timeout, verify=verify, trust_env=False)
        self._url = access.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, *path: str, **query: object) -> Json:
        """Return the object at ``/api/v1/`` and the parts of ``path``; query values that are None are left out.

        Raises:
            ApiError: the server refused.
            Unreachable: it did not answer.
        """
        return self._object(self._call("GET", path, query))

    def post(self, *path: str, body: Mapping[str, Any] | None = None) -> Json:
        """Send ``body`` to ``/api/v1/`` and the parts of ``path``; return the answer; errors as of ``get``."""
        return self._object(self._call("POST", path, {}, body or {}))

    def put(self, *path: str, body: Mapping[str, Any]) -> Json:
        """Merge ``body`` into what is there and return what is there now; errors as of ``get``."""
        return self._object(self._call("PUT", path, {}, body))

    def delete(self, *path: str) -> None:
        """Remove what is there; errors as of ``get``."""
        self._call("DELETE", path, {})

    def page(self, *path: str, **query: object) -> Page:
        """Return some rows of a list; errors as of ``get``."""
        found = self.get(*path, **query)
        data, total = found.get("data"), found.get("total")
        if not isinstance(data, list) or not isinstance(total, int):
            raise Unreachable(f"{self._url} answered without a list: it is no certctl server, or a strange one")
        return Page(data=data, total=total)

    def series(self, *path: str, **query: object) -> list[Json]:
        """Return the rows of a list that has no pages; errors as of ``get``."""
        found = self._json(self._call("GET", path, query))
        if not isinstance(found, list):
            raise Unreachable(f"{self._url} answered without a list: it is no certctl server, or a strange one")
        return found

    def every(self, *path: str, **query: object) -> Iterator[Json]:
        """Walk through all rows of a list, each that exists throughout exactly once; errors as of ``get``."""
        cursor: object = ""
        while True:
            found = self.get(*path, **query, cursor=cursor, page_size=MOST_PER_PAGE)
            yield from found.get("data") or ()
            if not (cursor := found.get("next_cursor")):
                return

    def save(self, out: BinaryIO, *path: str, **query: object) -> None:
        """Write what is at ``/api/v1/`` and the parts of ``path`` to ``out`` as it comes; errors as of ``get``."""
        target, given = _target(path), _given(query)
        try:
            with self._http.stream("GET", target, params=given) as response:
                if response.status_code >= 300:  # noqa: PLR2004  # as in _call
                    response.read()
                    raise ApiError(response.status_code, response.text.strip())
                out.writelines(response.iter_bytes())
        except httpx.HTTPError as exc:
            raise Unreachable(f"{self._url} did not answer to the end: {exc}") from exc

    def _call(
        self, method: str, path: tuple[str, ...], query: Mapping[str, object], body: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        target, given = _target(path), _given(query)
        content = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            response = self._http.request(method, target, params=given, content=content, headers=headers)
        except httpx.HTTPError as exc:
            raise Unreachable(f"{self._url} did not answer: {exc}") from exc
        if response.status_code >= 300:  # noqa: PLR2004  # RFC 9110 section 15: neither is what was asked for
            raise ApiError(response.status_code, response.text.strip())
        return response

    def _object(self, response: httpx.Response) -> Json:
        found = self._json(response) if response.content else {}
        if not isinstance(found, dict):
            raise Unreachable(f"{self._url} answered with JSON that is no object")
        return found

    def _json(self, response: httpx.Response) -> Any:
        try:
            return response.json()
        except ValueError as exc:
            raise Unreachable(f"{self._url} answered without JSON: it is no certctl server") from exc


def _target(path: tuple[str, ...]) -> str:
    return "/".join(["/api/v1", *(quote(part, safe="") for part in path)])


def _given(query: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in query.items() if value is not None}


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
