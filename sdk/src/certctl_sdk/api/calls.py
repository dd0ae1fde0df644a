"""What a call is, and what resources have alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar, cast
from urllib.parse import quote

BASE = "/api/v1/"
"""Where all paths start."""
Json: TypeAlias = dict[str, Any]
"""A decoded JSON object."""
A_co = TypeVar("A_co", covariant=True)
"""What a call answers."""
T = TypeVar("T")
"""The object of a resource."""
N = TypeVar("N")
"""The body that makes one."""
C = TypeVar("C")
"""The body that changes one."""
Q = TypeVar("Q")
"""The query of its list."""


@dataclass(frozen=True)
class Page(Generic[T]):
    """Some rows of a list, and how many there are in all."""

    data: list[T]
    """The rows, in the order asked for."""
    total: int
    """All that match, whatever the page holds."""
    next_cursor: str = ""
    """Of a walk: where it goes on; empty at its end."""


@dataclass(frozen=True)
class Call(Generic[A_co]):
    """One call, not made yet."""

    method: str
    """GET, POST, PUT or DELETE."""
    path: str
    """From the root of the server, quoted."""
    query: Mapping[str, Any] = field(default_factory=dict)
    """Lists become comma lists; None is left out."""
    body: Mapping[str, Any] | None = None
    """Sent as JSON; None sends none."""
    status: int = 200
    """What the server answers if all is well."""
    rows: bool = False
    """Whether it answers a page of a list."""
    series: bool = False
    """Whether it answers a list that has no pages."""

    @property
    def pairs(self) -> dict[str, str]:
        """The query as text."""
        return {name: _text(value) for name, value in self.query.items() if value is not None}


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def sent(value: Any) -> dict[str, Any]:
    """Return a body or a query as what is sent; none is an empty one."""
    return cast("dict[str, Any]", value or {})


@dataclass(frozen=True)
class Place:
    """Something below ``/api/v1/``."""

    path: str
    """Like ``agents/tokens``."""

    def at(self, *parts: str) -> str:
        """Return the path of what is below it; each part is one id or word."""
        return "/".join([BASE + self.path, *(quote(part, safe="") for part in parts)])


class Rows(Place, Generic[T, Q]):
    """What can be listed."""

    def list(self, query: Q | None = None) -> Call[Page[T]]:
        """Return some rows; ``{"cursor": ""}`` begins a walk through all."""
        return Call("GET", self.at(), sent(query), rows=True)


class Readable(Rows[T, Q]):
    """What can be listed and read one by one."""

    def get(self, id: str) -> Call[T]:
        """Return one object."""
        return Call("GET", self.at(id))


class Resource(Readable[T, Q], Generic[T, Q, N, C]):
    """What people make, change and remove."""

    def create(self, body: N) -> Call[T]:
        """Make one."""
        return Call("POST", self.at(), body=sent(body), status=201)

    def update(self, id: str, body: C) -> Call[T]:
        """Merge ``body`` into one."""
        return Call("PUT", self.at(id), body=sent(body))

    def delete(self, id: str) -> Call[None]:
        """Remove one."""
        return Call("DELETE", self.at(id), status=204)
