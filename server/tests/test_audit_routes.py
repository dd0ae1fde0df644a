from datetime import UTC, datetime

import pytest
from certctl_server import db
from certctl_server.audit.record import Actor, Event, record
from certctl_server.audit.tables import AuditEvent

AUDIT = "/api/v1/audit"


@pytest.fixture
async def trail(client):
    """Three events, oldest first, by their actions."""
    for number, actor in enumerate((Actor("ada"), Actor("ag-1", "Agent"), Actor("ada", "User", "request-3"))):
        details = {"n": number, "text": 'ü"\n'}
        await record([Event(actor, f"action_{number}", "team", f"t-{number % 2}", details)])
    return client


async def actions(client, **params):
    answer = await client.get(AUDIT, params=params)
    assert answer.status_code == 200, answer.text
    return [row["action"] for row in answer.json()["data"]]


async def test_events_are_listed_newest_first(trail):
    assert await actions(trail) == ["action_2", "action_1", "action_0"]
    body = (await trail.get(AUDIT, params={"page_size": 2})).json()
    assert (len(body["data"]), body["total"]) == (2, 3)
    rest = (await trail.get(AUDIT, params={"cursor": body["next_cursor"]})).json()
    assert [row["action"] for row in rest["data"]] == ["action_0"]


async def test_an_event_says_what_was_recorded(trail):
    newest, *_, oldest = (await trail.get(AUDIT)).json()["data"]
    assert newest["details"] == {"n": 2, "text": 'ü"\n'}
    assert newest["request_id"] == "request-3"
    assert oldest.keys() == {
        "id",
        "actor",
        "actor_type",
        "action",
        "resource_type",
        "resource_id",
        "details",
        "timestamp",
    }


async def test_the_hashes_are_shown_once_an_event_is_sealed(trail):
    await db.fetch(
        db.Sql("UPDATE audit_event SET sequence = 1, hash = 'h', previous_hash = 'p' WHERE action = 'action_0'")
    )
    row = (await trail.get(AUDIT, params={"action": "action_0"})).json()["data"][0]
    assert (row["hash"], row["previous_hash"]) == ("h", "p")


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({"actor": "ada"}, [2, 0]),
        ({"actor_type": "agent"}, [1]),
        ({"action": "action_1,action_2"}, [2, 1]),
        ({"resource_type": "team"}, [2, 1, 0]),
        ({"resource": "t-1"}, [1]),
        ({"resource_id": "t-0"}, [2, 0]),
        ({"resource_id": "t-0", "actor": "nobody"}, []),
        ({"sort": "actor"}, [0, 2, 1]),
    ],
    ids=str,
)
async def test_events_are_found_by_what_they_say(trail, params, found):
    assert await actions(trail, **params) == [f"action_{number}" for number in found]


@pytest.mark.parametrize(("later", "earlier"), [("after", "before"), ("since", "until")])
async def test_events_are_found_by_their_time(trail, later, earlier):
    row = (await trail.get(AUDIT, params={"action": "action_1"})).json()["data"][0]
    assert await actions(trail, **{later: row["timestamp"]}) == ["action_2"]
    assert await actions(trail, **{earlier: row["timestamp"]}) == ["action_0"]
    now = datetime.now(UTC).isoformat()
    assert await actions(trail, **{later: now}) == []


async def test_an_event_is_got_by_its_id_or_as_the_newest_of_its_resource(trail):
    event = (await AuditEvent.select(AuditEvent.id).where(AuditEvent.action == "action_0").first())["id"]
    assert (await trail.get(f"{AUDIT}/{event}")).json()["action"] == "action_0"
    assert (await trail.get(f"{AUDIT}/t-0")).json()["action"] == "action_2"
    answer = await trail.get(f"{AUDIT}/t-9")
    assert (answer.status_code, answer.json()["message"]) == (404, "Audit event not found")


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "POST"])
async def test_the_trail_is_read_only(trail, method):
    assert (await trail.request(method, f"{AUDIT}/t-0")).status_code == 405
    assert (await trail.request(method, AUDIT)).status_code == 405
