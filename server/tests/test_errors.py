import logging
import sqlite3
from datetime import timedelta
from http import HTTPStatus

import asyncpg
import pytest
from certctl_core.errors import IllegalTransition, MisconfiguredError, RejectedError, TransientError
from certctl_sdk.http import httpx
from certctl_server import db
from certctl_server.errors import HANDLERS, Refused
from certctl_server.people.tables import Owner, Team
from litestar import Litestar, get
from litestar.exceptions import HTTPException


async def answer_to(error):
    @get("/")
    async def fail() -> None:
        raise error

    app = Litestar([fail], exception_handlers=HANDLERS, openapi_config=None, logging_config=None)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://x") as client:
        return await client.get("/")


@pytest.mark.parametrize(
    ("error", "status", "reason", "message"),
    [
        (Refused(HTTPStatus.NOT_FOUND, "Team not found"), 404, "Not Found", "Team not found"),
        (IllegalTransition("job", "a", "b"), 409, "Conflict", "a job that is a cannot become b"),
        (TransientError("Vault did not answer"), 503, "Service Unavailable", "Vault did not answer"),
        (RejectedError("Vault said no"), 503, "Service Unavailable", "Vault said no"),
        (MisconfiguredError("no token"), 503, "Service Unavailable", "no token"),
        (ConnectionRefusedError(111, "x"), 503, "Service Unavailable", "The database cannot be reached"),
        (asyncpg.CannotConnectNowError("x"), 503, "Service Unavailable", "The database cannot be reached"),
        (asyncpg.AdminShutdownError("x"), 503, "Service Unavailable", "The database cannot be reached"),
        (asyncpg.TooManyConnectionsError("x"), 503, "Service Unavailable", "The database cannot be reached"),
        (asyncpg.DeadlockDetectedError("x"), 503, "Service Unavailable", "The database cannot be reached"),
        (asyncpg.UndefinedTableError("no table t"), 500, "Internal Server Error", "Internal error"),
        (asyncpg.DataError("value out of range: SELECT 1"), 500, "Internal Server Error", "Internal error"),
        (sqlite3.OperationalError("no such table: t"), 500, "Internal Server Error", "Internal error"),
        (HTTPException("gone wrong: SELECT", status_code=500), 500, "Internal Server Error", "Internal error"),
        (KeyError("secret"), 500, "Internal Server Error", "Internal error"),
        (Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "x"), 413, "Request Entity Too Large", "x"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
async def test_the_type_of_an_error_decides_what_clients_see(error, status, reason, message):
    answer = await answer_to(error)
    assert answer.status_code == status
    body = answer.json()
    assert body.pop("request_id")
    assert body == {"error": reason, "message": message}
    assert answer.content.endswith(b"\n")


async def test_a_peer_that_says_when_to_come_back_is_believed():
    answer = await answer_to(TransientError("busy", retry_after=timedelta(seconds=1.2)))
    assert answer.headers["Retry-After"] == "2"


async def test_a_bug_is_told_to_the_log_under_the_request_id(caplog):
    with caplog.at_level(logging.ERROR):
        answer = await answer_to(KeyError("what happened"))
    [line] = [record for record in caplog.records if record.name == "certctl_server.errors"]
    assert line.request == answer.json()["request_id"]
    assert "what happened" in line.exc_text


async def test_long_words_of_a_peer_are_cut():
    answer = await answer_to(RejectedError("x" * 5000))
    assert len(answer.json()["message"]) == 300


async def _caught(work):
    try:
        await work
    except (sqlite3.Error, asyncpg.PostgresError) as exc:
        return exc
    return pytest.fail("nothing was raised")


async def test_what_the_database_forbids_is_a_conflict_without_its_words(database):
    now = "2030-01-01 00:00:00+00:00"
    if database == "postgres":
        now = "2030-01-01T00:00:00Z"
    insert = db.Sql(f"INSERT INTO team (id, name, created_at, updated_at) VALUES ($1, $2, '{now}', '{now}')")
    owned = db.Sql(
        f"INSERT INTO owner (id, name, team_id, created_at, updated_at) VALUES ('o', 'o', $1, '{now}', '{now}')"
    )
    await db.fetch(insert, "t-1", "one")
    await db.fetch(owned, "t-1")
    cases = [
        db.fetch(insert, "t-1", "other"),
        db.fetch(insert, "t-2", "one"),
        db.fetch(db.Sql("UPDATE owner SET team_id = 'none'")),
        Team.delete().where(Team.id == "t-1").run(),
    ]
    for case in cases:
        answer = await answer_to(await _caught(case))
        assert (answer.status_code, answer.json()["error"]) == (409, "Conflict")
        assert "team" not in answer.json()["message"].lower()
    assert await Owner.count() == 1


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_database_that_is_locked_is_unavailable(database, tmp_path):
    await db.fetch(db.Sql("PRAGMA busy_timeout=20"))
    other = sqlite3.connect(tmp_path / "test.db")
    other.execute("BEGIN EXCLUSIVE")
    error = await _caught(db.fetch(db.Sql("DELETE FROM team")))
    other.close()
    answer = await answer_to(error)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
