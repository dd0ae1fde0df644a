import asyncio
import json
import sqlite3
import stat
from dataclasses import replace
from datetime import timedelta

import asyncpg
import pytest
from certctl_core.audit import Link
from certctl_server import db
from certctl_server.audit import sealer
from certctl_server.audit.chain import HEAD_FILE
from certctl_server.audit.record import SYSTEM, Event, record
from certctl_server.audit.sealer import seal, seal_pass
from certctl_server.audit.verify import verify
from certctl_server.leader import Leadership, NotLeading
from certctl_server.main import main
from certctl_server.sealing import Cipher
from click.testing import CliRunner
from server_flow import behind_our_back, write_events

REFUSED = (asyncpg.RaiseError, sqlite3.IntegrityError)
KEY = db.Sql("SELECT value FROM setting WHERE name = 'audit_signing_key'")
CHANGES = {
    "id": "id = id || 'x'",
    "actor": "actor = 'eve'",
    "actor_type": "actor_type = 'Agent'",
    "action": "action = 'certificate_kept'",
    "resource_type": "resource_type = 'owner'",
    "resource_id": "resource_id = 'mc-other'",
    "details": "details = replace(details, '5', '6')",
    "request_id": "request_id = 'r'",
    "previous hash": "previous_hash = replace(previous_hash, substr(previous_hash, 1, 1), 'x')",
    "hash": "hash = replace(hash, substr(hash, 1, 1), 'x')",
}


REPLACING = {
    "postgres": ["TRUNCATE audit_event"],
    "sqlite": [
        f"INSERT OR REPLACE INTO audit_event {columns} FROM audit_event"
        for columns in (
            "(number, id, timestamp) SELECT number, 'x', timestamp",
            "(id, timestamp) SELECT id, timestamp",
            "(id, timestamp, sequence) SELECT 'x', timestamp, 5",
        )
    ]
    + ["UPDATE OR REPLACE audit_event SET sequence = 5, hash = 'x' WHERE sequence IS NULL"],
}


@pytest.fixture
async def leader(ctx):
    leadership = Leadership("test", timedelta(seconds=30), alone=True)
    assert await leadership.campaign()
    return leadership


@pytest.fixture
def look(ctx):
    """Verify the trail of the test."""
    return lambda: verify(ctx.settings, ctx.cipher)


@pytest.fixture
async def sealed(ctx, leader):
    """Ten sealed rows."""
    await write_events(10)
    assert await seal_pass(ctx, leader) == 10


async def test_rows_are_chained_in_order_and_the_trail_verifies(ctx, leader, look):
    await write_events(5)
    assert (await look()).unsealed == 5
    assert await seal_pass(ctx, leader) == 5
    rows = await db.fetch(db.Sql("SELECT * FROM audit_event ORDER BY number"))
    assert [row["sequence"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["previous_hash"] for row in rows] == ["", *(row["hash"] for row in rows[:-1])]
    found = await look()
    assert (found.faults, found.rows, found.unsealed, found.checkpoints) == ([], 5, 0, 1)
    assert found.head == found.witness == Link(5, rows[-1]["hash"])


async def test_nothing_to_seal_writes_nothing(ctx, leader, look):
    assert await seal_pass(ctx, leader) == 0
    assert not (ctx.settings.data_dir / HEAD_FILE).exists()
    assert (await look()).faults == []


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_any_change_of_a_sealed_row_is_found(database, sealed, look, change):
    await behind_our_back(f"UPDATE audit_event SET {change} WHERE sequence = 5")
    assert any("row 5" in fault or "row 6" in fault for fault in (await look()).faults)


async def test_a_moved_timestamp_is_found_to_the_microsecond(database, sealed, look):
    [row] = await db.fetch(db.Sql("SELECT timestamp FROM audit_event WHERE sequence = 5"))
    moved = (row["timestamp"] + timedelta(microseconds=1)).isoformat(sep=" ", timespec="microseconds")
    await behind_our_back(f"UPDATE audit_event SET timestamp = '{moved}' WHERE sequence = 5")
    assert [fault.split(" (")[0] for fault in (await look()).faults] == ["row 5"]


async def test_two_rows_that_changed_places_are_found(database, sealed, look):
    await behind_our_back("UPDATE audit_event SET sequence = 99 WHERE sequence = 4")
    for old, new in ((5, 4), (99, 5)):
        await db.fetch(db.Sql(f"UPDATE audit_event SET sequence = {new} WHERE sequence = {old}"))
    assert {fault.split(" (")[0] for fault in (await look()).faults} >= {"row 4", "row 5"}


async def test_a_restore_whose_record_was_changed_is_told_as_such(database, ctx, leader, look):
    await record([Event(SYSTEM, "database_restored", "database", "2", {"sequence": 5, "seen_sequence": 7})])
    await seal_pass(ctx, leader)
    assert (await look()).restores[0].endswith("the trail goes on after row 5, 7 was seen before")
    await behind_our_back("UPDATE audit_event SET details = 'x'")
    found = await look()
    assert found.restores[0].endswith("nobody can read which")
    assert found.faults[0].endswith("was changed")


async def test_deleted_rows_are_found_wherever_they_were(database, sealed, look):
    await behind_our_back("DELETE FROM audit_event WHERE sequence IN (1, 5, 6, 10)")
    faults = (await look()).faults
    assert faults[:2] == ["rows 1 to 1 are gone", "rows 5 to 6 are gone"]
    assert any(fault.startswith("rows 10 to 10") for fault in faults[2:])


async def test_a_trail_that_was_forged_whole_lacks_our_signature(database, ctx, leader, sealed, look):
    """Who owns the database but not the key can chain anew, and cannot sign."""
    [key] = await db.fetch(KEY)
    unseal = "UPDATE audit_event SET actor = 'eve', sequence = NULL, previous_hash = NULL, hash = NULL"
    await behind_our_back(unseal)
    await db.fetch(db.Sql("DELETE FROM audit_checkpoint"))
    await db.fetch(db.Sql("DELETE FROM setting WHERE name = 'audit_signing_key'"))
    (ctx.settings.data_dir / HEAD_FILE).unlink()
    await seal_pass(replace(ctx, cipher=Cipher([b"e" * 32])), leader)
    await db.fetch(db.Sql("UPDATE setting SET value = $1 WHERE name = 'audit_signing_key'"), key["value"])
    assert (await look()).faults == [
        "the checkpoint at row 10 holds a signature that is not ours",
        f"{HEAD_FILE} holds a signature that is not ours",
    ]


async def test_a_trail_chained_anew_without_checkpoints_is_not_signed(database, ctx, leader, look):
    await write_events(1500)
    await seal_pass(ctx, leader)
    await behind_our_back("DELETE FROM audit_checkpoint")
    assert (await look()).faults == ["rows 1 to 1500 are not signed"]


@pytest.mark.parametrize(
    ("removed", "fault"),
    [(1999, "a checkpoint between rows 1000 and 2999 is gone"), (2999, "rows 2000 to 3998 are not signed")],
    ids=["inside", "last"],
)
async def test_a_removed_checkpoint_is_missed(ctx, leader, look, removed, fault):
    for first in (1, 2000):
        await write_events(1999, first=first)
        await seal_pass(ctx, leader)
    assert (await look()).faults == []
    await behind_our_back(f"DELETE FROM audit_checkpoint WHERE sequence = {removed}")
    assert (await look()).faults == [fault]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_event SET actor = 'eve' WHERE sequence = 5",
        "UPDATE audit_event SET sequence = NULL",
        "UPDATE audit_event SET hash = 'x' WHERE sequence = 5",
        "UPDATE audit_event SET actor = 'eve', sequence = 99 WHERE sequence IS NULL",
        "DELETE FROM audit_event WHERE sequence IS NULL",
        "DELETE FROM audit_event",
    ],
)
async def test_the_database_refuses_to_change_or_delete_rows(database, sealed, look, statement):
    await write_events(1, first=11)
    with pytest.raises(REFUSED, match="append-only"):
        await db.fetch(db.Sql(statement))
    assert (await look()).faults == []


async def test_the_database_refuses_to_empty_or_replace_the_trail(database, sealed, look):
    await write_events(1, first=11)
    for statement in REPLACING[database]:
        with pytest.raises(REFUSED, match="append-only"):
            await db.fetch(db.Sql(statement))
    assert ((await look()).faults, (await look()).rows) == ([], 10)


async def test_a_restart_continues_the_chain(database, ctx, leader, sealed, look):
    await leader.resign()
    successor = Leadership("after the restart", timedelta(seconds=30), alone=True)
    await successor.campaign()
    await write_events(3, first=11)
    assert await seal_pass(ctx, successor) == 3
    found = await look()
    assert (found.faults, found.rows, found.head.sequence) == ([], 13, 13)


async def test_who_does_not_lead_seals_nothing(database, ctx, leader, look):
    await write_events(1)
    with pytest.raises(NotLeading):
        await seal_pass(ctx, Leadership("other", timedelta(seconds=30), alone=False))
    assert (await look()).unsealed == 1


async def test_two_sealers_at_once_make_one_chain(database, ctx, leader, look):
    for start in range(1, 200, 40):
        await write_events(40, first=start)
        passes = [seal_pass(ctx, leader) for _ in range(4)]
        assert sum(await asyncio.gather(*passes)) == 40
    found = await look()
    assert (found.faults, found.rows) == ([], 200)


async def test_rows_written_while_the_sealer_runs_are_all_chained(database, ctx, leader, look):
    writers = [asyncio.create_task(write_events(20, first=n * 20)) for n in range(10)]
    while not all(task.done() for task in writers):
        await seal_pass(ctx, leader)
        await asyncio.sleep(0)  # a pass that finds nothing may not wait for anything
    await asyncio.gather(*writers)
    while await seal_pass(ctx, leader):
        pass
    found = await look()
    assert (found.faults, found.rows, found.unsealed) == ([], 200, 0)


async def test_a_pass_is_bounded_and_a_full_one_asks_for_the_next_at_once(database, ctx, leader, look):
    await write_events(sealer.PASS + 10)
    assert await seal(ctx, leader) <= db.now()
    assert (await look()).unsealed == 10
    assert await seal(ctx, leader) is None
    found = await look()
    assert (found.faults, found.rows) == ([], sealer.PASS + 10)
    signed = await db.fetch(db.Sql("SELECT sequence FROM audit_checkpoint ORDER BY sequence"))
    assert [row["sequence"] for row in signed] == [1000, 2000]


async def test_the_last_rows_are_signed_after_a_minute_of_silence(database, ctx, leader, sealed, look):
    await write_events(1, first=11)
    await seal_pass(ctx, leader)
    assert (await look()).checkpoints == 1
    ctx.clock.ahead = timedelta(seconds=61)
    assert await seal_pass(ctx, leader) == 0
    assert (await look()).checkpoints == 2
    await seal_pass(ctx, leader)
    assert (await look()).checkpoints == 2


async def test_the_head_lies_outside_the_database_for_its_owner_only(database, ctx, sealed):
    path = ctx.settings.data_dir / HEAD_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text())["sequence"] == 10


async def test_a_tail_that_was_cut_off_is_missed_and_its_witness_kept(database, ctx, leader, sealed, look):
    path = ctx.settings.data_dir / HEAD_FILE
    kept = path.read_text()
    await write_events(5, first=11)
    await seal_pass(ctx, leader)
    grown = path.read_text()
    await behind_our_back("DELETE FROM audit_event WHERE sequence > 10")
    assert (await look()).faults == [f"rows 11 to 15, which {HEAD_FILE} names, are gone"]
    await write_events(1, first=11)
    await seal_pass(ctx, leader)
    assert path.read_text() == grown != kept
    assert (await look()).faults == [f"rows 12 to 15, which {HEAD_FILE} names, are gone"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda text: "", f"{HEAD_FILE} cannot be read"),
        (lambda text: text.replace('"sequence": 10', '"sequence": 9'), "row 9 is not the one"),
        (lambda text: text.replace('"signature": "', '"signature": "AAAA'), "signature that is not ours"),
    ],
    ids=["empty", "other row", "signature"],
)
async def test_a_changed_head_file_is_found(database, ctx, sealed, look, change, fault):
    path = ctx.settings.data_dir / HEAD_FILE
    path.write_text(change(path.read_text()))
    assert any(fault in found for found in (await look()).faults)


async def test_a_head_file_that_was_lost_is_written_again(database, ctx, leader, sealed, look):
    (ctx.settings.data_dir / HEAD_FILE).unlink()
    found = await look()
    assert (found.faults, found.witness) == ([], None)
    await write_events(1, first=11)
    await seal_pass(ctx, leader)
    assert (await look()).witness.sequence == 11


def test_the_command_says_whether_the_trail_is_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("CERTCTL_DATA_DIR", str(tmp_path))
    run = CliRunner().invoke
    first = run(main, ["audit", "verify"])
    assert (first.exit_code, "sealed rows: 0" in first.output) == (0, True), first.output
    (tmp_path / HEAD_FILE).write_text("{}")
    second = run(main, ["audit", "verify"])
    assert (second.exit_code, f"FAULT: {HEAD_FILE} cannot be read" in second.output) == (1, True), second.output
