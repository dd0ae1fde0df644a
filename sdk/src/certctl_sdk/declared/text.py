"""YAML as plain values that remember their lines.

Only what JSON can say is read, and only what looks like it: ``no`` is a word and ``22:00`` a time of day, as in
YAML 1.2, where YAML 1.1 takes them for false and 1320. ``!env NAME`` is the text of an environment variable.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

DEPTH = 32
"""How deep lists and maps may lie in each other."""
MOST_VALUES = 1_000_000
"""In one file; an alias counts as all it stands for."""
_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "null": (re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    "int": (re.compile(r"[-+]?(0|[1-9][0-9]{0,17})"), list("-+0123456789")),
    "float": (
        re.compile(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]+([eE][-+]?[0-9]{1,2})?|[eE][-+]?[0-9]{1,2})"),
        list("-+0123456789"),
    ),
}
_READ: Mapping[str, Callable[[str], Any]] = {
    "null": lambda _: None,
    "bool": lambda text: text.lower() == "true",
    "int": int,
    "float": float,
}
# Made by hand: a subclass of what has no types would have none either.
_Loader: Any = type("_Loader", (getattr(yaml, "CSafeLoader", yaml.SafeLoader),), {"yaml_implicit_resolvers": {}})
for _name, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern.pattern})\Z"), _first)


@dataclass(frozen=True, slots=True)
class Value:
    """One value, and where it stands."""

    it: Any
    """Text, number, bool, None, a list of values, or a dict of them by text."""
    line: int

    @property
    def plain(self) -> Any:
        """The same without lines, as JSON has it."""
        if isinstance(self.it, dict):
            return {key: each.plain for key, each in self.it.items()}
        return [each.plain for each in self.it] if isinstance(self.it, list) else self.it


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One thing that is wrong, and where."""

    file: str
    line: int
    field: str
    """Like ``owners.o-ada.team_id``; empty where the text is at fault."""
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.field + ': ' if self.field else ''}{self.message}"


@dataclass(slots=True)
class Reading:
    """One file being read."""

    file: str
    environ: Mapping[str, str]
    faults: list[Fault] = field(default_factory=list)
    left: int = MOST_VALUES

    def documents(self, text: str | bytes) -> Iterator[Value]:
        """Yield each document; what is wrong is in ``faults`` afterwards."""
        loader = _Loader(text)
        try:
            while loader.check_node():
                yield self._value(loader.get_node(), DEPTH)
        except yaml.MarkedYAMLError as exc:
            mark = exc.problem_mark or exc.context_mark
            self.fault(mark.line + 1 if mark else 1, exc.problem or "is no YAML")
        except (yaml.YAMLError, UnicodeDecodeError) as exc:
            self.fault(1, f"is no YAML: {str(exc).splitlines()[0]}")
        finally:
            loader.dispose()

    def fault(self, line: int, message: str) -> None:
        """Note what is wrong with the text."""
        self.faults.append(Fault(self.file, line, "", message))

    def _value(self, node: Any, depth: int) -> Value:
        line = node.start_mark.line + 1
        self.left -= 1
        if depth == 0 or self.left < 0:
            # Unlike other faults this one is told once: an alias may stand for itself.
            deep = "lies too deep" if depth == 0 else f"the file holds more than {MOST_VALUES} values"
            raise yaml.MarkedYAMLError(problem=deep, problem_mark=node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            return Value(self._scalar(node, line), line)
        if node.tag not in {_TAG + "seq", _TAG + "map"}:
            self.fault(line, f"the tag {node.tag} means nothing here")
        if isinstance(node, yaml.SequenceNode):
            return Value([self._value(each, depth - 1) for each in node.value], line)
        return Value(self._map(node, depth), line)

    def _map(self, node: Any, depth: int) -> dict[str, Value]:
        found: dict[str, Value] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                self.fault(line, "a key is text")
            elif key.value in found:
                self.fault(line, f"the key {key.value!r} stands here twice")
            else:
                found[key.value] = self._value(value, depth - 1)
        return found

    def _scalar(self, node: Any, line: int) -> Any:
        tag, text = node.tag.removeprefix(_TAG), str(node.value)
        if tag == "str":
            return text
        if tag == "!env":
            if text not in self.environ:
                self.fault(line, f"the environment has no variable {text!r}")
            return self.environ.get(text, "")
        if tag not in _SCALARS or not _SCALARS[tag][0].fullmatch(text):
            self.fault(line, f"the tag {node.tag} means nothing here")
            return None
        return _READ[tag](text)
