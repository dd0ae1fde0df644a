"""From nothing to a server that may open its doors: directory, database, cipher, first rows, first keys."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec
from urllib.parse import unquote, urlsplit

import asyncpg
from certctl_core.errors import MisconfiguredError
from certctl_sdk import profile_file
from certctl_sdk.profile_file import ClientFile

from certctl_server import db, files, restored, sealing
from certctl_server.audit.record import SYSTEM, Event, record
from certctl_server.auth.keys import create_key, create_token
from certctl_server.db.migrate import migrate
from certctl_server.issuers.tables import Issuer
from certctl_server.people.tables import Owner, Team
from certctl_server.policies.tables import PolicyRule
from certctl_server.rules.tables import RenewalPolicy
from certctl_server.sealing import Cipher
from certctl_server.settings import Settings, is_loopback, unused
from certctl_server.tables import TABLES

log = logging.getLogger(__name__)
P = ParamSpec("P")
ADMIN_KEY_FILE, TOKEN_FILE = "admin-key", "enrol-token"
LOCK_FILE = "server.lock"
AWAY = (*db.UNREACHABLE, asyncpg.InsufficientResourcesError, asyncpg.OperatorInterventionError)
LOST = (
    ConnectionError,
    TimeoutError,
    socket.gaierror,
    *(kind for kind in AWAY if issubclass(kind, (asyncpg.PostgresError, asyncpg.InterfaceError))),
)
"""What a database that went away makes a start raise; a file that cannot be read is not among it."""
AGAIN_SECONDS = 2.0
ROWS_MADE, KEYS_MADE = "first_rows", "first_keys"
STARTER_RULES: tuple[dict[str, Any], ...] = (
    {
        "id": "pr-require-owner",
        "name": "Every certificate has an owner",
        "type": "RequiredMetadata",
        "config": '{"required_keys":["owner_id"]}',
    },
    {
        "id": "pr-allowed-environments",
        "name": "Known environments",
        "type": "AllowedEnvironments",
        "config": '{"allowed":["production","staging","development","imported"]}',
    },
    {
        "id": "pr-min-renewal-window",
        "name": "Renewed in time",
        "type": "RenewalLeadTime",
        "config": '{"lead_time_days":14}',
    },
)
"""What a new installation is told of, and may change: all are warnings."""
CLAIM = db.Sql("INSERT INTO setting (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING RETURNING name")
ADMIN_EXISTS = db.Sql(
    "SELECT id FROM api_key WHERE role = 'admin' AND ended_at IS NULL"
    " AND (expires_at IS NULL OR expires_at > $1) LIMIT 1"
)


@dataclass(frozen=True, slots=True)
class Handed:
    """What a first start hands over, once. Texts that went to files are named by their path instead."""

    admin_key: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    admin_key_file: Path | None = None
    token_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Running:
    """What is to be told once a server answers."""

    settings: Settings
    url: str
    handed: Handed | None


@contextlib.asynccontextmanager
async def connected(settings: Settings, *, patient: bool = False) -> AsyncIterator[None]:
    """The open database, for as long as the context lasts. ``patient``: one that is away is waited for.

    Raises:
        MisconfiguredError: it lets us not in, or cannot be reached.
    """
    if (path := database_file(settings)) and not path.parent.is_dir():
        raise MisconfiguredError(
            f"there is no directory {path.parent} for the database; CERTCTL_DATABASE_URL says which"
        )
    while True:
        try:
            await db.connect(settings.database_url, TABLES, connections=settings.database.max_conns)
            break
        except (*db.UNREACHABLE, asyncpg.PostgresError, sqlite3.Error) as exc:
            if not patient or not isinstance(exc, AWAY):
                raise MisconfiguredError(
                    f"the database did not let us in: {exc}; CERTCTL_DATABASE_URL says which"
                ) from exc
            log.warning("the database is away, waiting for it", extra={"error": str(exc)})
            await asyncio.sleep(AGAIN_SECONDS)
    try:
        yield
    finally:
        await db.close()


async def bring_up_to_date() -> list[str]:
    """Apply the schema steps that the open database lacks and return their names.

    Raises:
        MisconfiguredError: a newer version has used it.
    """
    try:
        return await migrate()
    except RuntimeError as exc:
        raise MisconfiguredError(str(exc)) from exc


def database_file(settings: Settings) -> Path | None:
    """Return the database's file, None if it is not in one."""
    parts = urlsplit(settings.database_url)
    return Path(unquote(parts.path)) if parts.scheme == "sqlite" else None


@contextlib.contextmanager
def alone(settings: Settings) -> Iterator[None]:
    """Be the only process on data directory and database file, if it is embedded.

    Raises:
        MisconfiguredError: another one is; the message has its number.
    """
    with contextlib.ExitStack() as held:
        for lock in locks(settings):
            held.enter_context(files.held(lock))
        yield


def locks(settings: Settings) -> list[Path]:
    """Return the files by which an embedded server is alone."""
    path = database_file(settings)
    return [settings.data_dir / LOCK_FILE, path.with_name(f"{path.name}.lock")] if path else []


async def begin(
    settings: Settings, attempt: Callable[[Callable[P, None]], Awaitable[None]], announce: Callable[P, None]
) -> None:
    """Await ``attempt``, anew whenever a database shared with others goes away before it says that it is ready."""
    ready = False

    def told(*args: P.args, **kwargs: P.kwargs) -> None:
        nonlocal ready
        ready = True
        announce(*args, **kwargs)

    while True:
        try:
            return await attempt(told)
        except LOST as exc:
            if ready or settings.embedded:
                raise
            log.warning("the database went away amid the start, beginning anew", extra={"error": str(exc)})
            await asyncio.sleep(AGAIN_SECONDS)


@contextlib.asynccontextmanager
async def ground(settings: Settings) -> AsyncIterator[Cipher]:
    """Everything that must be there before the doors open, for as long as the context lasts.

    Raises:
        MisconfiguredError: it must not start like this; the message says what to change.
    """
    files.prepare(settings.data_dir)
    with alone(settings):
        async with connected(settings, patient=not settings.embedded):
            await bring_up_to_date()
            cipher = await sealing.load(settings)
            await restored.notice(settings, cipher)
            await _refuse_without_keys(settings)
            await _first_rows()
            yield cipher


def warn(settings: Settings, environ: Mapping[str, str]) -> None:
    """Say loudly what is set less safely than it could be, and what is set in vain."""
    if settings.auth.type == "none":
        log.warning("CERTCTL_AUTH_TYPE=none: whoever reaches this server is its admin")
    if settings.agent_keys == "optional":
        log.warning("CERTCTL_AGENT_KEYS=optional: admin and operator keys may act as agents that used no key yet")
    if settings.server.tls == "off" and not is_loopback(settings.server.host):
        log.warning("CERTCTL_SERVER_TLS_MODE=off: keys cross the network in the clear unless a TLS proxy is in front")
    for name in unused(environ):
        log.warning("a variable is set that this version does not use", extra={"variable": name})


async def _refuse_without_keys(settings: Settings) -> None:
    auth = settings.auth
    if settings.embedded or auth.type == "none" or auth.secrets or auth.named_keys:
        return
    if not await db.fetch(ADMIN_EXISTS, db.now()):
        raise MisconfiguredError(
            "nobody could log in: with PostgreSQL set CERTCTL_AUTH_SECRET or CERTCTL_API_KEYS_NAMED,"
            " or make a key with `certctl-server keys create --role admin`"
        )


async def _first_rows() -> None:
    """api.md 12; once per database, whoever of several replicas is first."""
    now = db.now()
    times: dict[str, Any] = {"created_at": now, "updated_at": now}
    async with db.transaction():
        if await db.fetch(CLAIM, ROWS_MADE, now.isoformat()):
            await Team.insert(Team(id="t-unassigned", name="Unassigned", **times))
            await Owner.insert(Owner(id="o-unassigned", name="Unassigned", team_id="t-unassigned", **times))
            await RenewalPolicy.insert(RenewalPolicy(id="rp-default", name="Default", **times))
            await PolicyRule.insert(*(PolicyRule(**rule, **times) for rule in STARTER_RULES))
            await Issuer.insert(Issuer(id="iss-local", name="Local CA", type="GenericCA", status="ready", **times))
            made = {
                "team": "t-unassigned",
                "owner": "o-unassigned",
                "renewal_policy": "rp-default",
                "issuer": "iss-local",
            }
            every = [*made.items(), *(("policy", str(rule["id"])) for rule in STARTER_RULES)]
            await record(Event(SYSTEM, f"{kind}_created", kind, row_id) for kind, row_id in every)


async def hand_over(settings: Settings, pin: str, *, terminal: bool) -> Handed | None:
    """Make the first admin key, the command line's own and the first enrolment token; None if that was done before.

    On a ``terminal`` key and token are returned to be shown; elsewhere they are in files that only we may read.
    """
    if not settings.embedded or settings.auth.type == "none":
        return None
    now = db.now()
    written: list[Path] = []
    try:
        async with db.transaction():
            if not await db.fetch(CLAIM, KEYS_MADE, now.isoformat()):
                return None
            needed = not settings.auth.secrets and all(key.role != "admin" for key in settings.auth.named_keys)
            admin = await _key("admin") if needed else ""
            local = await _key("local")
            row, secret = await create_token(name="first start", created_by=SYSTEM.name)
            await record([Event(SYSTEM, "enrolment_token_created", "enrolment_token", row.id)])
            token = f"{secret}.{pin}" if pin else secret
            # Before the commit: keys that nobody could read must not be in the database.
            for name, text in _kept(local, "" if terminal else admin, "" if terminal else token).items():
                files.replace(settings.data_dir / name, text, mode=0o600)
                written.append(settings.data_dir / name)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    if terminal:
        return Handed(admin_key=admin, token=token)
    where = Handed(
        admin_key_file=settings.data_dir / ADMIN_KEY_FILE if admin else None, token_file=settings.data_dir / TOKEN_FILE
    )
    log.info(
        "first keys made, each readable by its owner only",
        extra={"admin_key_file": str(where.admin_key_file or ""), "enrolment_token_file": str(where.token_file)},
    )
    return where


async def _key(name: str) -> str:
    row, text = await create_key(name, "admin")
    await record([Event(SYSTEM, "key_created", "api_key", row.id, {"name": name, "role": "admin"})])
    return text


def _kept(local: str, admin: str, token: str) -> dict[str, str]:
    found = {profile_file.NAME: profile_file.write(ClientFile(api_key=local))}
    found |= {ADMIN_KEY_FILE: f"{admin}\n"} if admin else {}
    return found | ({TOKEN_FILE: f"{token}\n"} if token else {})


def write_client(settings: Settings, url: str, ca_file: Path | None) -> None:
    """Tell the clients of this machine where we listen, keeping the key that the first start left them."""
    if settings.embedded:
        kept = profile_file.read(settings.data_dir)
        client = ClientFile(url=url, ca_file=str(ca_file or ""), api_key=kept.api_key)
        files.replace(settings.data_dir / profile_file.NAME, profile_file.write(client), mode=0o600)


def local_url(settings: Settings, port: int) -> str:
    """Return how clients on this machine reach the API."""
    host = settings.server.host.strip("[]")
    scheme = "http" if settings.server.tls == "off" else "https"
    if host in {"0.0.0.0", "::", ""}:  # noqa: S104  # not bound here: where they listen on every address
        host = "localhost"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
