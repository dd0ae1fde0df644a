import csv
import io
import json
from datetime import timedelta

import pytest
from certctl_core.audit import COLUMNS, key_text
from certctl_core.errors import TransientError
from certctl_sdk import audit_file
from certctl_server import db
from certctl_server.audit import chain, entries
from certctl_server.audit.entries import Extent
from certctl_server.audit.export import verifiable
from certctl_server.audit.record import Actor, Event, record
from certctl_server.audit.sealer import seal_pass
from certctl_server.auth.keys import create_key
from certctl_server.auth.roles import Role
from server_flow import behind_our_back, write_events

EXPORT = "/api/v1/audit/export"
DETAILS = {"n": 1, "text": 'ü"\n\\'}


@pytest.fixture
async def trail(ctx, client, leadership):
    """60 sealed rows, the last of them signed, and three that wait."""
    await write_events(60)
    while await seal_pass(ctx, leadership):
        pass
    await record([Event(Actor("ada"), "key_created", "api_key", f"key-{n}", DETAILS) for n in range(3)])
    return client


async def exported(client, **params):
    answer = await client.get(EXPORT, params=params)
    assert answer.status_code == 200, answer.text
    return answer


async def verified(client, key=""):
    return audit_file.verify([io.BytesIO((await exported(client)).content)], key)


async def test_the_whole_trail_verifies_without_the_server(trail, ctx, leadership):
    await write_events(2400)  # pages of rows that are sealed
    assert await seal_pass(ctx, leadership) == 2000
    public = key_text((await chain.signing_key(ctx.cipher)).public_key())
    found = await verified(trail, public)
    assert found.faults.told == []
    assert (found.rows, found.unsealed, found.checkpoints, found.first) == (2060, 403, 3, 1)
    assert found.head == entries.link_of(
        (await db.fetch(db.Sql("SELECT sequence, hash FROM audit_checkpoint ORDER BY sequence")))[-1]
    )


async def test_every_line_is_an_event_with_its_place_and_its_text(trail):
    answer = await exported(trail)
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["content-disposition"] == 'attachment; filename="audit.ndjson"'
    lines = [json.loads(line) for line in answer.text.splitlines()]
    first, waiting, last = lines[0], lines[-2], lines[-1]
    assert first.keys() == {*COLUMNS, "sequence", "hash", "details_text"} - {"request_id"}
    assert (first["sequence"], first["resource_id"], first["details"]) == (1, "mc-1", {"n": 1})
    assert (waiting["details"], "sequence" in waiting) == (DETAILS, False)
    assert last["trailer"]["unsealed"] == 3
    assert sum("checkpoint" in line for line in lines) == 1


CHANGES = {
    "id": "id = id || 'x'",
    "timestamp": "timestamp = '2020-01-01 00:00:00.000000+00:00'",
    "no time": "timestamp = 'never'",
    "actor": "actor = 'eve'",
    "actor_type": "actor_type = 'Agent'",
    "action": "action = 'certificate_kept'",
    "resource_type": "resource_type = 'owner'",
    "resource_id": "resource_id = 'mc-other'",
    "details": "details = replace(details, '7', '8')",
    "details that are no JSON": "details = details || 'x'",
    "details that end the line": "details = '{}' || char(10) || '{}'",
    "request_id": "request_id = 'r'",
    "hash": "hash = replace(hash, substr(hash, 1, 1), 'x')",
    "previous hash": "previous_hash = replace(previous_hash, substr(previous_hash, 1, 1), 'x')",
}


@pytest.mark.parametrize("change", CHANGES)
async def test_any_change_of_a_row_in_the_database_is_in_its_export(trail, database, change):
    text = CHANGES[change]
    if database == "postgres":
        text = text.replace("char(", "chr(").replace("never", "infinity")
    await behind_our_back(f"UPDATE audit_event SET {text} WHERE sequence = 47")
    faults = (await verified(trail)).faults.told
    assert any(fault.startswith(("row 47 ", "row 48 ")) for fault in faults), faults


async def test_deleted_and_swapped_rows_are_found_in_an_export(trail):
    await behind_our_back("DELETE FROM audit_event WHERE sequence = 30")
    assert (await verified(trail)).faults.told == ["rows 30 to 30 are gone"]
    for old, new in ((20, 9999), (21, 20), (9999, 21)):
        await db.fetch(db.Sql(f"UPDATE audit_event SET sequence = {new} WHERE sequence = {old}"))
    faults = (await verified(trail)).faults.told
    assert {fault.split(" (")[0] for fault in faults} >= {"row 20", "row 21"}


async def test_a_sealed_end_that_was_cut_off_is_found_in_an_export(trail):
    await behind_our_back("DELETE FROM audit_event WHERE sequence > 50")
    assert "rows 51 to 60, which a checkpoint names, are gone" in (await verified(trail)).faults.told


@pytest.mark.parametrize("anew", [False, True], ids=["cut off", "chained anew"])
async def test_an_end_that_lost_its_checkpoints_too_is_not_the_one_that_was_seen(trail, ctx, leadership, anew):
    assert (await verified(trail)).faults.told == []
    await behind_our_back("DELETE FROM audit_event WHERE sequence > 50")
    await behind_our_back("DELETE FROM audit_checkpoint")
    assert "rows 51 to 60, which a checkpoint names, are gone" in (await verified(trail)).faults.told
    if anew:
        await write_events(20)
        await seal_pass(ctx, leadership)
        assert "row 60 is not the one that was signed" in (await verified(trail)).faults.told


async def test_a_witness_that_anybody_could_have_written_says_nothing(trail, settings):
    path = settings.data_dir / chain.HEAD_FILE
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"sequence": 70}))
    assert (await verified(trail)).faults.told == []


async def test_rows_that_are_sealed_meanwhile_are_in_it_once(trail, ctx, leadership):
    """What comes after the first page changes nothing of what was there when it began."""
    parts = verifiable(await chain.signing_key(ctx.cipher), await entries.extent())
    raw = await anext(parts)
    await write_events(1500, first=3000)
    assert await seal_pass(ctx, leadership) == 1503
    raw += b"".join([part async for part in parts])
    found = audit_file.verify([io.BytesIO(raw)])
    assert (found.faults.told, found.rows, found.unsealed) == ([], 60, 3)


async def test_an_export_from_which_rows_leave_for_an_archive_vouches_for_nothing(trail, ctx):
    parts = verifiable(await chain.signing_key(ctx.cipher), Extent(after=20, upto=60))
    with pytest.raises(TransientError, match="archived meanwhile"):
        b"".join([part async for part in parts])


async def test_an_empty_trail_can_be_exported(ctx, database):
    parts = verifiable(await chain.signing_key(ctx.cipher), await entries.extent())
    found = audit_file.verify([io.BytesIO(b"".join([part async for part in parts]))])
    assert (found.faults.told, found.rows, found.unsealed) == ([], 0, 0)


async def test_filters_make_an_export_for_reading(trail):
    answer = await exported(trail, action="key_created")
    rows = [json.loads(line) for line in answer.text.splitlines()]
    assert [row["resource_id"] for row in rows] == ["key-0", "key-1", "key-2"]
    assert rows[0].keys() == {*COLUMNS} - {"request_id"}


async def test_json_is_one_list_oldest_first(trail):
    rows = (await exported(trail, format="json")).json()
    assert len(rows) == 63
    assert [row["resource_id"] for row in rows[:2]] == ["mc-1", "mc-2"]
    assert rows[0]["hash"]
    assert (await exported(trail, format="JSON", actor="nobody")).json() == []


async def test_csv_has_a_line_for_each_event(trail):
    answer = await exported(trail, format="csv", resource_type="api_key")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="audit.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["actor"], row["resource_id"]) for row in rows] == [("ada", f"key-{n}") for n in range(3)]
    assert json.loads(rows[0]["details"]) == DETAILS
    assert rows[0]["timestamp"].endswith("Z")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
async def test_a_spreadsheet_computes_nothing(client, start):
    await record([Event(Actor(f"{start}SUM(A1)"), "x", "team", "t")])
    rows = list(csv.DictReader(io.StringIO((await exported(client, format="csv", action="x")).text, newline="")))
    assert [row["actor"] for row in rows] == [f"'{start}SUM(A1)"]


async def test_a_span_of_time_has_its_first_moment_and_not_its_last(client):
    await write_events(3)
    [first, second, third] = [row["timestamp"] for row in await db.fetch(db.Sql(TIMES))]
    assert first == second == third  # one transaction
    later = second + timedelta(microseconds=1)

    async def count(**params):
        text = (await exported(client, action="certificate_created", **params)).text
        return len(text.splitlines())

    assert await count(**{"from": first.isoformat(), "to": later.isoformat()}) == 3
    assert await count(**{"from": later.isoformat()}) == 0
    assert await count(to=first.isoformat()) == 0
    assert await count(since=first.isoformat()) == 0


TIMES = "SELECT timestamp FROM audit_event WHERE action = 'certificate_created' ORDER BY number"


async def test_every_fault_of_the_query_is_told_at_once(client):
    answer = await client.get(EXPORT, params={"format": "xml", "from": "x", "actor_type": "Robot", "page": "1"})
    assert answer.status_code == 400
    assert {each["field"] for each in answer.json()["details"]} == {"format", "from", "actor_type", "page"}


async def test_who_exported_what_is_in_the_trail(client):
    await exported(client, format="csv", actor="bob")
    await client.head(EXPORT)
    rows = await db.fetch(db.Sql("SELECT actor, details FROM audit_event WHERE action = 'audit_exported'"))
    assert [(row["actor"], json.loads(row["details"])) for row in rows] == [
        ("ada", {"format": "csv", "filters": {"actor": "bob"}})
    ]


@pytest.mark.parametrize(("role", "status"), [(Role.OPERATOR, 200), (Role.VIEWER, 403), (None, 401)])
async def test_who_may_export(connect, database, role, status):
    key = (await create_key("x", role))[1] if role else None
    async with connect(key) as caller:
        assert (await caller.get(EXPORT)).status_code == status


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "POST"])
async def test_an_export_is_only_read(client, method):
    assert (await client.request(method, EXPORT)).status_code == 405
