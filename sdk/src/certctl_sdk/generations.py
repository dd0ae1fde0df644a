"""Where the files of one deployment lie, and the way from one generation of them to the next and back.

    tls/site.crt  ->  .site.crt.certctl/current/site.crt    what the service reads
    tls/site.key  ->  .site.crt.certctl/current/site.key
    tls/.site.crt.certctl/
        current   ->  000002-9f3a61c0                       one rename of it flips all files at once
        000001-04c7d2be/  000002-9f3a61c0/                  generations
        journal                                             the way back, while a deployment is unproven

Plain files become links in steps that each leave their content as it is: copied into a generation,
linked one by one, and only then flipped. Where links are not wanted, plain files are made beside the
old ones and renamed over them one after the other; a crash in between is put right from the journal.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import secrets
import stat
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

from certctl_core.errors import DeploymentError, MisconfiguredError, TransientError
from certctl_core.run import Allowed, State

from certctl_sdk.durable import Directory, Held, open_allowed

log = logging.getLogger(__name__)
Kind: TypeAlias = Literal["link", "file", "nothing"]
Contents: TypeAlias = Mapping[Path, Callable[[Held | None], Held]]
"""What each path shall hold, given what it holds now."""


class Place:
    """The served paths and the directory of generations beside the first of them, locked while open."""

    def __init__(self, paths: Sequence[Path], allowed: Allowed, *, create: bool = True) -> None:
        """Open the directories of ``paths``; without ``create``, only where generations are already.

        Raises:
            MisconfiguredError: a path is not in an allowed directory, or is there twice.
            TransientError: another deployment to the same place is under way.
            DeploymentError: the directory of generations belongs to somebody else.
            OSError: a directory is missing or cannot be opened.
        """
        if len(set(paths)) < len(paths):
            raise MisconfiguredError("the same path is configured for two files: each needs its own")
        self._paths, self._allowed = paths, allowed
        self._home_name = f".{paths[0].name}.certctl"
        self._directories: dict[Path, Directory] = {}
        self._opened = contextlib.ExitStack()
        try:
            if create:
                for path in paths:
                    self._beside(path)
            beside = self._beside(paths[0])
            self._home = beside.make(self._home_name, 0o755) if create else beside.inside(self._home_name)
            self._opened.callback(self._home.close)
            self._lock()
        except BaseException:
            self._opened.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # goes only if it is empty
            os.rmdir(self._home_name, dir_fd=self._beside(self._paths[0]).fd)
        self._opened.close()

    def switch(self, contents: Contents, *, link: bool) -> State:
        """Serve a new generation, after noting in the journal how to go back; return what was noted."""
        found = {path: self._kind(path) for path in self._paths}
        served = {path: self._served(path) for path in self._paths}
        before, retired = self._current(), self._retired()
        previous = before
        if before is None or any(self._staged(before, path) != held for path, held in served.items()):
            previous = self._stage(retired | {self._entry(path): held for path, held in served.items() if held})
        fresh = {self._entry(path): held(served[path]) for path, held in contents.items()}
        generation = self._stage(retired | fresh)
        changed = [path for path, kind in found.items() if not (link and kind == "link")]
        way_back: State = {
            "generation": generation,
            "previous": previous,
            "before": before,
            "found": {str(path): kind for path, kind in found.items()},
        }
        self._write_journal(way_back)
        made = {path: self._make(path, "link" if link else "file", generation) for path in changed}
        if link and previous:
            self._point(previous)
        for path, new in made.items():
            self._beside(path).rename(new, path.name)
        for directory in {self._beside(path) for path in made}:
            directory.sync()
        self._point(generation)
        return way_back

    def rehearse(self, contents: Contents) -> None:
        """Do all of ``switch`` that nobody sees, and remove it again."""
        generation = self._stage({self._entry(path): held(self._served(path)) for path, held in contents.items()})
        try:
            for path in contents:
                self._make(path, "file", generation)
        finally:
            for path in contents:
                self._beside(path).sweep(path.name)
            self._home.clear(generation)

    def commit(self, keep: int) -> None:
        """Keep what is served now: forget how to go back, and all but ``keep`` of the older generations."""
        self._home.remove("journal")
        self._home.sync()
        older = [name for name in self._generations() if name != self._current()]
        for name in older[: max(0, len(older) - keep)]:
            with contextlib.suppress(OSError):  # the next deployment tries again
                self._home.clear(name)

    def recover(self) -> bool:
        """``undo`` and ``forget``: whether there was an unfinished deployment."""
        undone = self.undo()
        self.forget()
        return undone

    def undo(self) -> bool:
        """Undo the deployment that the journal tells of, if there is one; the journal stays, and twice is as once."""
        way_back = self._read_journal()
        if way_back is None:
            return False
        previous, before = way_back["previous"], way_back["before"]
        self._point(previous)
        paths = {Path(path): kind for path, kind in way_back["found"].items()}
        left = [path for path, kind in paths.items() if not self._put_back(path, kind, way_back)]
        for path in left:
            log.warning("file left as it is", extra={"path": str(path), "why": "not in an allowed directory"})
        if before:
            self._point(before)
        elif not left:
            self._home.remove("current")
            self._home.sync()
        return True

    def forget(self) -> None:
        """Remove the journal, and what a deployment that was cut short or undone left."""
        paths = {*self._paths, *map(Path, (self._read_journal() or {"found": {}})["found"])}
        swept = [(path.name, self._allowed_beside(path)) for path in paths]
        for name, directory in [*swept, ("current", self._home), ("journal", self._home)]:
            if directory:
                directory.sweep(name)
        # After what only it knows of, and before what it needs for the way back.
        self._home.remove("journal")
        self._home.sync()
        current = self._current()
        for name in self._generations():
            if current is None or _number(name) > _number(current):
                self._home.clear(name)

    def flip_back(self, way_back: State) -> None:
        """Undo the deployment whose ``switch`` returned ``way_back``; nothing if that was done.

        Raises:
            DeploymentError: something newer is served, or the generation before it is gone.
        """
        current, generations = self._current(), self._generations()
        if current == way_back.get("before"):
            return
        if current != way_back.get("generation"):
            raise DeploymentError("roll back", "something newer is served")
        if way_back.get("previous") not in generations or way_back.get("before") not in (None, *generations):
            raise DeploymentError("roll back", "the generation before it is gone")
        found, ours = way_back.get("found"), {str(path) for path in self._paths}
        kept = {path: kind for path, kind in found.items() if path in ours} if isinstance(found, dict) else {}
        self._write_journal({**way_back, "found": kept})
        self.recover()

    def _lock(self) -> None:
        found = os.fstat(self._home.fd)
        if found.st_uid != os.geteuid():
            raise DeploymentError("open", f"{self._home.path} belongs to somebody else")
        self._home.permit(0o755)  # the service must get through
        try:
            fcntl.flock(self._home.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise TransientError(f"another deployment to {self._paths[0]} is under way") from exc
        if os.fstat(self._home.fd).st_nlink == 0:
            raise TransientError(f"another deployment to {self._paths[0]} has just ended")

    def _beside(self, path: Path) -> Directory:
        """The directory of ``path``."""
        if path.parent not in self._directories:
            directory = self._directories[path.parent] = open_allowed(path.parent, self._allowed.directories)
            self._opened.callback(directory.close)
        return self._directories[path.parent]

    def _allowed_beside(self, path: Path) -> Directory | None:
        try:
            return self._beside(path)
        except (MisconfiguredError, FileNotFoundError, NotADirectoryError):
            return None

    def _kind(self, path: Path) -> Kind:
        found = self._beside(path).stat(path.name)
        if found is None:
            return "nothing"
        if stat.S_ISREG(found.st_mode):
            return "file"
        if stat.S_ISLNK(found.st_mode) and self._beside(path).link_to(path.name) == self._link(path):
            return "link"
        raise DeploymentError("stage", f"{path} is neither a plain file nor a link of ours: configure where it leads")

    def _served(self, path: Path) -> Held | None:
        if self._kind(path) == "link":
            current = self._current()
            return self._staged(current, path) if current else None
        return self._beside(path).read(path.name)

    def _staged(self, generation: str, path: Path) -> Held | None:
        with contextlib.closing(self._home.inside(generation)) as directory:
            return directory.read(self._entry(path))

    def _retired(self) -> dict[str, Held]:
        """What is served from here under paths that are configured no more; it stays what it is."""
        current = self._current()
        if current is None:
            return {}
        with contextlib.closing(self._home.inside(current)) as directory:
            names = set(directory.names()) - {self._entry(path) for path in self._paths}
            return {name: held for name in names if (held := directory.read(name))}

    def _stage(self, entries: Mapping[str, Held]) -> str:
        number = _number(self._generations()[-1]) + 1 if self._generations() else 1
        name = f"{number:06}-{secrets.token_hex(4)}"
        with contextlib.closing(self._home.make(name, 0o700)) as directory:
            try:
                for entry, held in entries.items():
                    directory.write(entry, held)
                directory.permit(0o755)
                directory.sync()
            except OSError:
                self._home.clear(name)
                raise
        self._home.sync()
        return name

    def _make(self, path: Path, kind: Kind, generation: str) -> str:
        """Make what shall be renamed to ``path``: a link of ours, or a file as it is in ``generation``."""
        new = f".{path.name}.certctl-{secrets.token_hex(8)}"
        if kind == "link":
            self._beside(path).symlink(new, self._link(path))
        elif held := self._staged(generation, path):
            self._beside(path).write(new, held)
        return new

    def _put_back(self, path: Path, was: Kind, way_back: Mapping[str, Any]) -> bool:
        """Make ``path`` what it ``was``, unless somebody else changed it since; False if it may not be touched."""
        if (directory := self._allowed_beside(path)) is None:
            return False
        if not self._is_ours(path, was, way_back):
            return True
        if was == "nothing":
            directory.remove(path.name)
            directory.sync()
            return True
        with directory.replacing(path.name) as new:
            if was == "link":
                directory.symlink(new, self._link(path))
            else:
                with contextlib.closing(self._home.inside(way_back["previous"])) as previous:
                    directory.restore(new, previous, self._entry(path))
        return True

    def _is_ours(self, path: Path, was: Kind, way_back: Mapping[str, Any]) -> bool:
        """Whether the deployment made ``path`` what it is now."""
        try:
            kind = self._kind(path)
        except DeploymentError:  # a link to somewhere else
            return False
        if kind != "file":
            return kind == "link" and was != "link"
        held, new = self._served(path), self._staged(way_back["generation"], path)
        if held is None or new is None or held.data != new.data:
            return False
        return was != "file" or held != self._staged(way_back["previous"], path)

    def _point(self, generation: str) -> None:
        if self._home.link_to("current") != generation:
            with self._home.replacing("current") as new:
                self._home.symlink(new, generation)

    def _write_journal(self, way_back: State) -> None:
        with self._home.replacing("journal") as new:
            self._home.write(new, Held(json.dumps(way_back).encode(), 0o600))

    def _read_journal(self) -> Any:
        if (held := self._home.read("journal")) is None:
            return None
        try:
            way_back = json.loads(held.data)
            known = way_back["previous"] in self._generations()
        except (ValueError, TypeError, KeyError):
            known = False
        if not known:
            raise DeploymentError(
                "recover", f"the journal in {self._home.path} is damaged: put the files right by hand"
            )
        return way_back

    def _generations(self) -> list[str]:
        return sorted((name for name in self._home.names() if re.fullmatch(r"\d{6,}-[0-9a-f]{8}", name)), key=_number)

    def _current(self) -> str | None:
        name = self._home.link_to("current")
        if name is not None and name not in self._generations():
            raise DeploymentError("open", f"current of {self._home.path} leads to {name}, not to a generation")
        return name

    def _entry(self, path: Path) -> str:
        """The name of ``path`` in a generation; files of other directories are told apart by a checksum."""
        parent = self._paths[0].parent
        return path.name if path.parent == parent else f"{zlib.crc32(bytes(path.parent)):08x}-{path.name}"

    def _link(self, path: Path) -> str:
        home = self._paths[0].parent / self._home_name
        return os.path.relpath(home / "current" / self._entry(path), path.parent)


def _number(generation: str) -> int:
    return int(generation.partition("-")[0])
