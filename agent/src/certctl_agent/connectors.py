"""The connector packages on this machine, each loaded when first needed: those that nobody uses cost no memory."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

from certctl_core.hookspecs import PROJECT
from certctl_core.plugins import Plugins, load

SERVER_SIDE = ("issuer-", "notifier-")


class Connectors:
    """Finds the package of a kind by the name that ours follow, ``target-nginx``; others are found by loading all."""

    def __init__(self, entries: Iterable[EntryPoint] | None = None) -> None:
        found = entry_points(group=PROJECT) if entries is None else entries
        self._entries = [entry for entry in found if not entry.name.startswith(SERVER_SIDE)]
        self._loaded: dict[str, Plugins] = {}
        self._all: Plugins | None = None

    def having(self, hook: str, kind: str) -> Plugins:
        """Return loaded packages with the one that brings ``kind`` among them, if any does."""
        name = f"{hook}-{kind.casefold()}"
        if name not in self._loaded:
            self._loaded[name] = load([entry for entry in self._entries if entry.name == name])
        likely = self._loaded[name]
        known = [*likely.targets, *likely.scanners]
        return likely if kind.casefold() in map(str.casefold, known) else self.all()

    def all(self) -> Plugins:
        """Return every package, loaded or left out."""
        if self._all is None:
            self._all = load(self._entries)
        return self._all
