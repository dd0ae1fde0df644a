"""What a client asks of a list, read from the query and checked whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

from litestar.types import Scope

from certctl_server.errors import Refused
from certctl_server.list_spec import Given, Key, ListSpec

PAGE_SIZE, MOST = 50, 500
LAST_PAGE = 2**53
PARAMETERS = 64
SIZE = re.compile(r"[0-9]{1,16}\Z", re.ASCII)
RESERVED = frozenset({"page", "per_page", "page_size", "cursor", "sort", "sort_desc", "fields", "_"})


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client wants of a list."""

    spec: ListSpec
    filters: Given
    sort: str
    descending: bool
    cursor: str | None
    page: int
    size: int
    fields: frozenset[str]

    @property
    def key(self) -> Key:
        """The key that is sorted by."""
        return self.spec.keys[self.sort]

    @property
    def way(self) -> str:
        """The direction, as SQL says it."""
        return "DESC" if self.descending else "ASC"


def query(scope: Scope) -> dict[str, str]:
    """Return the parameters of a request.

    Raises:
        Refused: 400 for one that is given twice, is not UTF-8 or holds U+0000.
    """
    raw: bytes = scope["query_string"]
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=PARAMETERS)
    except ValueError as exc:
        raise Refused(HTTPStatus.BAD_REQUEST, "The query cannot be read") from exc
    found: dict[str, str] = {}
    faults: dict[str, str] = {}
    for name, value in pairs:
        if name in found:
            faults[name] = "is given more than once"
        if "\0" in name + value:
            faults[name.replace("\0", "")] = "holds the character U+0000"
        found[name] = value
    if faults:
        raise unfit(faults)
    return found


def unfit(faults: Mapping[str, str]) -> Refused:
    """Return the 400 that names these parameters."""
    return Refused(HTTPStatus.BAD_REQUEST, "Some parameters are not valid", faults)


def asked(spec: ListSpec, given: Given) -> Asked:
    """Return what these parameters ask.

    Raises:
        Refused: 400, naming all that are unknown, contradict each other or have a value that is not possible.
    """
    faults: dict[str, str] = {}

    def take(name: str, read: Callable[[str], Any], otherwise: Any) -> Any:
        if name not in given:
            return otherwise
        try:
            return read(given[name])
        except ValueError as exc:
            faults[name] = str(exc)
            return otherwise

    paged = "page" in given or "per_page" in given
    if "cursor" in given and paged:
        faults["cursor"] = "goes with page_size, not with page or per_page"
    cursor = given.get("cursor", "" if "page_size" in given and not paged else None)
    size = take("page_size", _size, PAGE_SIZE)
    name, descending = take("sort", lambda text: _sort(spec, text), _sort(spec, spec.order))
    # Of a name without "-"; the default order has its own direction.
    if take("sort_desc", _word, otherwise=False) and given.get("sort"):
        descending = True
    found = Asked(
        spec=spec,
        filters={key: text for key, text in given.items() if text and key not in RESERVED | spec.others},
        sort=name,
        descending=descending,
        cursor=cursor,
        page=take("page", _page, 1),
        size=take("per_page", _size, size),
        fields=take("fields", lambda text: _fields(spec, text), frozenset()),
    )
    for key in given.keys() - RESERVED - spec.others - spec.every_filter.keys():
        faults[key] = "is unknown"
    if faults:
        raise unfit(faults)
    return found


def number_to(most: int, text: str) -> int:
    """Return the number from 1 to ``most`` that ``text`` is; raise ValueError."""
    if not SIZE.match(text) or not 1 <= int(text) <= most:
        raise ValueError(f"is not a number from 1 to {most}")
    return int(text)


def _size(text: str) -> int:
    return number_to(MOST, text)


def _page(text: str) -> int:
    return number_to(LAST_PAGE, text)


def _sort(spec: ListSpec, text: str) -> tuple[str, bool]:
    text = text or spec.order
    return spec.sort_key(text.removeprefix("-")), text.startswith("-")


def _word(text: str) -> bool:
    if text.lower() not in {"true", "false", "1", "0"}:
        raise ValueError("is neither true nor false")
    return text.lower() in {"true", "1"}


def _fields(spec: ListSpec, text: str) -> frozenset[str]:
    names = frozenset(name.strip() for name in text.split(",") if name.strip())
    if unknown := sorted(names - spec.fields):
        raise ValueError(f"names what is not there: {', '.join(unknown)[:200]}")
    return names
