import contextlib
import io
import json
import sqlite3
import stat
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from certctl_core.errors import MisconfiguredError
from certctl_sdk import audit_file, cli
from certctl_server import db
from certctl_server.audit import archives, chain, entries
from certctl_server.audit.archives import archive
from certctl_server.audit.export import verifiable
from certctl_server.audit.sealer import head, seal_pass
from certctl_server.audit.verify import verify
from certctl_server.main import main
from click.testing import CliRunner
from server_flow import behind_our_back, write_events

REFUSED = (asyncpg.RaiseError, sqlite3.IntegrityError)
PLACES = db.Sql("SELECT sequence FROM audit_event WHERE sequence IS NOT NULL ORDER BY sequence")
FUTURE = datetime(2100, 1, 1, tzinfo=UTC)
RECORD = """
    INSERT INTO audit_archive (first_sequence, last_sequence, hash, trailer, file, created_at)
    SELECT {first}, sequence, {hash}, '{{}}', 'x', created_at FROM audit_checkpoint WHERE sequence = {last}
"""


@pytest.fixture
async def sealed(ctx, leadership):
    """50 rows with checkpoints at 30 and 50, then 10 without."""
    for first, count in ((1, 30), (31, 20), (51, 10)):
        await write_events(count, first=first)
        await seal_pass(ctx, leadership)
        ctx.clock.ahead = timedelta(seconds=61)
    return ctx


@pytest.fixture
def look(ctx):
    return lambda: verify(ctx.settings, ctx.cipher)


async def places():
    rows = await db.fetch(PLACES)
    return (rows[0]["sequence"], rows[-1]["sequence"], len(rows)) if rows else None


async def exported(ctx):
    parts = verifiable(await chain.signing_key(ctx.cipher), await entries.extent())
    return b"".join([part async for part in parts])


async def test_old_rows_move_into_a_file_that_verifies(sealed, tmp_path, look):
    done = await archive(sealed.cipher, FUTURE, tmp_path)
    assert (done.removed, done.archive.file) == (50, "audit-000000000001-000000000050.ndjson")
    path = tmp_path / done.archive.file
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open("rb") as file:
        found = audit_file.verify([file], (await look()).key)
    assert (found.faults.told, found.rows, found.first, found.head.sequence) == ([], 50, 1, 50)
    assert await places() == (51, 60, 10)
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


async def test_the_rest_of_the_trail_stays_whole(sealed, leadership, tmp_path, look):
    await archive(sealed.cipher, FUTURE, tmp_path)
    await write_events(5, first=2000)
    await seal_pass(sealed, leadership)
    found = await look()
    assert (found.faults, found.rows, found.head.sequence) == ([], 16, 66)
    assert [(each.trailer.first, each.trailer.last) for each in found.archives] == [(1, 50)]
    events = await db.fetch(db.Sql("SELECT actor, details FROM audit_event WHERE action = 'audit_archived'"))
    assert [(row["actor"], json.loads(row["details"])["last"]) for row in events] == [("certctl-server", 50)]


async def test_archives_and_the_next_export_are_one_trail(sealed, leadership, tmp_path):
    files = [(await archive(sealed.cipher, FUTURE, tmp_path)).archive.file]
    sealed.clock.ahead = timedelta(seconds=122)
    await seal_pass(sealed, leadership)
    await seal_pass(sealed, leadership)
    files.append((await archive(sealed.cipher, FUTURE, tmp_path)).archive.file)
    assert files[1] == "audit-000000000051-000000000061.ndjson"
    last = await exported(sealed)
    parts = [io.BytesIO((tmp_path / name).read_bytes()) for name in files] + [io.BytesIO(last)]
    found = audit_file.verify(parts)
    assert (found.faults.told, found.rows, found.first) == ([], 61, 1)
    assert found.head == await head()


async def test_everything_may_be_archived_and_the_chain_goes_on(sealed, leadership, tmp_path, look):
    sealed.clock.ahead = timedelta(seconds=122)
    await seal_pass(sealed, leadership)
    await archive(sealed.cipher, FUTURE, tmp_path)
    assert await places() is None
    assert (await look()).faults == []
    await seal_pass(sealed, leadership)
    assert await places() == (61, 61, 1)
    found = await look()
    assert (found.faults, found.head.sequence) == ([], 61)


async def test_what_is_not_old_enough_stays(sealed, leadership, tmp_path):
    [row] = await db.fetch(db.Sql("SELECT timestamp FROM audit_event WHERE sequence = 51"))
    assert await archive(sealed.cipher, datetime(2020, 1, 1, tzinfo=UTC), tmp_path) == archives.Archived(None, 0)
    assert (await archive(sealed.cipher, row["timestamp"], tmp_path)).archive.trailer.last == 50
    assert (await archive(sealed.cipher, FUTURE, tmp_path)).archive is None


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM audit_event WHERE sequence > 50",
        "DELETE FROM audit_event WHERE sequence IS NULL",
        "UPDATE audit_event SET actor = 'eve' WHERE sequence = 51",
        "DELETE FROM audit_archive",
        "UPDATE audit_archive SET last_sequence = 60",
        "DELETE FROM audit_checkpoint WHERE sequence = 30",
        "UPDATE audit_checkpoint SET hash = 'x' WHERE sequence = 30",
        RECORD.format(first=1, last=30, hash="hash"),
        RECORD.format(first=51, last=50, hash="hash"),
        RECORD.format(first=51, last=30, hash="hash"),
    ],
)
async def test_the_database_lets_go_of_what_an_archive_covers_and_of_nothing_else(sealed, tmp_path, look, statement):
    await archive(sealed.cipher, FUTURE, tmp_path)
    with pytest.raises(REFUSED, match="append-only"):
        await db.fetch(db.Sql(statement))
    assert (await look()).faults == []


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM audit_event WHERE sequence = 1",
        RECORD.format(first=2, last=50, hash="hash"),
        RECORD.format(first=1, last=50, hash="'x'"),
    ],
)
async def test_a_record_that_fits_no_rows_is_refused(sealed, statement):
    with pytest.raises(REFUSED, match="append-only"):
        await db.fetch(db.Sql(statement))


async def test_archives_and_checkpoints_cannot_be_replaced(sealed, database, tmp_path, look):
    await archive(sealed.cipher, FUTURE, tmp_path)
    if database == "postgres":
        for table in ("audit_archive", "audit_checkpoint"):
            with pytest.raises(REFUSED, match="append-only"):
                await db.fetch(db.Sql(f"TRUNCATE {table}"))
        forged = "INSERT INTO audit_event (id, timestamp, sequence) VALUES ('x', now(), 5000)"
        with pytest.raises(REFUSED, match="append-only"):
            await db.fetch(db.Sql(forged))
    else:
        replace = "INSERT OR REPLACE INTO audit_checkpoint SELECT sequence, 'x', signature, created_at FROM"
        await db.fetch(db.Sql(f"{replace} audit_checkpoint"))
        with pytest.raises(REFUSED, match="append-only"):
            await db.fetch(db.Sql("INSERT OR REPLACE INTO audit_archive SELECT * FROM audit_archive"))
    assert (await look()).faults == []


async def test_a_record_that_the_server_did_not_sign_explains_nothing(sealed, look):
    """Who owns the database may write a record and delete rows: the signature is missing."""
    trailer = {"first": 1, "last": 30, "hash": "h", "unsealed": 0, "made_at": "", "digest": ""}
    forged = json.dumps({"trailer": trailer, "signature": ""})
    record = RECORD.format(first=1, last=30, hash="hash").replace("'{}'", f"'{forged}'")
    await db.fetch(db.Sql(record))
    await db.fetch(db.Sql("DELETE FROM audit_event WHERE sequence <= 30"))
    assert (await look()).faults == [
        "the archive of rows 1 to 30 holds a signature that is not ours",
        "rows 1 to 30, which a checkpoint names, are gone",
    ]


async def test_a_record_that_nobody_can_read_explains_nothing(sealed, tmp_path, look):
    await archive(sealed.cipher, FUTURE, tmp_path)
    await behind_our_back("UPDATE audit_archive SET trailer = 'x'")
    faults = (await look()).faults
    assert faults[0] == "the record of audit-000000000001-000000000050.ndjson cannot be read"
    assert "rows 1 to 30, which a checkpoint names, are gone" in faults


FULL = {
    "sqlite": "CREATE TRIGGER full_disk BEFORE {event} ON {table} BEGIN SELECT RAISE(ABORT, 'full'); END",
    "postgres": "CREATE TRIGGER full_disk BEFORE {event} ON {table} FOR EACH ROW EXECUTE FUNCTION full_disk()",
}
FUNCTION = "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'full'; END $$"


@pytest.fixture
def full_disk(database):
    """Let an archive end where it writes to a table."""

    @contextlib.asynccontextmanager
    async def ending_at(event, table):
        if database == "postgres":
            await db.fetch(db.Sql(FUNCTION))
        await db.fetch(db.Sql(FULL[database].format(event=event, table=table)))
        with pytest.raises(REFUSED, match="full"):
            yield
        await db.fetch(db.Sql("DROP TRIGGER full_disk" + (f" ON {table}" if database == "postgres" else "")))

    return ending_at


async def test_one_that_ends_before_the_record_leaves_everything(sealed, full_disk, tmp_path, look):
    async with full_disk("INSERT", "audit_archive"):
        await archive(sealed.cipher, FUTURE, tmp_path)
    assert ((await look()).faults, await places()) == ([], (1, 60, 60))
    with pytest.raises(MisconfiguredError, match="File exists"):
        await archive(sealed.cipher, FUTURE, tmp_path)
    assert await places() == (1, 60, 60)


async def test_one_that_ends_after_the_record_is_made_up_for(sealed, full_disk, tmp_path, look):
    async with full_disk("DELETE", "audit_event"):
        await archive(sealed.cipher, FUTURE, tmp_path)
    found = await look()
    assert (found.faults, found.rows, await places()) == ([], 10, (1, 60, 60))
    assert await archive(sealed.cipher, FUTURE, tmp_path) == archives.Archived(None, 50)
    assert ((await look()).faults, await places()) == ([], (51, 60, 10))


async def test_a_trail_that_was_changed_is_not_archived(sealed, tmp_path):
    await behind_our_back("UPDATE audit_event SET actor = 'eve' WHERE sequence = 20")
    with pytest.raises(MisconfiguredError, match=r"nothing was archived: row 20 \(audit-\w+\) was changed"):
        await archive(sealed.cipher, FUTURE, tmp_path)
    assert (await places(), list(tmp_path.glob("*.ndjson"))) == ((1, 60, 60), [])


async def test_a_directory_that_takes_no_file_is_told(sealed, tmp_path):
    with pytest.raises(MisconfiguredError, match="nothing can be written beside"):
        await archive(sealed.cipher, FUTURE, tmp_path / "none")


def invoke(*arguments, program=main):
    return CliRunner().invoke(program, [*map(str, arguments)])


@pytest.fixture
def installation(tmp_path, monkeypatch):
    """An embedded installation with its first rows."""
    monkeypatch.setenv("CERTCTL_DATA_DIR", str(tmp_path / "data"))
    assert invoke("keys", "create", "--role", "viewer").exit_code == 0
    return tmp_path


def test_the_command_archives_what_is_old_enough(installation):
    done = invoke("audit", "archive", "--before", "2020-01-01", installation, program=cli.main)
    assert (done.exit_code, done.output) == (
        0,
        "no checkpoint is old enough: nothing was archived\n0 rows were removed from the database\n",
    )


@pytest.mark.parametrize("before", ["yesterday", "2020-01-01T00:00:00", "2020-13-01"])
def test_the_command_refuses_what_is_no_time(installation, before):
    done = invoke("audit", "archive", "--before", before, installation)
    assert (done.exit_code, "is not an RFC 3339 time" in done.output) == (2, True)


def test_without_a_file_the_database_is_verified(installation):
    done = invoke("audit", "verify", program=cli.main)
    assert (done.exit_code, "not sealed yet: 1" in done.output, "signed by: " in done.output) == (0, True, True)
    key = next(line.removeprefix("signed by: ") for line in done.output.splitlines() if line.startswith("signed by"))
    export = installation / "export"
    export.write_bytes(b"")
    assert invoke("audit", "verify", "--key", key, export, program=cli.main).exit_code == 1


def test_help_names_what_the_server_brings(installation):
    said = invoke("audit", "--help", program=cli.main).output
    assert [name for name in ("archive", "export", "get", "list", "verify") if f"  {name} " not in said] == []
