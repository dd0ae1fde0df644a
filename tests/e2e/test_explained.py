"""``certctl explain`` reckons as the server does, though it knows no more than the API says."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime

import pytest


@pytest.fixture(scope="module")
def server(stage):
    return stage.server().start()


@pytest.fixture
def explain(stage, server):
    """What is said of a certificate."""
    access = {"CERTCTL_SERVER_URL": server.url, "CERTCTL_API_KEY": server.key}

    def call(id):
        return json.loads(stage.run(server, "certctl", "--format", "json", "explain", id, **access).stdout)

    return call


def due(server, id):
    """When the server itself means to renew."""
    with closing(sqlite3.connect(f"file:{server.data_dir}/certctl.db?mode=ro", uri=True)) as database:
        [[text]] = database.execute("SELECT renew_due_at FROM certificate WHERE id = ?", (id,)).fetchall()
    return None if text is None else datetime.fromisoformat(text).replace(tzinfo=UTC)


def renewals(found):
    return [
        each["at"] and datetime.fromisoformat(each["at"]) for each in found["next"] if "renewed, as" in each["what"]
    ]


@pytest.mark.parametrize("window_days", [30, 5])
def test_the_renewal_is_announced_for_the_moment_that_the_server_has(server, explain, window_days):
    name = f"w{window_days}.explained.example"
    policy = server.post("renewal-policies", {"name": name, "renewal_window_days": window_days})["id"]
    id = server.order(name, renewal_policy_id=policy)["id"]
    waiting = explain(id)
    assert (waiting["status"], renewals(waiting), due(server, id)) == ("Pending", [], None)
    assert "waits for a CSR" in waiting["next"][0]["what"]
    server.sign(id, name)
    server.until(f"certificates/{id}", lambda row: row["status"] == "Active", "the certificate")
    [announced] = renewals(explain(id))
    assert abs(announced - due(server, id)).total_seconds() < 1


def test_what_was_made_elsewhere_is_announced_too(server, explain):
    elsewhere = {"status": "Active", "expires_at": "2099-01-01T00:00:00Z", "serial_number": "0a"}
    id = server.order("else.explained.example", **elsewhere)["id"]
    [announced] = renewals(explain(id))
    assert abs(announced - due(server, id)).total_seconds() < 1


def test_what_a_policy_forbids_is_named(server, explain):
    id = server.order("broken.explained.example", environment="nowhere")["id"]
    assert any("It breaks the policy pr-allowed-environments (Warning)" in sentence for sentence in explain(id)["why"])


def test_what_was_put_away_has_nothing_to_come(server, explain):
    id = server.order("gone.explained.example")["id"]
    server.call("DELETE", f"certificates/{id}")
    found = explain(id)
    assert (found["status"], [each["what"] for each in found["next"]]) == (
        "Archived",
        ["It is not renewed by itself: it is Archived."],
    )


def test_a_certificate_that_is_not_there_is_told(stage, server):
    access = {"CERTCTL_SERVER_URL": server.url, "CERTCTL_API_KEY": server.key}
    assert "HTTP 404" in stage.run(server, "certctl", "explain", "nobody", code=1, **access).stderr
