"""Jobs over HTTP: what is to be done, how far it is, and what people may do about it."""

import json
from dataclasses import replace
from http import HTTPStatus
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec
from certctl_core.job import INTERNAL, JobState, JobType
from certctl_core.x509 import normalise_fingerprint
from litestar import Response, get, post
from litestar.params import FromPath

from certctl_server import db
from certctl_server.agents.proof import Seen, verify
from certctl_server.audit.record import audited
from certctl_server.auth.principal import Req, Where, actor_of, agent_caller, visible
from certctl_server.auth.roles import LISTED, OWN_AGENT, READ, WRITE
from certctl_server.body import ID, Time, new
from certctl_server.bulk import Ids, select
from certctl_server.certificates.orders import approved
from certctl_server.certificates.rollout import release
from certctl_server.certificates.rollout_state import poke
from certctl_server.certificates.status import hold, settle
from certctl_server.certificates.versions import CALLED_OFF
from certctl_server.context import Ctx
from certctl_server.crud import one
from certctl_server.errors import Refused, conflict, invalid
from certctl_server.filters import equal, word
from certctl_server.jobs.priorities import URGENT
from certctl_server.jobs.retry import Retries, facts_of, retry, retry_all
from certctl_server.jobs.state import cancel, move
from certctl_server.jobs.tables import Job
from certctl_server.lists import Row, list_response, listed, tallied

BASE = "/api/v1/jobs"
ONE = BASE + "/{id:str}"
PLAIN = (
    "id", "type", "status", "attempts", "max_attempts", "scheduled_at", "created_at", "verification_status",
    "requested_by",
)  # fmt: skip
OPTIONAL = (
    "target_id", "agent_id", "last_error", "started_at", "completed_at", "verified_at", "verification_error",
    "verification_fingerprint", "next_retry_at", "lease_until", "waits_for",
)  # fmt: skip
Reason = Annotated[str, msgspec.Meta(max_length=1024)]


class ReasonBody(msgspec.Struct):
    """Why."""

    reason: Reason = ""


class BulkRetryBody(msgspec.Struct):
    """Which jobs; selectors narrow each other down."""

    job_ids: Ids = msgspec.field(default_factory=list)
    filter: dict[str, Any] = msgspec.field(default_factory=dict)
    dry_run: bool = False


class VerifyBody(msgspec.Struct):
    """What a handshake showed."""

    target_id: ID
    expected_fingerprint: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    verified: bool
    actual_fingerprint: Annotated[str, msgspec.Meta(max_length=128)] = ""
    error: Annotated[str, msgspec.Meta(max_length=4096)] = ""


def show(row: Row) -> Row:
    """Return the JSON object of a job."""
    found = {name: row[name] for name in PLAIN} | {name: row[name] for name in OPTIONAL if row[name]}
    found["certificate_id"] = row["certificate_id"] or ""
    if row["result"] not in ("", "{}"):
        found["result"] = msgspec.Raw(row["result"].encode())
    return found


JOBS = listed(
    Job,
    show,
    (*PLAIN, *OPTIONAL, "certificate_id", "result"),
    json=("result",),
    filters={
        "status": word("item.status", JobState),
        "type": word("item.type", JobType),
        **{name: equal(f"item.{name}") for name in ("certificate_id", "target_id", "agent_id")},
    },
    order="-created_at",
    optional=(*OPTIONAL, "result"),
    types={
        "certificate_id": str,
        "result": dict[str, Any],
        "verification_status": Literal["pending", "success", "failed", "skipped"],
    },
    unless={"type": Where("item.type NOT IN ({}, {}, {}, {})", tuple(sorted(INTERNAL)))},
    tallies=[tallied("job", type="type", status="status")],
)


class Cancelled(TypedDict):
    """It is called off."""

    status: Literal["job_cancelled"]


class Approved(TypedDict):
    """It goes on."""

    status: Literal["job_approved"]


class Rejected(TypedDict):
    """It does not go on."""

    status: Literal["job_rejected"]


class Retried(TypedDict):
    """It is tried again; ``job_id`` is there if another job does it."""

    status: Literal["job_retried"]
    job_id: NotRequired[str]


class Verified(TypedDict):
    """What the server makes of what the agent saw."""

    job_id: str
    verified: bool
    verified_at: Time


class VerificationResult(TypedDict):
    """What was seen served."""

    job_id: str
    target_id: str
    expected_fingerprint: str
    actual_fingerprint: str
    verified: bool
    verification_status: str
    verified_at: NotRequired[Time]
    error: NotRequired[str]


@get(BASE, opt={"roles": READ, "query": LISTED, "list": JOBS})
async def list_(request: Req) -> Response[bytes]:
    """List jobs, newest first; internal ones only when their type is asked for."""
    return await list_response(request, JOBS)


@get(ONE, opt={"roles": READ, "answer": JOBS})
async def get_(id: FromPath[str], request: Req) -> Row:
    """Return a job."""
    return show(await one(Job, id, request.user, "Job"))


@post(ONE + "/cancel", opt={"roles": WRITE}, status_code=200)
async def cancel_(id: FromPath[str], request: Req) -> Cancelled:
    """Cancel an open job."""
    row = await one(Job, id, request.user, "Job")
    async with db.transaction():
        await hold([row["certificate_id"]] if row["certificate_id"] else [])
        moved = await cancel(Job.id == id, actor=actor_of(request), reason="cancelled by user")
        if not moved:
            raise conflict(f"The job is {row['status']}")
        await db.fetch(CALLED_OFF, json.dumps([id]))
        await _settle(row)
        await poke([row["certificate_id"]] if row["certificate_id"] else [])
    return {"status": "job_cancelled"}


@post(ONE + "/approve", opt={"roles": WRITE, "body": ReasonBody}, status_code=200)
async def approve(id: FromPath[str], request: Req) -> Approved:
    """Let a job that waits for approval go on."""
    row = await one(Job, id, request.user, "Job")
    reason = (await new(request, ReasonBody)).reason
    if request.user.named and row["requested_by"] == request.user.name:
        raise Refused(HTTPStatus.FORBIDDEN, "Nobody may approve what they requested themselves")
    actor, told = actor_of(request), {"reason": reason, "shared_key": not request.user.named}
    async with audited(actor, "job_approved", "job", id, told):
        if not await move(Job.id == id, JobState.AWAITING_APPROVAL, JobState.PENDING, actor=actor):
            raise conflict(f"The job is {row['status']}, not AwaitingApproval")
        await approved(id, actor)
    return {"status": "job_approved"}


@post(ONE + "/reject", opt={"roles": WRITE, "body": ReasonBody}, status_code=200)
async def reject(id: FromPath[str], request: Req) -> Rejected:
    """Refuse a job that waits for approval."""
    row = await one(Job, id, request.user, "Job")
    reason = (await new(request, ReasonBody)).reason
    text = f"rejected: {reason}" if reason else "rejected by user"
    actor = actor_of(request)
    async with audited(actor, "job_rejected", "job", id, {"reason": reason}):
        await hold([row["certificate_id"]] if row["certificate_id"] else [])
        where, states = Job.id == id, (JobState.AWAITING_APPROVAL,)
        if not await cancel(where, actor=actor, reason=text, states=states):
            raise conflict(f"The job is {row['status']}, not AwaitingApproval")
        await _settle(row)
    return {"status": "job_rejected"}


@post(ONE + "/retry", opt={"roles": WRITE}, status_code=200)
async def retry_(id: FromPath[str], request: Req) -> Retried:
    """Try a failed job again now, with all its tries; order anew what was cancelled."""
    row = await one(Job, id, request.user, "Job")
    actor = actor_of(request)
    if row["status"] not in {JobState.CANCELLED, JobState.FAILED}:
        raise conflict(f"The job is {row['status']}")
    async with db.transaction():
        await hold([row["certificate_id"]] if row["certificate_id"] else [])
        if row["status"] == JobState.CANCELLED and row["type"] == JobType.DEPLOYMENT:
            await release(row["certificate_id"], row["target_id"], actor)
        outcome = await retry(await facts_of([id]), actor, priority=URGENT, holders={})
        if id not in outcome.done:
            found = outcome.objections.get(id)
            raise conflict(found.why if found else "The job was moved on by somebody else")
    answer: Retried = {"status": "job_retried"}
    if outcome.done[id] != id:
        answer["job_id"] = outcome.done[id]
    return answer


@post(BASE + "/bulk-retry", opt={"roles": WRITE, "body": BulkRetryBody}, status_code=200)
async def bulk_retry(request: Req) -> Retries:
    """Try all jobs again that are named or match, each by the rules of one."""
    body = await new(request, BulkRetryBody)
    if not body.job_ids and not body.filter:
        raise invalid({"job_ids": "name some, or give a filter"})
    # Named jobs may be internal ones.
    spec = replace(JOBS, unless={}) if body.job_ids else JOBS
    found = select(spec, visible(request.user, Job), body.job_ids, body.filter)
    return await retry_all(found, actor_of(request), dry_run=body.dry_run)


async def _settle(row: Row) -> None:
    if row["certificate_id"]:
        await settle([row["certificate_id"]])


@post(ONE + "/verify", opt={"roles": OWN_AGENT, "body": VerifyBody}, status_code=200)
async def verify_(id: FromPath[str], request: Req, ctx: Ctx) -> Verified:
    """Take what the agent saw served."""
    row = await one(Job, id, request.user, "Job")
    await agent_caller(request.user, row["agent_id"] or "", ctx.settings)
    body = await new(request, VerifyBody)
    expected = _fingerprint("expected_fingerprint", body.expected_fingerprint)
    actual = _fingerprint("actual_fingerprint", body.actual_fingerprint) if body.actual_fingerprint else ""
    seen = Seen(body.target_id, expected, actual, body.verified, body.error)
    good, at = await verify(row, seen, actor_of(request))
    return {"job_id": id, "verified": good, "verified_at": at}


def _fingerprint(field: str, text: str) -> str:
    try:
        return normalise_fingerprint(text)
    except ValueError as exc:
        raise invalid({field: str(exc)}) from exc


@get(ONE + "/verification", opt={"roles": READ})
async def verification(id: FromPath[str], request: Req) -> VerificationResult:
    """Return what was seen served."""
    row = await one(Job, id, request.user, "Job")
    expected = await db.fetch(
        db.Sql("SELECT fingerprint_sha256 FROM certificate_version WHERE id = $1"), row["version_id"] or ""
    )
    found: VerificationResult = {
        "job_id": id,
        "target_id": row["target_id"] or "",
        "expected_fingerprint": expected[0]["fingerprint_sha256"] if expected else "",
        "actual_fingerprint": row["verification_fingerprint"],
        "verified": row["verification_status"] == "success",
        "verification_status": row["verification_status"],
    }
    if row["verified_at"]:
        found["verified_at"] = row["verified_at"]
    if row["verification_error"]:
        found["error"] = row["verification_error"]
    return found


routes: list[Any] = [list_, get_, cancel_, approve, reject, retry_, bulk_retry, verify_, verification]
