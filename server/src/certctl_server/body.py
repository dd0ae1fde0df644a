"""Read a JSON object into the fields of a Struct: all faults at once, unknown keys ignored and named.

A handler that creates calls ``new``, one that changes calls ``changes``. What was ignored of the body is named
in the answer by the front, whatever the handler returns.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from http import HTTPStatus
from itertools import islice
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union
from urllib.parse import quote

import msgspec
from litestar import Request
from litestar.exceptions import InternalServerException

from certctl_server.errors import FIELD_CHARACTERS, MOST_FAULTS, Refused, invalid
from certctl_server.ids import PATTERN

S = TypeVar("S", bound=msgspec.Struct)
Convert: TypeAlias = Callable[[Any], Any]

ID = Annotated[str, msgspec.Meta(pattern=PATTERN)]
"""The id of a row: the new one's or a reference."""
HARMLESS = (
    r"^[^\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb"
    r"\U000e0000-\U000e007f]*\Z"
)
"""Text of one line, without characters that move a cursor, cannot be seen, or turn around what follows."""
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=HARMLESS)]
"""What people call a row."""
Time = Annotated[datetime, msgspec.Meta(tz=True)]
"""A moment with any offset; the value is UTC."""
Email = Annotated[str, msgspec.Meta(max_length=255, pattern=r"^([^@\s<>()\[\],;:\\\"]+@[^@\s<>()\[\],;:\\\"]+)?\Z")]
"""An address, or nothing."""

FAULT = "fault"
"""Among the ``extra`` of a type's ``msgspec.Meta``: a function that returns what is wrong with a value, or None."""
NOTHING: Mapping[str, str] = {}
MANAGED = frozenset({"id", "status", "attempts", "serial_number"})
"""Keys that only the server writes, beside all that end in ``_at``: sent back by clients, and not worth a word."""
SPACE = b" \t\r\n"
"""What JSON takes for white space."""
DEPTH = 32
"""How deep the objects and lists of a body may lie in each other."""
NAMED_IGNORED = 50
ZERO_TIME = re.compile(r"0001-01-01T00:00:00(\.0+)?(Z|[+-]00:00)\Z", re.IGNORECASE)
PLACE = re.compile(r" - at `(?:key in )?\$(.*)`\Z")
FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True)
class Field:
    """One key of a body."""

    name: str
    key: str
    required: bool
    default: Callable[[], Any]
    type: Any
    convert: Convert | None
    """Brings enum values to their spelling, if there are any."""
    is_text: bool
    is_time: bool
    is_collection: bool
    optional: bool
    checked: bool
    """Whether something in it is looked at beside its type."""


async def new(request: Request[Any, Any, Any], struct: type[S], *, aliases: Mapping[str, str] = NOTHING) -> S:
    """Return the body of a POST as ``struct``; null, "" and the zero time count as absent.

    ``aliases`` maps other names of keys to the real ones. Nested structs and enums are read as everywhere: enum
    values in any case of letters. A key called ``id`` is read if the struct has it.

    Raises:
        Refused: 400 naming every field at fault, 413 or 415.
    """
    values = await _values(request, struct, aliases, whole=True)
    return struct(**values)


async def changes(
    request: Request[Any, Any, Any], struct: type[msgspec.Struct], *, aliases: Mapping[str, str] = NOTHING
) -> dict[str, Any]:
    """Return the fields of ``struct`` that the body of a PUT carries, by field name.

    null clears an optional scalar, which is then its default, is a fault for a required one, and is ignored for
    lists and maps.

    Raises:
        Refused: 400 naming every field at fault, 413 or 415.
    """
    return await _values(request, struct, aliases, whole=False)


async def _values(
    request: Request[Any, Any, Any], struct: type[msgspec.Struct], aliases: Mapping[str, str], *, whole: bool
) -> dict[str, Any]:
    raw = await raw_json(request)
    values, ignored = read(raw, struct, whole=whole, aliases=aliases)
    if ignored:
        request.scope["state"]["ignored_fields"] = ignored
    return values


async def raw_json(request: Request[Any, Any, Any]) -> bytes:
    """Return the bytes of a body that may be JSON.

    Raises:
        Refused: 415 for another type of content, 413 for more than the limit, 400 if the client is gone.
    """
    try:
        raw = await request.body()
    except InternalServerException as exc:
        raise Refused(HTTPStatus.BAD_REQUEST, "The client went away before its body was whole") from exc
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not raw or not given or given == "application/json" or given.endswith("+json"):
        return raw
    bearer = request.headers.get("authorization", "")[:7].lower() == "bearer "
    # What curl -d says of a body when it is told nothing.
    if given == FORM and bearer and raw.lstrip()[:1] == b"{":
        return raw
    raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"The body must be application/json, not {given}")


def read(
    raw: bytes, struct: type[msgspec.Struct], *, whole: bool, aliases: Mapping[str, str] = NOTHING
) -> tuple[dict[str, Any], list[str]]:
    """Return the values of the keys in ``raw`` that ``struct`` has, by field name, and the keys that it lacks.

    Raises:
        Refused: 400, naming every field at fault.
    """
    body = _decode(raw)
    for alias, name in aliases.items():
        if alias in body and name not in body:
            body[name] = body.pop(alias)
    plan = _plan(struct)
    values: dict[str, Any] = {}
    faults: dict[str, str] = {}
    for field in plan:
        if field.key not in body:
            _absent(field, values, faults, whole=whole)
        else:
            _present(field, body[field.key], values, faults, whole=whole)
    if faults:
        raise invalid(faults)
    known = {field.key for field in plan} | aliases.keys() | MANAGED
    return values, sorted(key for key in body if key not in known and not key.endswith("_at"))


def ignored_header(names: list[str]) -> str:
    """Return what ``X-Certctl-Ignored-Fields`` says; the names are strangers' text and made harmless."""
    return ",".join(quote(name[:64], safe="$-_.[]") for name in names[:NAMED_IGNORED])


def _absent(field: Field, values: dict[str, Any], faults: dict[str, str], *, whole: bool) -> None:
    if whole and field.required:
        faults[field.key] = "required"
    elif whole:
        values[field.name] = field.default()


def _present(field: Field, value: Any, values: dict[str, Any], faults: dict[str, str], *, whole: bool) -> None:
    if _is_empty(field, value, whole=whole):
        if whole:
            _absent(field, values, faults, whole=True)
        elif field.required and not field.is_collection:
            faults[field.key] = "required"
        elif not field.is_collection:
            values[field.name] = None if field.optional else field.default()
        return
    try:
        values[field.name] = _utc(msgspec.convert(field.convert(value) if field.convert else value, field.type))
    except (msgspec.ValidationError, OverflowError):
        faults.update(_faults(field.key, value, field.type))
        return
    if field.checked:
        faults.update(_faults(field.key, value, field.type))


def _is_empty(field: Field, value: Any, *, whole: bool) -> bool:
    if value is None:
        return True
    if value == "":
        return whole or not field.is_text or field.optional
    return field.is_time and isinstance(value, str) and ZERO_TIME.match(value) is not None


def _faults(path: str, value: Any, type_: Any) -> Iterator[tuple[str, str]]:
    """Everything that is wrong with a value, where msgspec tells of the first fault alone."""
    parts = islice(_inner_faults(path, value, type_), MOST_FAULTS + 1)
    if found := list(parts):
        yield from found
        return
    convert = _spelling(type_)
    try:
        _utc(msgspec.convert(convert(value) if convert else value, type_))
    except (msgspec.ValidationError, OverflowError) as exc:
        yield _told(path, str(exc))
    else:
        yield from ((path, fault) for check in _checks(type_) if (fault := check(value)))


def _inner_faults(path: str, value: Any, type_: Any) -> Iterator[tuple[str, str]]:
    item, most, struct = _item_type(type_), _most_items(type_), _struct_type(type_)
    if isinstance(value, list) and item is not None:
        if most is not None and len(value) > most:
            yield path, f"Expected `array` of length <= {most}"
            return
        for index, each in enumerate(value):
            yield from _faults(f"{path}[{index}]", each, item)
    elif isinstance(value, dict) and struct is not None:
        for field in _plan(struct):
            if field.key in value:
                yield from _faults(f"{path}.{field.key}", value[field.key], field.type)
            elif field.required:
                yield f"{path}.{field.key}", "required"


def _checks(type_: Any) -> list[Callable[[Any], str | None]]:
    notes = typing.get_args(type_)[1:] if typing.get_origin(type_) is Annotated else ()
    extras = [note.extra or {} for note in notes if isinstance(note, msgspec.Meta)]
    return [extra[FAULT] for extra in extras if FAULT in extra]


@lru_cache(maxsize=1024)
def _is_checked(type_: Any) -> bool:
    """Whether something in a type is looked at by more than msgspec."""
    if _checks(type_):
        return True
    item, struct = _item_type(type_), _struct_type(type_)
    if item is not None and _is_checked(item):
        return True
    return struct is not None and any(field.checked for field in _plan(struct))


def _told(path: str, message: str) -> tuple[str, str]:
    message = message.replace(f"Expected `str` matching regex {HARMLESS!r}", "holds characters that do not show")
    if place := PLACE.search(message):
        return path + place[1], message[: place.start()]
    return path, message


def _decode(raw: bytes) -> dict[str, Any]:
    try:
        body: dict[str, Any] = msgspec.json.decode(raw.strip(SPACE) or b"{}", type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise Refused(HTTPStatus.BAD_REQUEST, f"The body is not a JSON object: {exc}") from exc
    # Walking costs more than decoding, so only bodies that could be at fault are walked.
    if b"\\u0000" in raw or raw.count(b"[") + raw.count(b"{") > DEPTH:
        told = (each for key, value in body.items() for each in _unfit(key[:FIELD_CHARACTERS], value, 1))
        faults = dict(islice(told, MOST_FAULTS + 1))
        if any("\0" in key for key in body):
            faults["body"] = "a key holds the character U+0000"
        if faults:
            raise invalid(faults)
    return body


def _unfit(path: str, value: Any, depth: int) -> Iterator[tuple[str, str]]:
    if depth > DEPTH:
        yield path, f"lies deeper than {DEPTH} objects and lists"
    elif isinstance(value, str) and "\0" in value:
        yield path, "holds the character U+0000"
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _unfit(f"{path}[{index}]"[:FIELD_CHARACTERS], each, depth + 1)
    elif isinstance(value, dict):
        for key, each in value.items():
            if "\0" in key:
                yield path, "a key holds the character U+0000"
            else:
                yield from _unfit(f"{path}.{key[:FIELD_CHARACTERS]}"[:FIELD_CHARACTERS], each, depth + 1)


def _utc(value: Any) -> Any:
    return value.astimezone(UTC) if isinstance(value, datetime) else value


@lru_cache(maxsize=256)
def _plan(struct: type[msgspec.Struct]) -> tuple[Field, ...]:
    return tuple(_field(field) for field in msgspec.structs.fields(struct))


def _field(field: msgspec.structs.FieldInfo) -> Field:
    kinds = {_bare(part) for part in _parts(field.type)}
    return Field(
        name=field.name,
        key=field.encode_name,
        required=field.required,
        default=_default(field),
        type=field.type,
        convert=_spelling(field.type),
        is_text=str in kinds,
        is_time=datetime in kinds,
        is_collection=bool(kinds & {list, tuple, dict, set, frozenset}),
        optional=type(None) in kinds,
        checked=_is_checked(field.type),
    )


def _default(field: msgspec.structs.FieldInfo) -> Callable[[], Any]:
    if field.default_factory is not msgspec.NODEFAULT:
        factory: Callable[[], Any] = field.default_factory
        return factory
    return lambda: field.default


def _parts(type_: Any) -> list[Any]:
    """The members of a union, one for anything else; annotations are peeled off."""
    if typing.get_origin(type_) is Annotated:
        return _parts(typing.get_args(type_)[0])
    if typing.get_origin(type_) in {Union, types.UnionType}:
        return [part for each in typing.get_args(type_) for part in _parts(each)]
    return [type_]


def _bare(type_: Any) -> Any:
    return typing.get_origin(type_) or type_


def _most_items(type_: Any) -> int | None:
    """How many items the lists of a type may have, None if it does not say."""
    if typing.get_origin(type_) is Annotated:
        bare, *notes = typing.get_args(type_)
        found = [note.max_length for note in notes if isinstance(note, msgspec.Meta) and note.max_length is not None]
        return min(found) if found else _most_items(bare)
    if typing.get_origin(type_) in {Union, types.UnionType}:
        return next((most for each in typing.get_args(type_) if (most := _most_items(each)) is not None), None)
    return None


def _struct_type(type_: Any) -> type[msgspec.Struct] | None:
    kinds = (part for part in _parts(type_) if isinstance(part, type) and issubclass(part, msgspec.Struct))
    return next(kinds, None)


def _item_type(type_: Any) -> Any:
    for part in _parts(type_):
        if _bare(part) in {list, tuple} and (arguments := typing.get_args(part)):
            return arguments[0]
    return None


@lru_cache(maxsize=1024)
def _spelling(type_: Any) -> Convert | None:
    """Return what brings the enum values in a value of ``type_`` to their spelling; None if it has none."""
    found = [convert for part in _parts(type_) if (convert := _part_spelling(part))]
    if not found:
        return None
    if len(found) == 1:
        return found[0]

    def each(value: Any) -> Any:
        for convert in found:
            value = convert(value)
        return value

    return each


def _part_spelling(part: Any) -> Convert | None:
    bare = _bare(part)
    members: type[Enum] | None = bare if isinstance(bare, type) and issubclass(bare, Enum) else None
    if bare is Literal or members:
        values = [member.value for member in members] if members else typing.get_args(part)
        words = {value.casefold(): value for value in values if isinstance(value, str)}
        return lambda value: words.get(value.casefold(), value) if isinstance(value, str) else value
    if bare in {list, tuple} and (item := _item_type(part)) is not None and (convert := _spelling(item)):
        spell = convert
        return lambda value: [spell(each) for each in value] if isinstance(value, list) else value
    if isinstance(bare, type) and issubclass(bare, msgspec.Struct):
        return _struct_spelling(bare)
    return None


def _struct_spelling(struct: type[msgspec.Struct]) -> Convert | None:
    fields = {
        field.encode_name: convert for field in msgspec.structs.fields(struct) if (convert := _spelling(field.type))
    }
    if not fields:
        return None

    def spell(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: fields[key](each) if key in fields else each for key, each in value.items()}

    return spell
