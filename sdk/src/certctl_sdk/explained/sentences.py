"""From a story to sentences: what is so, why, and what comes next. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from certctl_core.renewal import alert_at, expiring_at, renew_due_at, spread_of
from certctl_core.windows import start_at, windows_of

from certctl_sdk.api import Json
from certctl_sdk.explained.story import Story, is_open, is_order, moment

AGAIN = timedelta(hours=24)
"""After an order that failed for good a fresh one is made so much later."""
TYPICAL_LIFE = timedelta(days=90)
"""What a certificate that was made elsewhere is taken to have lived, if only its end is known."""


@dataclass(frozen=True, slots=True)
class Step:
    """Something that comes."""

    at: datetime | None
    """None: now, or nobody can say when."""
    what: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is to be said of a certificate."""

    why: tuple[str, ...]
    next: tuple[Step, ...]
    """In order; those without a time first."""


def explain(story: Story) -> Explanation:
    """Return what there is to say."""
    why = [*_state(story), *_orders(story), *_places(story), *_hindrances(story)]
    steps = [*_waiting(story), *_renewal(story), *_clock(story)]
    steps.sort(key=lambda step: (step.at is not None, step.at or story.now))
    return Explanation(tuple(why), tuple(steps))


def _state(story: Story) -> Iterator[str]:
    row, end = story.certificate, moment(story.certificate["expires_at"])
    left = f"valid until {_when(end, story.now)}" if end else "without a known end"
    match row["status"]:
        case "Pending" if not story.versions:
            yield "It is Pending: no certificate has been issued for it yet."
        case "Pending" | "RenewalInProgress":
            has = f"the one that is there is {left}" if end else "there is none yet"
            yield f"It is {row['status']}: a certificate is being made or put in place; {has}."
        case "Active":
            yield f"It is Active: {left}."
        case "Expiring":
            yield f"It is Expiring: {left}, which is less than 30 days, or than a third of its life."
        case "Expired":
            yield f"It is Expired: its life ended {_when(end, story.now)}."
        case "Failed":
            yield f"It is Failed: what was tried last did not succeed; what is there is {left}."
        case "Revoked":
            said = f"It was revoked {_when(moment(row.get('revoked_at')), story.now)}"
            yield f"{said}: {row.get('revocation_reason', 'unspecified')}; {_told_ca(row)}."
        case status:
            yield f"It is {status}: it was put away, and nothing is done for it any more."


def _told_ca(row: Json) -> str:
    told = {"confirmed": "the CA confirmed it", "failed": "the CA could not be told", "pending": "the CA is being told"}
    return told.get(row.get("revocation_state", ""), "nothing is known of the CA")


def _orders(story: Story) -> Iterator[str]:
    last = story.last_order()
    if last is None:
        return
    if last["status"] == "Failed" and not is_open(last):
        yield f"{_named(last)} failed for good after {last['attempts']} attempts: {last.get('last_error', '')}"
    elif last["status"] == "Completed" and (done := moment(last.get("completed_at"))):
        yield f"{_named(last)} succeeded {_when(done, story.now)}."


def _places(story: Story) -> Iterator[str]:
    if not story.deployments and story.certificate["status"] != "Archived":
        yield "It has no target, so nothing is deployed."
    said = {
        "served": "serves it, seen in a handshake",
        "deployed": "has it; whether it is served could not be seen",
        "pending": "does not have the newest version yet",
        "mismatch": "has it, and something else was seen in a handshake",
        "failed": "does not have it: the deployment failed",
        "none": "has nothing of it",
    }
    for each in story.deployments:
        line = f"Target {each['id']} {said.get(each['deployment_state'], each['deployment_state'])}"
        rollout = each.get("rollout") or {}
        if rollout.get("held"):
            line += f"; its wave of the rollout ({rollout.get('status')}) is not there yet"
        if rollout.get("reason"):
            line += f"; the rollout was halted: {rollout['reason']}"
        yield line + ("." if each["enabled"] else "; the target is disabled.")


def _hindrances(story: Story) -> Iterator[str]:
    if story.issuer["status"] != "ready":
        yield f"Its CA {story.issuer['id']} is {story.issuer['status']}."
    for agent in story.agents.values():
        if agent["status"] != "Online":
            seen = moment(agent.get("last_heartbeat_at"))
            yield f"Agent {agent['id']} is {agent['status']}; it was last heard of {_when(seen, story.now)}."
    forbids = {"Error": ", which forbids to issue and to renew", "Critical": ", which forbids all but to revoke"}
    for rule, breach in story.violations:
        effect = "" if rule["type"] == "RenewalLeadTime" else forbids.get(breach["severity"], "")
        yield f"It breaks the policy {rule['id']} ({breach['severity']}{effect}): {breach['message']}"
    if error := story.certificate.get("last_error"):
        yield f"What went wrong last: {error}"


def _waiting(story: Story) -> Iterator[Step]:
    for job in story.open_jobs:
        later = moment(job.get("next_retry_at")) or moment(job["scheduled_at"])
        at = later if later and later > story.now else None
        yield Step(at, f"{_named(job)} {_why_open(job, story, later=at is not None)}")


def _why_open(job: Json, story: Story, *, later: bool) -> str:
    agent = story.agents.get(job.get("agent_id", ""))
    who = f"agent {agent['id']} ({agent['status']})" if agent else ""
    deploys = job["type"] == "Deployment"
    match job["status"]:
        case "AwaitingApproval":
            said = f"waits for a person: certctl jobs approve {job['id']}, or reject."
        case "AwaitingCSR" if who:
            said = f"waits for {who} to make a key and send a CSR."
        case "AwaitingCSR":
            said = "waits for a CSR, and no agent is to make one: give it a target, or renew it with a CSR of your own."
        case "Running":
            said = f"is being done by {who}." if deploys else "is being done."
        case "Failed":
            said = f"is tried again; attempt {job['attempts']} failed: {job.get('last_error', '')}"
        case _ if job.get("waits_for"):
            said = f"waits for room at its CA ({job['waits_for']})."
        case _ if later:
            said = "waits for a maintenance window, or for room at its CA."
        case _:
            said = f"waits for {who} to fetch it." if deploys else f"waits for its turn at {story.issuer['id']}."
    return said


def _renewal(story: Story) -> Iterator[Step]:
    policy, row = story.policy, story.certificate
    why_not = _barred(story)
    if why_not:
        yield Step(None, f"It is not renewed by itself: {why_not}.")
        return
    if any(is_order(job) for job in story.open_jobs):
        return
    due = _due(story)
    if due is None:
        return
    start = start_at(
        windows_of(policy.get("maintenance_windows", ())), max(due, story.now), expires_at=moment(row["expires_at"])
    )
    words = f"It is to be renewed, as policy {policy['id']} has it"
    if start.overrides:
        words += "; it expires so soon that maintenance windows do not count"
    elif start.opens_at and start.opens_at > max(due, story.now):
        words += f"; the renewal starts with the maintenance window at {start.opens_at:%Y-%m-%d %H:%M} UTC"
    yield Step(due if due > story.now else None, f"{words}.")


def _barred(story: Story) -> str:
    row = story.certificate
    if row["status"] in {"Revoked", "Archived"}:
        return f"it is {row['status']}"
    if not story.policy["auto_renew"]:
        return f"policy {story.policy['id']} leaves that to people (certctl certs renew {row['id']})"
    return "" if story.issuer["enabled"] else f"its CA {story.issuer['id']} is disabled"


def _due(story: Story) -> datetime | None:
    """As the server reckons: the first of all lives that count, and a day after an order that failed for good."""
    id, window_days = story.certificate["id"], story.policy["renewal_window_days"]
    moments = [renew_due_at(start, end, window_days=window_days, spread=spread_of(id)) for start, end in _lives(story)]
    last, due = story.last_order(), min(moments, default=None)
    if last and last["status"] == "Failed" and (ended := moment(last.get("completed_at"))):
        fresh = ended + AGAIN
        return max(fresh, due) if due else fresh
    return due


def _lives(story: Story) -> Iterator[tuple[datetime, datetime]]:
    """The newest version of each agent that serves, and the newest of all; else of what was made elsewhere."""
    serving = {each["agent_id"] for each in story.deployments if each["enabled"]}
    seen: set[str] = set()
    for number, version in enumerate(story.versions):
        agent = version.get("agent_id", "")
        counts = number == 0 or agent in serving
        if agent not in seen and counts and not version.get("revoked_at"):
            start, end = moment(version["not_before"]), moment(version["not_after"])
            if start and end:
                yield start, end
        seen.add(agent)
    end = moment(story.certificate["expires_at"])
    if not story.versions and end:
        yield moment(story.certificate.get("not_before")) or end - TYPICAL_LIFE, end


def _clock(story: Story) -> Iterator[Step]:
    row, lives = story.certificate, list(_lives(story))
    if row["status"] in {"Revoked", "Archived"} or not lives:
        return
    start, end = min(lives, key=lambda life: life[1])
    alerts = [alert_at(start, end, days) for days in story.policy["alert_thresholds_days"]]
    if coming := min((at for at in alerts if at > story.now), default=None):
        yield Step(coming, "People are told that it expires, unless it is renewed by then.")
    if row["status"] == "Active" and (at := expiring_at(start, end)) > story.now:
        yield Step(at, "It is shown as Expiring, unless it is renewed by then.")
    if end > story.now:
        yield Step(end, "It expires, unless it is renewed by then.")


def _named(job: Json) -> str:
    where = f" to {job['target_id']}" if job.get("target_id") else ""
    return f"{job['type']} {job['id']}{where}"


def _when(at: datetime | None, now: datetime) -> str:
    return "at a time that is not known" if at is None else f"{at:%Y-%m-%d %H:%M} UTC ({ago(at, now)})"


def ago(at: datetime, now: datetime) -> str:
    """Return how far a moment is from now, for people."""
    seconds = abs((at - now).total_seconds())
    for name, size in (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)):
        if seconds >= 2 * size or size == 1:
            count = int(seconds // size)
            span = f"{count} {name}{'' if count == 1 else 's'}"
            return f"in {span}" if at > now else f"{span} ago"
    raise AssertionError
