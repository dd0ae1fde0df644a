"""Jobs over HTTP: what is to be done, how far it is, and what people may do about it."""

import json
from dataclasses import replace
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from certctl_core.job import ORDERS, JobState, JobType
from certctl_core.x509 import normalise_fingerprint
from litestar import Response, get, post
from litestar.params import FromPath

from certctl_server import db
from certctl_server.agents.proof import Seen, verify
from certctl_server.audit.record import Actor
from certctl_server.auth.principal import Req, Where, actor_of, agent_caller
from certctl_server.auth.roles import LISTED, OWN_AGENT, READ, WRITE
from certctl_server.body import ID, new
from certctl_server.certificates.orders import Order, approved, order
from certctl_server.certificates.status import hold, settle
from certctl_server.certificates.versions import CALLED_OFF, deploy, fitting
from certctl_server.context import Ctx
from certctl_server.crud import one
from certctl_server.errors import Refused, conflict, invalid
from certctl_server.filters import equal, word
from certctl_server.jobs import bell
from certctl_server.jobs.create import deployment_place, order_place
from certctl_server.jobs.state import cancel, move, requeue
from certctl_server.jobs.tables import Job
from certctl_server.lists import Row, list_response, listed

BASE = "/api/v1/jobs"
ONE = BASE + "/{id:str}"
INTERNAL = (JobType.REVOCATION, JobType.SCAN, JobType.NOTIFICATION, JobType.CRL_BUILD)
PLAIN = (
    "id", "type", "status", "attempts", "max_attempts", "scheduled_at", "created_at", "verification_status",
    "requested_by",
)  # fmt: skip
OPTIONAL = (
    "target_id", "agent_id", "last_error", "started_at", "completed_at", "verified_at", "verification_error",
    "verification_fingerprint", "next_retry_at", "lease_until",
)  # fmt: skip
TAKEN = db.Sql("SELECT id FROM job WHERE place = $1 AND id <> $2")
ABOUT = db.Sql(
    """
    SELECT c.archived_at, c.revoked_at, v.revoked_at AS gone_at, v.not_after
    FROM certificate c LEFT JOIN certificate_version v ON v.id = $2 WHERE c.id = $1
    """
)
Reason = Annotated[str, msgspec.Meta(max_length=1024)]


class ReasonBody(msgspec.Struct):
    """Why."""

    reason: Reason = ""


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
    unless={"type": Where("item.type NOT IN ({}, {}, {}, {})", tuple(map(str, INTERNAL)))},
)


@get(BASE, opt={"roles": READ, "query": LISTED})
async def list_(request: Req) -> Response[bytes]:
    """List jobs, newest first; internal ones only when their type is asked for."""
    return await list_response(request, JOBS)


@get(ONE, opt={"roles": READ})
async def get_(id: FromPath[str], request: Req) -> Row:
    """Return a job."""
    return show(await one(Job, id, request.user, "Job"))


@post(ONE + "/cancel", opt={"roles": WRITE}, status_code=200)
async def cancel_(id: FromPath[str], request: Req) -> Row:
    """Cancel an open job."""
    row = await one(Job, id, request.user, "Job")
    async with db.transaction():
        await hold([row["certificate_id"]] if row["certificate_id"] else [])
        moved = await cancel(Job.id == id, actor=actor_of(request), reason="cancelled by user")
        if not moved:
            raise conflict(f"The job is {row['status']}")
        await db.fetch(CALLED_OFF, json.dumps([id]))
        await _settle(row)
    return {"status": "job_cancelled"}


@post(ONE + "/approve", opt={"roles": WRITE}, status_code=200)
async def approve(id: FromPath[str], request: Req) -> Row:
    """Let a job that waits for approval go on."""
    row = await one(Job, id, request.user, "Job")
    reason = (await new(request, ReasonBody)).reason
    if request.user.named and row["requested_by"] == request.user.name:
        raise Refused(HTTPStatus.FORBIDDEN, "Nobody may approve what they requested themselves")
    actor, note = actor_of(request), {"reason": reason, "shared_key": not request.user.named}
    async with db.transaction():
        if not await move(Job.id == id, JobState.AWAITING_APPROVAL, JobState.PENDING, actor=actor, note=note):
            raise conflict(f"The job is {row['status']}, not AwaitingApproval")
        await approved(id, actor)
    return {"status": "job_approved"}


@post(ONE + "/reject", opt={"roles": WRITE}, status_code=200)
async def reject(id: FromPath[str], request: Req) -> Row:
    """Refuse a job that waits for approval."""
    row = await one(Job, id, request.user, "Job")
    reason = (await new(request, ReasonBody)).reason
    text = f"rejected: {reason}" if reason else "rejected by user"
    async with db.transaction():
        await hold([row["certificate_id"]] if row["certificate_id"] else [])
        where, states = Job.id == id, (JobState.AWAITING_APPROVAL,)
        if not await cancel(where, actor=actor_of(request), reason=text, states=states):
            raise conflict(f"The job is {row['status']}, not AwaitingApproval")
        await _settle(row)
    return {"status": "job_rejected"}


@post(ONE + "/retry", opt={"roles": WRITE}, status_code=200)
async def retry(id: FromPath[str], request: Req) -> Row:
    """Try a failed job again now, with all its tries; order anew what was cancelled."""
    row = await one(Job, id, request.user, "Job")
    actor = actor_of(request)
    if row["status"] not in {JobState.CANCELLED, JobState.FAILED}:
        raise conflict(f"The job is {row['status']}")
    async with db.transaction():
        await _worth_retrying(row)
        if row["status"] == JobState.CANCELLED:
            return {"status": "job_retried", "job_id": await _anew(row, actor)}
        moved = await requeue(Job.id == id, actor=actor, attempts=0, failures=0, crashes=0, place=_place(row))
        if not moved:
            raise conflict("The job was moved on by somebody else")
        await _settle(row)
        if row["agent_id"]:
            bell.ring_agent(row["agent_id"])
        if row["lane"]:
            bell.ring(row["lane"])
    return {"status": "job_retried"}


async def _worth_retrying(row: Row) -> None:
    """Refuse to revive what could not succeed, or what another job already does."""
    await hold([row["certificate_id"]] if row["certificate_id"] else [])
    if await db.fetch(TAKEN, _place(row), row["id"]):
        raise conflict("Another open job of that certificate has its place")
    for about in await db.fetch(ABOUT, row["certificate_id"] or "", row["version_id"] or ""):
        if about["archived_at"]:
            raise conflict("The certificate is archived")
        if row["type"] in ORDERS and about["revoked_at"] and not json.loads(row["request"]).get("force"):
            raise conflict("The certificate is revoked: renew it with force")
        if row["type"] == JobType.DEPLOYMENT and (about["gone_at"] or about["not_after"] <= db.now()):
            raise conflict("The version is revoked or has expired")


async def _anew(row: Row, actor: Actor) -> str:
    """Make a job like one that was cancelled; return its id."""
    made = []
    if row["type"] in ORDERS:
        force, csr = json.loads(row["request"]).get("force", False), row["csr_pem"]
        asked = Order(type=JobType(row["type"]), force=force, agent_id=row["agent_id"] or "")
        if csr and not row["agent_id"]:
            asked = replace(asked, csr_pem=csr, csr_sha256=row["csr_sha256"])
        made = await order([row["certificate_id"]], asked, actor)
    elif row["type"] == JobType.DEPLOYMENT:
        there = {each["target_id"]: each for each in await fitting([row["certificate_id"]])}
        fits = there.get(row["target_id"])
        made = await deploy([fits] if fits and fits["version_id"] == row["version_id"] else [], actor=actor)
    if not made:
        raise conflict("What the job was for has changed since: agent, version or order")
    await _settle(row)
    return made[0].id


def _place(row: Row) -> str:
    if row["type"] == JobType.DEPLOYMENT:
        return deployment_place(row["version_id"], row["target_id"])
    return order_place(row["certificate_id"], row["agent_id"]) if row["type"] in ORDERS else f"retried|{row['id']}"


async def _settle(row: Row) -> None:
    if row["certificate_id"]:
        await settle([row["certificate_id"]])


@post(ONE + "/verify", opt={"roles": OWN_AGENT}, status_code=200)
async def verify_(id: FromPath[str], request: Req, ctx: Ctx) -> Row:
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
async def verification(id: FromPath[str], request: Req) -> Row:
    """Return what was seen served."""
    row = await one(Job, id, request.user, "Job")
    expected = await db.fetch(
        db.Sql("SELECT fingerprint_sha256 FROM certificate_version WHERE id = $1"), row["version_id"] or ""
    )
    found: dict[str, Any] = {
        "job_id": id,
        "target_id": row["target_id"] or "",
        "expected_fingerprint": expected[0]["fingerprint_sha256"] if expected else "",
        "actual_fingerprint": row["verification_fingerprint"],
        "verified": row["verification_status"] == "success",
        "verification_status": row["verification_status"],
    }
    found |= {"verified_at": row["verified_at"]} if row["verified_at"] else {}
    return found | ({"error": row["verification_error"]} if row["verification_error"] else {})


routes: list[Any] = [list_, get_, cancel_, approve, reject, retry, verify_, verification]
