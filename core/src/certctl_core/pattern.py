"""Regular expressions that an admin writes and strangers' names are held against.

``re`` backtracks: ``(a+)+b`` takes it years over forty characters, and telling harmless patterns from
harmful ones is guesswork. Here a pattern is run as a finite automaton, so that the time grows with
length of pattern times length of text and no more. What such an automaton cannot do is refused:
back-references, looking ahead or behind, and possessive or atomic groups.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

MAX_PATTERN = 1000
MAX_STATES = 1500
MAX_READS = 300
"""Of characters that are read, once repetitions are written out: two host labels of any length need 126."""
MAX_DEPTH = 20
"""Of groups within groups."""
MAX_TEXT = 2048
"""The longest name there is (a URI)."""

_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\\\]])*\]")
_NESTED_SET = re.compile(r"(?<!\\)(?:\[|--|&&|\|\||~~)")
_ESCAPE = re.compile(r"\\(?:[dDwWsS]|[^A-Za-z0-9]|[nrtfv]|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4})")
_GROUP = re.compile(r"\((?!\?)|\(\?:|\(\?P?<\w+>")
_BOUNDS = re.compile(r"\{(\d+)(,?)(\d*)\}|[*+?]")
_SIGNS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_START, _END = ("^", r"\A"), ("$", r"\Z", r"\z")


@dataclass(frozen=True, slots=True)
class _One:
    """One character that ``reads`` admits."""

    reads: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class _Sequence:
    """One part after the other."""

    parts: list[_Node]


@dataclass(frozen=True, slots=True)
class _Choice:
    """One of the branches."""

    branches: list[_Node]


@dataclass(frozen=True, slots=True)
class _Repeat:
    """``part`` at least and at most so often."""

    part: _Node
    least: int
    most: int | None


_Node = _One | _Sequence | _Choice | _Repeat


@dataclass(slots=True)
class _State:
    """Reads one character that ``reads`` admits and goes on to ``exits``; without ``reads`` it goes on at once."""

    reads: re.Pattern[str] | None = None
    exits: list[_State] = field(default_factory=list)


class PatternTooSlow(Exception):
    """Matching took more steps than the caller allows; whether the text fits is not known."""


@dataclass(slots=True)
class Budget:
    """The steps that matching may still take, over any number of patterns and texts."""

    steps: int
    """A step is one state looked at for one character, well under a microsecond."""

    def spend(self, steps: int) -> None:
        """Count ``steps``; raise PatternTooSlow once more are taken than there are."""
        self.steps -= steps
        if self.steps < 0:
            raise PatternTooSlow("matching takes too many steps")


class Pattern:
    """A regular expression that takes no longer than it should. It always has to fit the whole text.

    Raises:
        ValueError: ``text`` is no such expression, is too long, or uses what cannot be bounded in time.
    """

    def __init__(self, text: str) -> None:
        if len(text) > MAX_PATTERN:
            raise ValueError(f"a pattern has at most {MAX_PATTERN} characters")
        self.text = text
        """As given."""
        self._first = _State()
        self._last = _Automaton().add(_Reader(text).read(), self._first)

    def fits(self, text: str, budget: Budget | None = None) -> bool:
        """Return whether the whole of ``text`` is one of those that the pattern describes; too long a text is none.

        Raises:
            PatternTooSlow: it takes more steps than ``budget`` has left; never without a budget.
        """
        if len(text) > MAX_TEXT:
            return False
        here = _reachable([self._first])
        for character in text:
            if budget:
                budget.spend(len(here))
            here = _reachable([e for s in here if s.reads and s.reads.match(character) for e in s.exits])
            if not here:
                return False
        return any(state is self._last for state in here)


@lru_cache(maxsize=256)
def pattern(text: str) -> Pattern:
    """Return the pattern that ``text`` spells, made once and kept; errors as ``Pattern``."""
    return Pattern(text)


def _reachable(states: list[_State]) -> list[_State]:
    """Return the states themselves and what can be reached from them without reading."""
    seen = {id(state): state for state in states}
    todo = list(seen.values())
    while todo:
        if (state := todo.pop()).reads is None:
            fresh = {id(e): e for e in state.exits if id(e) not in seen}
            seen |= fresh
            todo += fresh.values()
    return list(seen.values())


class _Automaton:
    """Turns what was read into states (Thompson's construction), repetitions written out."""

    def __init__(self) -> None:
        self._states = self._reads = 0

    def _state(self, before: _State, reads: re.Pattern[str] | None = None) -> _State:
        self._states += 1
        self._reads += reads is not None
        if self._states > MAX_STATES or self._reads > MAX_READS:
            raise ValueError("the pattern is too large once its repetitions are written out")
        before.exits.append(state := _State(reads))
        return state

    def add(self, node: _Node, at: _State) -> _State:
        """Hang ``node`` behind ``at`` and return the state in which it is fulfilled."""
        match node:
            case _One(reads=reads):
                return self._state(self._state(at, reads))
            case _Sequence(parts=parts):
                for part in parts:
                    at = self.add(part, at)
                return at
            case _Choice(branches=branches):
                return self._join([self.add(branch, self._state(at)) for branch in branches])
            case _Repeat():
                return self._repeat(node, at)

    def _join(self, ends: list[_State]) -> _State:
        end = self._state(ends[0])
        for other in ends[1:]:
            other.exits.append(end)
        return end

    def _repeat(self, node: _Repeat, at: _State) -> _State:
        for _ in range(node.least):
            at = self.add(node.part, self._state(at))
        if node.most is None:
            loop = self._state(at)
            self.add(node.part, loop).exits.append(loop)
            return self._state(loop)
        ends = [at]
        for _ in range(node.most - node.least):
            at = self.add(node.part, self._state(at))
            ends.append(at)
        return self._join(ends)


class _Reader:
    """Reads a pattern from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._flags = re.ASCII
        self._depth = 0

    def read(self) -> _Node:
        if self._text.startswith("(?i)"):
            self._flags, self._at = re.ASCII | re.IGNORECASE, len("(?i)")
        node = self._choice()
        if self._at < len(self._text):
            raise self._fault("a ) without its (")
        return node

    def _fault(self, what: str) -> ValueError:
        return ValueError(f"at character {self._at + 1} of the pattern: {what}")

    def _ahead(self, *texts: str) -> str:
        """Return the one of ``texts`` that comes next, empty if none does; at the end of the pattern always empty."""
        return next((text for text in texts if self._text.startswith(text, self._at)), "")

    def _choice(self) -> _Node:
        branches = [self._sequence()]
        while self._ahead("|"):
            self._at += 1
            branches.append(self._sequence())
        return branches[0] if len(branches) == 1 else _Choice(branches)

    def _sequence(self) -> _Node:
        parts: list[_Node] = []
        if self._depth == 0:
            self._at += len(self._ahead(*_START))
        while self._at < len(self._text) and not self._ahead("|", ")"):
            if self._depth == 0 and (end := self._ahead(*_END)):
                self._at += len(end)
                if self._at < len(self._text) and not self._ahead("|"):
                    raise self._fault("something follows the end of the text")
                break
            parts.append(self._repeated())
        return _Sequence(parts)

    def _repeated(self) -> _Node:
        part = self._atom()
        bounds = _BOUNDS.match(self._text, self._at)
        if bounds is None:
            return part
        self._at = bounds.end()
        self._at += len(self._ahead("?"))  # lazy or greedy is one to an automaton
        if _BOUNDS.match(self._text, self._at):
            raise self._fault("a repetition of a repetition")
        least, most = _SIGNS.get(bounds[0]) or _numbers(bounds)
        if most is not None and most < least:
            raise self._fault("a repetition whose limits are reversed")
        return _Repeat(part, least, most)

    def _atom(self) -> _Node:
        if group := _GROUP.match(self._text, self._at):
            return self._group(group)
        if self._ahead("(", "*", "+", "?", "{", "^", "$", r"\A", r"\Z", r"\z", r"\b", r"\B"):
            raise self._fault(f"{self._text[self._at : self._at + 3]} cannot be used here")
        token = _CLASS.match(self._text, self._at) or _ESCAPE.match(self._text, self._at)
        if token is None and self._ahead("[", "\\"):
            raise self._fault("an unfinished or unknown escape or set")
        if token and token[0].startswith("[") and _NESTED_SET.search(token[0], 1):
            raise self._fault("a set within a set")
        one = token[0] if token else self._text[self._at]
        self._at += len(one)
        try:
            return _One(re.compile(one if token or one == "." else re.escape(one), self._flags))
        except re.error as exc:
            raise self._fault(str(exc)) from exc

    def _group(self, opening: re.Match[str]) -> _Node:
        self._at = opening.end()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._fault("groups are nested too deep")
        node = self._choice()
        self._depth -= 1
        if not self._ahead(")"):
            raise self._fault("a ( without its )")
        self._at += 1
        return node


def _numbers(bounds: re.Match[str]) -> tuple[int, int | None]:
    least = int(bounds[1])
    if not bounds[2]:
        return least, least
    return least, int(bounds[3]) if bounds[3] else None
