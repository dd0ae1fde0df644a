"""From the text of files to objects that are wanted."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from certctl_sdk.declared.kinds import KINDS, Kind, kind_named
from certctl_sdk.declared.text import Fault, Reading, Value

ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Declared:
    """One object that is wanted."""

    kind: Kind
    id: str
    """Empty: whichever has its name."""
    body: Mapping[str, Value]
    """What is said of it, its id aside."""
    file: str
    line: int

    @property
    def name(self) -> str:
        """What it is to be called; empty if that is not said."""
        found = self.body.get("name")
        return found.it if found and isinstance(found.it, str) else ""

    @property
    def label(self) -> str:
        """Its id, else its name."""
        return self.id or self.name

    def fault(self, field: str, message: str, line: int = 0) -> Fault:
        """Return what is wrong with one of its fields; none is the object itself."""
        path = ".".join(filter(None, (self.kind.path, self.label, field)))
        return Fault(self.file, line or self.line_of(field), path, message)

    def line_of(self, field: str) -> int:
        """Return the line of the innermost part of ``field`` that the file has, as ``config.url`` or ``sans[2]``."""
        here, line = Value(dict(self.body), self.line), self.line
        for part in field.replace("[", ".").replace("]", "").split("."):
            inside = here.it
            if isinstance(inside, dict) and part in inside:
                here = inside[part]
            elif isinstance(inside, list) and part.isdigit() and int(part) < len(inside):
                here = inside[int(part)]
            else:
                break
            line = here.line
        return line


@dataclass(slots=True)
class Files:
    """What is declared in some files, and what is wrong with them."""

    declared: list[Declared] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def read_files(names: Iterable[str], environ: Mapping[str, str]) -> Files:
    """Return what the files declare, those with the endings of YAML in directories among them; ``-`` is the input."""
    found = Files()
    for name in names:
        for file in _files(name):
            reading = Reading(file, environ)
            try:
                text = sys.stdin.buffer.read() if name == "-" else Path(file).read_bytes()
            except OSError as exc:
                reading.fault(0, f"cannot be read: {exc.strerror}")
                text = b""
            for document in reading.documents(text):
                found.declared += _objects(document, reading)
            found.faults += reading.faults
    found.faults += _twice(found.declared)
    return found


def _files(name: str) -> list[str]:
    path = Path(name)
    if name != "-" and path.is_dir():
        return sorted(str(each) for each in path.iterdir() if each.suffix in ENDINGS and each.is_file())
    return ["standard input" if name == "-" else name]


def _objects(document: Value, reading: Reading) -> Iterator[Declared]:
    if document.it is None:
        return
    if not isinstance(document.it, dict):
        reading.fault(document.line, "is a map of kinds, or of one object with its kind")
        return
    if isinstance((given := document.it.get("kind", Value({}, 0))).it, str):
        if kind := _kind(given.it, given.line, reading):
            rest = {key: each for key, each in document.it.items() if key != "kind"}
            yield from _object(kind, "", Value(rest, document.line), reading)
        return
    for name, several in document.it.items():
        if kind := _kind(name, several.line, reading):
            yield from _several(kind, several, reading)


def _kind(name: str, line: int, reading: Reading) -> Kind | None:
    if (kind := kind_named(name)) is None:
        reading.fault(line, f"{name!r} is none of {', '.join(each.path for each in KINDS)}")
    return kind


def _several(kind: Kind, several: Value, reading: Reading) -> Iterator[Declared]:
    if isinstance(several.it, dict):
        for id, each in several.it.items():
            yield from _object(kind, id, each, reading)
    elif isinstance(several.it, list):
        for each in several.it:
            yield from _object(kind, "", each, reading)
    elif several.it is not None:
        reading.fault(several.line, f"{kind.path} is a list, or a map by id")


def _object(kind: Kind, key: str, value: Value, reading: Reading) -> Iterator[Declared]:
    if value.it is not None and not isinstance(value.it, dict):
        reading.fault(value.line, f"{kind.path}: each is a map of its fields")
        return
    body: dict[str, Value] = dict(value.it or {})
    given = body.pop("id", Value(key, value.line))
    if not isinstance(given.it, str) or (key and given.it != key):
        reading.fault(given.line, f"{kind.path}: an id is text, and the key where there is one: quote numbers")
        return
    found = Declared(kind, given.it, body, reading.file, value.line)
    if not found.label:
        reading.fault(value.line, f"{kind.path}: each needs an id or a name")
        return
    yield found


def _twice(declared: Iterable[Declared]) -> Iterator[Fault]:
    ids: dict[tuple[str, str], Declared] = {}
    names: dict[tuple[str, str], Declared] = {}
    for each in declared:
        places = [(ids, "id", each.id)] if each.id else []
        if each.name and (each.kind.own_names or not each.id):
            places.append((names, "name", each.name))
        for seen, what, word in places:
            first = seen.setdefault((each.kind.path, word), each)
            if first is not each:
                yield each.fault("", f"{first.file}:{first.line} has the {what} {word} as well")
