from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from certctl_core.renewal import renew_due_at, spread_of
from certctl_sdk.explained.sentences import ago, explain
from certctl_sdk.explained.story import Story

NOW = datetime(2030, 1, 15, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def text(moment):
    return moment.isoformat().replace("+00:00", "Z")


BORN, END = NOW - 30 * DAY, NOW + 60 * DAY
VERSION = {"not_before": text(BORN), "not_after": text(END), "agent_id": "ag"}
CERTIFICATE = {"id": "mc-1", "name": "web", "status": "Active", "expires_at": text(END), "issuer_id": "iss"}
POLICY = {"id": "rp", "auto_renew": True, "renewal_window_days": 30, "alert_thresholds_days": [30, 7]}
ISSUER = {"id": "iss", "status": "ready", "enabled": True}
AGENT = {"id": "ag", "status": "Online"}
PLACE = {"id": "tgt", "deployment_state": "served", "agent_id": "ag", "enabled": True}
JOB = {
    "id": "job-1",
    "type": "Renewal",
    "status": "Pending",
    "attempts": 1,
    "scheduled_at": text(NOW),
    "agent_id": "ag",
}
RULE = {"id": "pr", "type": "AllowedIssuers"}


def told(*, certificate=(), policy=(), issuer=(), agent=(), **more):
    story = Story(
        now=NOW,
        certificate={**CERTIFICATE, **dict(certificate)},
        policy={**POLICY, **dict(policy)},
        issuer={**ISSUER, **dict(issuer)},
        agents={"ag": {**AGENT, **dict(agent)}},
        **{"versions": [VERSION], "deployments": [PLACE], **more},
    )
    return explain(story)


def job(**more):
    return {**JOB, **more}


def test_what_is_well_says_what_comes_and_when():
    found = told(jobs=[job(status="Completed", completed_at=text(BORN))])
    assert found.why == (
        "It is Active: valid until 2030-03-16 12:00 UTC (in 60 days).",
        "Renewal job-1 succeeded 2029-12-16 12:00 UTC (30 days ago).",
        "Target tgt serves it, seen in a handshake.",
    )
    due = renew_due_at(BORN, END, window_days=30, spread=spread_of("mc-1"))
    assert [(step.at, step.what) for step in found.next] == [
        (due, "It is to be renewed, as policy rp has it."),
        (END - 30 * DAY, "People are told that it expires, unless it is renewed by then."),
        (END - 30 * DAY, "It is shown as Expiring, unless it is renewed by then."),
        (END, "It expires, unless it is renewed by then."),
    ]


WAITING = {
    "approval": (job(status="AwaitingApproval"), "waits for a person: certctl jobs approve job-1, or reject."),
    "csr": (job(status="AwaitingCSR"), "waits for agent ag (Offline) to make a key and send a CSR."),
    "nobody's csr": (job(status="AwaitingCSR", agent_id=""), "waits for a CSR, and no agent is to make one"),
    "turn": (job(), "waits for its turn at iss."),
    "room": (job(waits_for="example.com"), "waits for room at its CA (example.com)."),
    "window": (job(scheduled_at=text(NOW + DAY)), "waits for a maintenance window"),
    "running": (job(status="Running"), "is being done."),
    "retry": (
        job(status="Failed", next_retry_at=text(NOW + DAY), last_error="refused"),
        "is tried again; attempt 1 failed: refused",
    ),
    "agent": (job(type="Deployment", target_id="tgt"), "to tgt waits for agent ag (Offline) to fetch it."),
    "deploying": (job(type="Deployment", status="Running"), "is being done by agent ag (Offline)."),
}


@pytest.mark.parametrize(("waiting", "words"), WAITING.values(), ids=WAITING)
def test_every_open_job_says_whom_it_waits_for(waiting, words):
    found = told(certificate={"status": "RenewalInProgress"}, agent={"status": "Offline"}, jobs=[waiting])
    assert [step for step in found.next if words in step.what], found.next
    assert "Agent ag is Offline; it was last heard of at a time that is not known." in found.why


def test_what_waits_until_a_moment_says_the_moment():
    found = told(jobs=[job(status="Failed", next_retry_at=text(NOW + DAY))])
    assert [step.at for step in found.next if "is tried again" in step.what] == [NOW + DAY]
    assert not any("to be renewed" in step.what for step in found.next)


STATES = {
    "Pending": ({"expires_at": "0001-01-01T00:00:00Z"}, "It is Pending: no certificate has been issued for it yet."),
    "RenewalInProgress": ({}, "a certificate is being made or put in place; the one that is there is valid until"),
    "Expiring": ({}, "which is less than 30 days, or than a third of its life."),
    "Expired": ({"expires_at": text(NOW - 3 * DAY)}, "its life ended 2030-01-12 12:00 UTC (3 days ago)."),
    "Failed": ({}, "what was tried last did not succeed"),
    "Revoked": (
        {"revoked_at": text(NOW - DAY), "revocation_reason": "superseded", "revocation_state": "confirmed"},
        "(24 hours ago): superseded; the CA confirmed it.",
    ),
    "Archived": ({}, "nothing is done for it any more"),
}


@pytest.mark.parametrize("status", STATES)
def test_every_state_has_its_sentence(status):
    more, words = STATES[status]
    versions = {"versions": []} if status == "Pending" else {}
    found = told(certificate={"status": status, **more}, **versions)
    assert words in found.why[0]
    never = status in {"Revoked", "Archived"}
    assert never == any("It is not renewed by itself" in step.what for step in found.next)


def test_what_hinders_is_named():
    found = told(
        certificate={"last_error": "the profile forbids RSA"},
        issuer={"status": "failing"},
        violations=[
            (RULE, {"severity": "Error", "message": "iss is not listed"}),
            ({"id": "pr-2", "type": "RenewalLeadTime"}, {"severity": "Critical", "message": "late"}),
        ],
        deployments=[
            {**PLACE, "deployment_state": "failed", "rollout": {"status": "halted", "held": True, "reason": "no"}}
        ],
    )
    assert list(found.why[1:]) == [
        (
            "Target tgt does not have it: the deployment failed; its wave of the rollout (halted) is not there yet;"
            " the rollout was halted: no."
        ),
        "Its CA iss is failing.",
        "It breaks the policy pr (Error, which forbids to issue and to renew): iss is not listed",
        "It breaks the policy pr-2 (Critical): late",
        "What went wrong last: the profile forbids RSA",
    ]


def test_an_order_that_failed_for_good_is_followed_by_a_fresh_one():
    ended = NOW - timedelta(hours=1)
    failed = job(status="Failed", completed_at=text(ended), last_error="no such account", attempts=4)
    late = {"expires_at": text(NOW + DAY)}
    version = {**VERSION, "not_after": text(NOW + DAY)}
    found = told(certificate={"status": "Failed", **late}, jobs=[failed], versions=[version])
    assert "Renewal job-1 failed for good after 4 attempts: no such account" in found.why
    assert [step.at for step in found.next if "to be renewed" in step.what] == [ended + DAY]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"policy": {"auto_renew": False}}, "policy rp leaves that to people (certctl certs renew mc-1)"),
        ({"issuer": {"enabled": False, "status": "disabled"}}, "its CA iss is disabled"),
    ],
    ids=["policy", "issuer"],
)
def test_what_is_not_renewed_by_itself_says_why(more, words):
    assert any(words in step.what for step in told(**more).next)


def test_a_renewal_waits_for_its_window_and_says_which():
    window = {"days": ["sun"], "start": "02:00", "end": "04:00", "timezone": "Europe/Berlin"}
    [step] = [step for step in told(policy={"maintenance_windows": [window]}).next if "to be renewed" in step.what]
    due = renew_due_at(BORN, END, window_days=30, spread=spread_of("mc-1"))
    sunday = due + (6 - due.weekday()) * DAY
    assert f"the renewal starts with the maintenance window at {sunday:%Y-%m-%d} 01:00 UTC" in step.what


def test_windows_do_not_count_shortly_before_the_end():
    window = {"days": ["sun"], "start": "02:00", "end": "04:00", "timezone": "UTC"}
    soon = {**VERSION, "not_after": text(NOW + DAY)}
    found = told(policy={"maintenance_windows": [window]}, certificate={"expires_at": text(NOW + DAY)}, versions=[soon])
    assert [step.at for step in found.next if "maintenance windows do not count" in step.what] == [None]


def test_the_first_of_all_agents_counts_and_not_what_nobody_serves():
    old = {**VERSION, "agent_id": "ag", "not_after": text(NOW + 40 * DAY)}
    gone = {**VERSION, "agent_id": "gone", "not_after": text(NOW + 20 * DAY)}
    newest = {**VERSION, "agent_id": "other"}
    found = told(versions=[newest, gone, old])
    due = renew_due_at(BORN, NOW + 40 * DAY, window_days=30, spread=spread_of("mc-1"))
    assert [step.at for step in found.next if "to be renewed" in step.what] == [due]


def test_how_far_a_moment_is():
    assert ago(NOW + timedelta(minutes=119), NOW) == "in 119 minutes"
    assert ago(NOW - timedelta(seconds=1), NOW) == "1 second ago"
