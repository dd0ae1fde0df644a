"""What the parameters of a list, and the filters of bulk actions, become in SQL.

A filter is a function of the text that a client sent and of ``Bound``, which collects the statement's arguments;
it returns a condition on the table called ``item``, or raises ValueError with words for the client.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, TypeAlias

import msgspec

from certctl_server.auth.principal import Where

VALUES = 1000
"""The most that a comma list may name."""
WORDS = {"true": True, "1": True, "false": False, "0": False}
NUMBER = re.compile(r"-?[0-9]{1,18}\Z", re.ASCII)


@dataclass(slots=True)
class Bound:
    """The arguments of one statement, in order."""

    args: list[Any] = field(default_factory=list)

    def add(self, value: Any) -> str:
        """Return the parameter that stands for ``value``."""
        self.args.append(value)
        return f"${len(self.args)}"

    def where(self, where: Where) -> str:
        """Return the condition with its arguments bound."""
        pieces = where.sql.split("{}")
        return pieces[0] + "".join(self.add(arg) + piece for arg, piece in zip(where.args, pieces[1:], strict=True))


Filter: TypeAlias = Callable[[str, Bound], str]
TEXTS = {"type": "array", "items": {"type": "string"}}
MOMENT = {"type": "string", "format": "date-time"}


@dataclass(frozen=True, slots=True)
class Described:
    """A filter that says what it takes."""

    condition: Filter
    schema: Mapping[str, Any]
    """As JSON Schema; an array stands for a comma list."""

    def __call__(self, text: str, bound: Bound) -> str:
        """Return the condition."""
        return self.condition(text, bound)


def any_of(sql: str, values: Iterable[Any], bound: Bound) -> str:
    """Return the condition that ``sql`` is one of ``values``, which are texts."""
    found = list(dict.fromkeys(values))
    if len(found) == 1:
        return f"{sql} = {bound.add(found[0])}"
    return f"{sql} IN ({{ids:{bound.add(json.dumps(found))}}})"


def _split(text: str) -> list[str]:
    found = [part.strip() for part in text.split(",")]
    if len(found) > VALUES:
        raise ValueError(f"names more than {VALUES} values")
    return found


def equal(sql: str) -> Filter:
    """Match text exactly; a comma list means any of."""
    return Described(lambda text, bound: any_of(sql, _split(text), bound), TEXTS)


def word(sql: str, values: Iterable[str], aliases: dict[str, str] | None = None) -> Filter:
    """Match one or any of an enum's values, in any case of letters; others are refused."""
    known = {value.casefold(): str(value) for value in values}
    known |= {alias.casefold(): value for alias, value in (aliases or {}).items()}

    def condition(text: str, bound: Bound) -> str:
        asked = _split(text)
        if unknown := [each for each in asked if each.casefold() not in known]:
            raise ValueError(f"{unknown[0][:64]} is none of {', '.join(dict.fromkeys(known.values()))}")
        return any_of(sql, (known[each.casefold()] for each in asked), bound)

    spellings = list(dict.fromkeys(known.values()))
    return Described(condition, {"type": "array", "items": {"type": "string", "enum": spellings}})


def flag(sql: str) -> Filter:
    """Match true or false."""

    def condition(text: str, bound: Bound) -> str:
        if text.lower() not in WORDS:
            raise ValueError("is neither true nor false")
        return f"{sql} = {bound.add(WORDS[text.lower()])}"

    return Described(condition, {"type": "string", "enum": list(WORDS)})


def number(sql: str) -> Filter:
    """Match a whole number."""

    def condition(text: str, bound: Bound) -> str:
        if not NUMBER.match(text):
            raise ValueError("is not a whole number")
        return f"{sql} = {bound.add(int(text))}"

    return Described(condition, {"type": "integer"})


def moment(text: str) -> datetime:
    """Return the RFC 3339 time in a query, where ``+`` may have become a space; raise ValueError."""
    try:
        found: datetime = msgspec.convert(text.replace(" ", "+"), Annotated[datetime, msgspec.Meta(tz=True)])
        return found.astimezone(UTC)
    except (msgspec.ValidationError, OverflowError) as exc:
        raise ValueError("is not an RFC 3339 time such as 2030-01-31T00:00:00Z") from exc


def before(sql: str) -> Filter:
    """Match what is strictly earlier."""
    return Described(lambda text, bound: f"{sql} < {bound.add(moment(text))}", MOMENT)


def after(sql: str) -> Filter:
    """Match what is strictly later."""
    return Described(lambda text, bound: f"{sql} > {bound.add(moment(text))}", MOMENT)


def since(sql: str) -> Filter:
    """Match what is as late or later."""
    return Described(lambda text, bound: f"{sql} >= {bound.add(moment(text))}", MOMENT)
