"""Stored options: their secrets sealed, hidden from every reader, and opened only for the instance.

The stored object keeps what clients sent, key for key. Which values are secret is the connector's to say
(``certctl_core.config.is_secret``); of a key that it does not know, which may be a secret's misspelt, and of a
kind that is not installed, every text is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, get_args, get_origin

from certctl_core.config import is_secret
from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo

from certctl_server.sealing import Cipher, is_sealed

HIDDEN = "********"
ADDRESS = re.compile(
    r"(?:^|[_-]|base)(?:url|uri|host|hostname|addr|address|server|endpoint|domain|socket|proxy|port|region)s?$",
    re.IGNORECASE,
)
"""Of keys whose options say to whom secrets are sent."""
Raw: TypeAlias = Mapping[str, Any]


def seal(model: type[BaseModel] | None, raw: Raw, cipher: Cipher, where: str) -> dict[str, Any]:
    """Return ``raw`` with every secret sealed for ``where``; empty ones and those sealed already stay."""
    return _secrets(model, raw, lambda text: text if not text or is_sealed(text) else cipher.seal(text, where))


def hide(model: type[BaseModel] | None, raw: Raw) -> dict[str, Any]:
    """Return ``raw`` as readers may see it: every secret that is not empty as ``********``."""
    return _secrets(
        model, _every_text(raw, lambda text: HIDDEN if is_sealed(text) else text), lambda s: HIDDEN if s else s
    )


def unseal(raw: Raw, cipher: Cipher, where: str) -> dict[str, Any]:
    """Return ``raw`` with its secrets in the clear, for an instance alone.

    Raises:
        MisconfiguredError: a secret cannot be opened.
    """
    return _every_text(raw, lambda text: cipher.open(text, where) if is_sealed(text) else text)


def merged(model: type[BaseModel] | None, old: Raw, new: Raw) -> dict[str, Any]:
    """Return ``old`` changed by ``new`` at the first level: null removes a key, ``********`` keeps what is stored.

    A key that is given takes the place of other spellings of it.
    """
    replaced = {other for key in new for other in _spellings(model, key)}
    kept = {key: value for key, value in old.items() if key not in replaced}
    given = {key: _kept(_stored(model, old, key), value) for key, value in new.items()}
    return kept | {key: value for key, value in given.items() if value is not None}


def sealed_keys(raw: Raw) -> list[str]:
    """Return the keys under which a client sent what only this program writes: nobody may move secrets about."""
    return [key for key, value in raw.items() if any(map(is_sealed, _texts(value)))]


def spellings(model: type[BaseModel] | None) -> set[str]:
    """Return every name of every option at the first level."""
    return {key for name, field in model.model_fields.items() for key in _keys(name, field)} if model else set()


def files(model: type[BaseModel] | None, raw: Raw, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the key and the value of every option that names a file or a directory, nested ones by dotted key."""
    fields = {key: field for name, field in model.model_fields.items() for key in _keys(name, field)} if model else {}
    for key, value in raw.items():
        types = list(_types(fields[key].annotation)) if key in fields else []
        if Path in types:
            yield from ((path + key, each) for each in _texts(value) if each)
        elif isinstance(value, Mapping):
            for nested in (each for each in types if isinstance(each, type) and issubclass(each, BaseModel)):
                yield from files(nested, value, f"{path}{key}.")


def moved(old: Raw, new: Raw, same: Callable[[Any, Any], bool]) -> str:
    """Return the key of an option that says to whom the connector speaks and has changed; empty if none has."""
    there, here = dict(_addresses(old, "")), dict(_addresses(new, ""))
    changed = [path for path in there.keys() | here.keys() if not same(there.get(path), here.get(path))]
    return min(changed, default="")


def kept_secrets(kept: Raw) -> list[str]:
    """Return the keys under which secrets lie that were stored before; what an address is made of is none of them."""
    return [key for key in sealed_keys(kept) if not ADDRESS.search(key)]


def _addresses(raw: Raw, path: str) -> Iterator[tuple[str, Any]]:
    for key, value in raw.items():
        if ADDRESS.search(key):
            yield path + key, value
        elif isinstance(value, Mapping):
            yield from _addresses(value, f"{path}{key}.")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each)


def _stored(model: type[BaseModel] | None, old: Raw, key: str) -> Any:
    return next((old[other] for other in (key, *_spellings(model, key)) if other in old), None)


def _spellings(model: type[BaseModel] | None, key: str) -> tuple[str, ...]:
    """The names of the option that ``key`` names, itself included."""
    for name, field in model.model_fields.items() if model else ():
        if key in (keys := tuple(_keys(name, field))):
            return keys
    return (key,)


def _kept(old: Any, new: Any) -> Any:
    """``new``, with what is stored wherever it says ``********``; None where nothing is."""
    if new == HIDDEN:
        return old
    if isinstance(new, Mapping):
        stored = old if isinstance(old, Mapping) else {}
        inner = {key: (_kept(stored.get(key), value), value) for key, value in new.items()}
        return {key: kept for key, (kept, value) in inner.items() if kept is not None or value is None}
    if isinstance(new, list):
        stored_items = old if isinstance(old, list) else []
        padded = [*stored_items, *([None] * len(new))]
        items = [(_kept(padded[index], value), value) for index, value in enumerate(new)]
        return [kept for kept, value in items if kept is not None or value is None]
    return new


def _secrets(model: type[BaseModel] | None, raw: Raw, change: Callable[[str], str]) -> dict[str, Any]:
    if model is None:
        return _every_text(raw, change)
    fields = {key: field for name, field in model.model_fields.items() for key in _keys(name, field)}
    changed = dict(raw)
    for key, value in raw.items():
        if key not in fields or is_secret(fields[key]):
            changed[key] = _changed(value, change)
        elif isinstance(value, Mapping):
            types = _types(fields[key].annotation)
            for nested in (each for each in types if isinstance(each, type) and issubclass(each, BaseModel)):
                changed[key] = _secrets(nested, changed[key], change)
    return changed


def _every_text(raw: Raw, change: Callable[[str], str]) -> dict[str, Any]:
    return {key: _changed(value, change) for key, value in raw.items()}


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return _every_text(value, change)
    if isinstance(value, list):
        return [_changed(each, change) for each in value]
    return value


def _keys(name: str, field: FieldInfo) -> Iterator[str]:
    yield name
    match field.validation_alias:
        case AliasChoices(choices=choices):
            yield from (choice for choice in choices if isinstance(choice, str))
        case str(alias):
            yield alias


def _types(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is None:
        yield annotation
    for part in get_args(annotation):
        yield from _types(part)
