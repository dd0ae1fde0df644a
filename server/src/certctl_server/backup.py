"""Backup and restore of an embedded installation: one SQLite file, copied while the server runs.

PostgreSQL is saved by its own tools: docs/backup.md.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from certctl_core.errors import MisconfiguredError
from pydantic import SecretStr

from certctl_server import files, restored, sealing, start
from certctl_server.db.migrate import unknown
from certctl_server.sealing import KEY_FILE
from certctl_server.settings import Database, Settings

PARTS = ("", "-wal", "-shm")
"""What SQLite keeps beside a file while it is open, or after a crash."""
FIGURES = {
    "certificates": "SELECT count(*) FROM certificate",
    "agents": "SELECT count(*) FROM agent",
    "open jobs": "SELECT count(*) FROM job WHERE place IS NOT NULL",
    "audit rows": "SELECT count(*) FROM audit_event",
}


@dataclass(frozen=True, slots=True)
class Backup:
    """A file that was written or found good."""

    path: Path
    size: int
    figures: dict[str, int]
    """What is in it."""

    @property
    def told(self) -> str:
        """What is in it, in words."""
        return f"{self.size} bytes, " + ", ".join(f"{n} {what}" for what, n in self.figures.items())


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore came to."""

    backup: Backup
    replaced: Path | None
    """The database that was there before."""
    epoch: int


def key_beside(path: Path) -> Path:
    """Return where the encryption key of a backup lies, if it was asked for."""
    return path.with_name(f"{path.name}.key")


def backup(settings: Settings, path: Path, *, with_key: bool) -> Backup:
    """Copy the database to ``path`` as it is at one moment, the server running or not, and check the copy.

    ``with_key`` puts the encryption key beside it.

    Raises:
        MisconfiguredError: it is not embedded, there is something at ``path``, or the copy is not sound.
    """
    source = _embedded(settings)
    if not source.exists():
        raise MisconfiguredError(f"there is no database {source}")
    key = _key_text(settings) if with_key else ""
    for wanted in (path, *([key_beside(path)] if key else [])):
        if wanted.exists():
            raise MisconfiguredError(f"{wanted} is there already: nothing is overwritten")
    with files.draft(path, PARTS) as draft:
        with _open(source) as reading, _open(draft, mode="rwc") as writing:
            # In one step: what is read is one moment, and in WAL mode nobody waits for it.
            reading.backup(writing)
            writing.execute("PRAGMA journal_mode=DELETE")
        figures = _checked(draft)
        files.put(draft, path)
    if key:
        files.create(key_beside(path), key, mode=0o600)
    return Backup(path, path.stat().st_size, figures)


async def restore(settings: Settings, path: Path) -> Restored:
    """Put the backup at ``path`` in the place of the database, which is kept aside; the server must not run.

    Everything happens to a copy first: until it takes the database's place nothing is changed.

    Raises:
        MisconfiguredError: a server runs, or the backup is damaged, of a newer version or of another key.
    """
    database = _embedded(settings)
    files.prepare(settings.data_dir)
    with start.alone(settings), files.draft(database, PARTS) as draft:
        found = _copied(path, draft)
        if unfamiliar := await _unfamiliar(settings, draft):
            raise MisconfiguredError(f"{path} was made by a newer version, which knows {unfamiliar}: restore it there")
        made_key = _bring_key(settings, path)
        try:
            opened = await _begin_epoch(settings, draft)
        except BaseException:
            if made_key:
                (settings.data_dir / KEY_FILE).unlink()
            raise
        replaced = _set_aside(database)
        files.put(draft, database, over=True)
        opened.keep(settings)
    return Restored(found, replaced, opened.epoch)


async def declare(settings: Settings) -> int:
    """Begin a new epoch because an operator says that the database was restored; return its number.

    Raises:
        MisconfiguredError: an embedded server runs.
    """
    files.prepare(settings.data_dir)
    with start.alone(settings):
        async with start.connected(settings):
            await start.bring_up_to_date()
            opened = await restored.declare(settings, await sealing.load(settings), "an operator said so")
    opened.keep(settings)
    return opened.epoch


def _embedded(settings: Settings) -> Path:
    if (path := start.database_file(settings)) is None:
        raise MisconfiguredError("PostgreSQL is saved and restored by its own tools: docs/backup.md says how")
    return path


def _key_text(settings: Settings) -> str:
    path = settings.data_dir / KEY_FILE
    if settings.config_encryption_key.get_secret_value() or not path.exists():
        raise MisconfiguredError(f"there is no key file to put beside it: the key is in {sealing.VARIABLE}")
    return path.read_text(encoding="utf-8")


def _bring_key(settings: Settings, path: Path) -> bool:
    """Take the key that lies beside a backup if there is none; whether it was taken."""
    there, beside = settings.data_dir / KEY_FILE, key_beside(path)
    if settings.config_encryption_key.get_secret_value() or there.exists() or not beside.exists():
        return False
    files.create(there, beside.read_text(encoding="utf-8"), mode=0o600)
    return True


@contextlib.contextmanager
def _open(path: Path, mode: str = "rw") -> Iterator[sqlite3.Connection]:
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode={mode}", uri=True)) as connection:
            yield connection
    except sqlite3.Error as exc:
        raise MisconfiguredError(f"{path} is no sound database: {exc}") from exc


def _copied(path: Path, draft: Path) -> Backup:
    try:
        shutil.copyfile(path, draft)
    except OSError as exc:
        raise MisconfiguredError(f"the backup {path} cannot be read: {exc.strerror}") from exc
    return Backup(path, draft.stat().st_size, _checked(draft))


def _checked(path: Path) -> dict[str, int]:
    with _open(path) as connection:
        faults = [row[0] for row in connection.execute("PRAGMA integrity_check(5)")]
        if faults != ["ok"]:
            raise MisconfiguredError(f"the backup is damaged: {'; '.join(faults)}")
        return {name: connection.execute(question).fetchone()[0] for name, question in FIGURES.items()}


def _at(settings: Settings, path: Path) -> Settings:
    url = SecretStr(f"sqlite://{quote(str(path.absolute()))}")
    return settings.model_copy(update={"database": Database(url=url)})


async def _unfamiliar(settings: Settings, draft: Path) -> str:
    async with start.connected(_at(settings, draft)):
        return next(iter(await unknown()), "")


async def _begin_epoch(settings: Settings, draft: Path) -> restored.Opened:
    async with start.connected(_at(settings, draft)):
        await start.bring_up_to_date()
        cipher = await sealing.load(settings)
        return await restored.declare(settings, cipher, "certctl restore")


def _set_aside(database: Path) -> Path | None:
    """Give the present database a second name, with whatever of it a crash has left in its log."""
    if not database.exists():
        return None
    aside = database.with_name(f"{database.name}.replaced-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    # What can be folded into the file is; of a file that is damaged, the log is kept beside it.
    with contextlib.suppress(MisconfiguredError), _open(database) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    os.link(database, aside)
    for part in PARTS[1:]:
        # A log of another database must never lie beside the one that comes.
        with contextlib.suppress(FileNotFoundError):
            database.with_name(database.name + part).rename(aside.with_name(aside.name + part))
    return aside
