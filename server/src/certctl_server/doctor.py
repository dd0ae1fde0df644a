"""``certctl doctor``: is everything as it should be, and if not, what is to be done.

Nothing is changed. Each look is on its own: what cannot be looked at is a finding, and the rest goes on.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote, urlsplit

from certctl_core.errors import MisconfiguredError
from certctl_sdk import profile_file

from certctl_server import doctor_database, files, start
from certctl_server.audit.chain import HEAD_FILE
from certctl_server.doctor_findings import Finding, State
from certctl_server.sealing import KEY_FILE
from certctl_server.settings import Settings, is_loopback

PRIVATE = (KEY_FILE, profile_file.NAME, start.ADMIN_KEY_FILE, start.TOKEN_FILE, HEAD_FILE)
GIGABYTE = 1 << 30
LITTLE_SPACE, NO_SPACE = GIGABYTE, GIGABYTE // 8
LONG_LOG = 256 << 20
"""Of a write-ahead log that is folded in every 1,000 pages unless somebody keeps reading."""
BROKER_PATIENCE = timedelta(seconds=3)


Look: TypeAlias = Callable[[Settings], Iterable[Finding]]


async def examine(settings: Settings) -> list[Finding]:
    """Return every finding, whatever state the installation is in."""
    found: list[Finding] = []
    for look in (_process, _directory, _left_over, _space, _listener):
        found += _looked(look.__name__.strip("_"), look, settings)
    found += await _broker(settings)
    if (path := start.database_file(settings)) is not None:
        if not path.exists():
            return [*found, Finding("database", State.FAIL, f"there is no {path}", "start the server, or restore")]
        found += await asyncio.get_running_loop().run_in_executor(None, lambda: _looked("file", _file, settings))
    return found + await _in_database(settings)


def _looked(name: str, look: Look, settings: Settings) -> list[Finding]:
    try:
        return list(look(settings))
    except OSError as exc:
        return [Finding(name, State.FAIL, f"cannot be looked at: {exc}", "run this as the server's user")]


def _process(settings: Settings) -> Iterator[Finding]:
    if not (locks := start.locks(settings)):
        return
    holder = next((found for found in map(files.holder, locks) if found), "")
    if holder:
        yield Finding("server", State.OK, f"process {holder}")
    else:
        yield Finding("server", State.WARN, "none runs here", "start it: certctl up, or the service")


def _directory(settings: Settings) -> Iterator[Finding]:
    directory = settings.data_dir
    if not directory.is_dir():
        yield Finding("data directory", State.FAIL, f"{directory} is not there", "CERTCTL_DATA_DIR names it")
        return
    open_to_others = [path for path in _private_files(settings) if path.exists() and path.stat().st_mode & 0o077]
    for path in open_to_others:
        mode = path.stat().st_mode & 0o777
        wanted = 700 if path.is_dir() else 600
        yield Finding("permissions", State.FAIL, f"{path} may be used by others ({mode:o})", f"chmod {wanted} {path}")
    if not open_to_others:
        yield Finding("permissions", State.OK, f"{directory} is its owner's alone")


def _private_files(settings: Settings) -> Iterator[Path]:
    yield settings.data_dir
    yield from (settings.data_dir / name for name in PRIVATE)
    if (path := start.database_file(settings)) is not None:
        yield from (path.with_name(path.name + part) for part in ("", "-wal"))


def _left_over(settings: Settings) -> Iterator[Finding]:
    for name in (start.ADMIN_KEY_FILE, start.TOKEN_FILE):
        if (settings.data_dir / name).exists():
            found = f"{settings.data_dir / name} of the first start is still there"
            yield Finding("first keys", State.WARN, found, "keep it somewhere safe, then delete the file")


def _space(settings: Settings) -> Iterator[Finding]:
    path = start.database_file(settings)
    places = {directory for directory in (settings.data_dir, path.parent if path else None) if directory}
    for directory in sorted(places):
        if directory.is_dir():
            free = shutil.disk_usage(directory).free
            state = State.FAIL if free < NO_SPACE else State.WARN if free < LITTLE_SPACE else State.OK
            advice = "" if state is State.OK else "make room: without it nothing is issued or renewed"
            yield Finding("disk", state, f"{free / GIGABYTE:.1f} GiB free for {directory}", advice)


def _listener(settings: Settings) -> Iterator[Finding]:
    host, tls = settings.server.host, settings.server.tls
    if tls == "off" and not is_loopback(host):
        found = f"{host} is served without TLS: keys cross the network in the clear"
        yield Finding("listener", State.WARN, found, "unset CERTCTL_SERVER_TLS_MODE, unless a TLS proxy is in front")
    else:
        yield Finding("listener", State.OK, f"{host}, {'plain HTTP' if tls == 'off' else 'TLS'}")
    if settings.auth.type == "none":
        found = "CERTCTL_AUTH_TYPE=none: whoever reaches the server is its admin"
        yield Finding("keys of callers", State.WARN, found, "unset it")


async def _broker(settings: Settings) -> list[Finding]:
    if not settings.broker:
        return []
    import redis.asyncio  # noqa: PLC0415  # only where there is a broker

    seconds = BROKER_PATIENCE.total_seconds()
    # Without what may be a password.
    where = urlsplit(settings.broker).hostname or urlsplit(settings.broker).path
    client = redis.asyncio.Redis.from_url(
        settings.broker, socket_timeout=seconds, socket_connect_timeout=seconds, retry_on_error=[]
    )
    try:
        async with asyncio.timeout(seconds):
            await client.ping()
    except (redis.RedisError, OSError) as exc:
        advice = "start it, or mend CERTCTL_BROKER_URL; until then work is found seconds later"
        return [Finding("broker", State.FAIL, f"{where} does not answer: {type(exc).__name__}", advice)]
    finally:
        await client.aclose()
    return [Finding("broker", State.OK, f"{where} answers")]


def _file(settings: Settings) -> Iterator[Finding]:
    path = start.database_file(settings)
    assert path is not None  # noqa: S101  # looked at where there is one
    log = path.with_name(f"{path.name}-wal")
    size, waiting = path.stat().st_size, log.stat().st_size if log.exists() else 0
    found = f"{size / GIGABYTE:.2f} GiB, {waiting / GIGABYTE:.2f} GiB waiting in its log"
    if waiting > LONG_LOG:
        yield Finding("database file", State.WARN, found, "something reads for a long time: restart the server")
    else:
        yield Finding("database file", State.OK, found)
    yield _sound(path)


def _sound(path: Path) -> Finding:
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True)) as connection:
            connection.execute("PRAGMA query_only=1")
            faults = [row[0] for row in connection.execute("PRAGMA quick_check(3)")]
    except sqlite3.Error as exc:
        faults = [str(exc)]
    if faults == ["ok"]:
        return Finding("integrity", State.OK, "quick_check finds nothing")
    return Finding("integrity", State.FAIL, "; ".join(faults), "stop the server and restore the last backup")


async def _in_database(settings: Settings) -> list[Finding]:
    try:
        async with start.connected(settings):
            return [each async for each in doctor_database.looks(settings)]
    except MisconfiguredError as exc:
        return [Finding("database", State.FAIL, str(exc), "start it, or mend CERTCTL_DATABASE_URL")]
