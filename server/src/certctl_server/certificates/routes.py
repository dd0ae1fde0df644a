"""Certificates over HTTP."""

from dataclasses import replace
from typing import Annotated, Any, Literal, NotRequired, TypeAlias, TypedDict

import msgspec
from certctl_core.certificate import Status
from certctl_core.job import JobState
from litestar import Response, delete, get, post, put
from litestar.params import FromPath

from certctl_server import db
from certctl_server.auth.principal import Req, Where, actor_of
from certctl_server.auth.roles import LISTED, READ, WRITE
from certctl_server.body import ID, Name, Time, changes, new
from certctl_server.certificates.act import Renewal, redeploy, renew
from certctl_server.certificates.create import IMPORT, IMPORTED, Wanted, archive, change, create
from certctl_server.certificates.revoke import REASONS, Revocation, revoke
from certctl_server.certificates.tables import Certificate, CertificateVersion
from certctl_server.connectors.rows import listing
from certctl_server.context import Ctx
from certctl_server.crud import one, read_one
from certctl_server.filters import Filter, any_of, equal, word
from certctl_server.http.answer import Answer
from certctl_server.lists import Key, Row, list_response, listed, tallied
from certctl_server.targets.service import TARGETS
from certctl_server.written import read, written

BASE = "/api/v1/certificates"
ALIASES = {"profile_id": "certificate_profile_id"}
Tags = Annotated[
    dict[
        Annotated[str, msgspec.Meta(min_length=1, max_length=128)],
        Annotated[str, msgspec.Meta(max_length=256)],
    ],
    msgspec.Meta(max_length=64),
]
CommonName = Annotated[str, msgspec.Meta(max_length=253)]
SanText = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
Sans = Annotated[list[SanText], msgspec.Meta(max_length=250)]
Targets = Annotated[list[ID], msgspec.Meta(max_length=1000)]
Environment = Annotated[str, msgspec.Meta(max_length=50)]
CsrPem = Annotated[str, msgspec.Meta(max_length=64 * 1024)]


class CertificateChange(msgspec.Struct):
    """What clients may change."""

    name: Name
    owner_id: ID
    team_id: ID
    issuer_id: ID
    common_name: CommonName = ""
    sans: Sans = msgspec.field(default_factory=list)
    environment: Environment = ""
    renewal_policy_id: ID = "rp-default"
    certificate_profile_id: ID | None = None
    target_ids: Targets = msgspec.field(default_factory=list)
    tags: Tags = msgspec.field(default_factory=dict)


class NewCertificate(msgspec.Struct):
    """What clients may say of a new certificate. Owner, team and issuer are asked for once the names are read."""

    id: ID = ""
    name: Name = ""
    owner_id: ID = ""
    team_id: ID = ""
    issuer_id: ID = ""
    common_name: CommonName = ""
    sans: Sans = msgspec.field(default_factory=list)
    environment: Environment = ""
    renewal_policy_id: ID = "rp-default"
    certificate_profile_id: ID | None = None
    target_ids: Targets = msgspec.field(default_factory=list)
    tags: Tags = msgspec.field(default_factory=dict)
    status: Literal["Pending", "Active"] = "Pending"
    expires_at: Time | None = None
    serial_number: Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[0-9A-Fa-f:]*\Z")] = ""


class RenewBody(msgspec.Struct):
    """How to renew."""

    force: bool = False
    csr_pem: CsrPem = ""


class DeployBody(msgspec.Struct):
    """Where to deploy; empty: everywhere."""

    target_id: ID = ""


Reason: TypeAlias = Literal[tuple(REASONS)]  # type: ignore[valid-type]  # the table of reasons is the type


class RevokeBody(msgspec.Struct):
    """Why it is revoked."""

    reason: Reason = "unspecified"


Deployed = Literal["none", "pending", "deployed", "served", "mismatch", "failed"]
PLAIN = (
    "id", "name", "common_name", "environment", "owner_id", "team_id", "issuer_id", "renewal_policy_id", "status",
    "created_at", "updated_at",
)  # fmt: skip
OPTIONAL = (
    "certificate_profile_id", "last_renewal_at", "last_deployment_at", "revoked_at", "revocation_reason",
    "serial_number", "fingerprint", "key_algorithm", "key_size", "issued_at", "not_before", "revocation_state",
    "last_error",
)  # fmt: skip
NEVER = "0001-01-01T00:00:00Z"
TARGET_IDS = """(SELECT {list:target_id} FROM (
    SELECT target_id FROM certificate_target WHERE certificate_id = item.id ORDER BY position, target_id) places)"""
FURTHER = {
    "sans": "item.sans",
    "tags": "item.tags",
    "target_ids": TARGET_IDS,
    "expires_at": f"coalesce({{moment:item.expires_at}}, '\"{NEVER}\"')",
    "deployment_state": "{quote:item.deployment_state}",
}
SELECT = f"item.id, {written(Certificate, PLAIN, OPTIONAL, FURTHER)} AS object"


def _of_agent(text: str, bound: Any) -> str:
    condition = any_of("t.agent_id", [part.strip() for part in text.split(",")], bound)
    return (
        "item.id IN (SELECT m.certificate_id FROM certificate_target m JOIN target t ON t.id = m.target_id"  # noqa: S608  # bound above
        f" WHERE {condition})"
    )


def _substring(text: str, bound: Any) -> str:
    pattern = bound.add("%" + text.lower().replace("!", "!!").replace("%", "!%").replace("_", "!_") + "%")
    columns = ("item.common_name", "item.sans", "item.name")
    return "(" + " OR ".join(f"lower({column}) LIKE {pattern} ESCAPE '!'" for column in columns) + ")"


FILTERS: dict[str, Filter] = {
    "status": word("item.status", Status),
    **{
        name: equal(f"item.{name}")
        for name in (
            "environment", "owner_id", "team_id", "issuer_id", "certificate_profile_id", "name", "common_name",
        )
    },
    "profile_id": equal("item.certificate_profile_id"),
    "agent_id": _of_agent,
    "q": _substring,
}  # fmt: skip
TALLIES = [
    tallied(f"certificate.{column}", **{name: column})
    for name, column in {
        **{name: name for name in ("status", "environment", "owner_id", "team_id", "issuer_id")},
        "certificate_profile_id": "certificate_profile_id",
        "profile_id": "certificate_profile_id",
    }.items()
]
CERTIFICATES = listed(
    Certificate,
    read,
    (*PLAIN, *OPTIONAL, *FURTHER),
    json=("sans", "tags", "target_ids"),
    keys={"name": Key("item.name", may_be_empty=False)},
    filters=FILTERS,
    select=SELECT,
    tallies=TALLIES,
    name="ManagedCertificate",
    optional=OPTIONAL,
    types={
        "sans": list[str],
        "tags": dict[str, str],
        "target_ids": list[str],
        "expires_at": Time,
        "deployment_state": Deployed,
        "revocation_state": Literal["pending", "confirmed", "failed"],
        "job_id": Annotated[str, msgspec.Meta(description="The order, in the answer that made it.")],
    },
)
VERSION_FIELDS = (
    "id", "certificate_id", "version", "serial_number", "not_before", "not_after", "fingerprint_sha256", "pem_chain",
    "csr_pem", "created_at",
)  # fmt: skip
VERSION_OPTIONAL = ("agent_id", "key_algorithm", "key_size", "revoked_at", "revocation_reason")


def show_version(row: Row) -> Row:
    """Return the JSON object of a version."""
    found = {name: row[name] for name in VERSION_FIELDS}
    return found | {name: row[name] for name in VERSION_OPTIONAL if row[name]}


VERSIONS = listed(
    CertificateVersion,
    show_version,
    (*VERSION_FIELDS, *VERSION_OPTIONAL),
    order="-created_at",
    optional=VERSION_OPTIONAL,
)


class RolloutShown(TypedDict):
    """How far the rollout is that a target is part of."""

    status: str
    held: bool
    """Whether its wave is not there yet."""
    waves: list[int]
    wave: NotRequired[int]
    reason: NotRequired[str]


THERE = db.Sql(
    """
    SELECT m.target_id, m.last_job_id, m.last_deployed_at, m.served_fingerprint, j.status AS last_status, m.state,
        h.wave, r.status AS rollout, r.waves, r.reason, (h.target_id IS NOT NULL) AS rolled
    FROM certificate_target m LEFT JOIN job j ON j.id = m.last_job_id
        LEFT JOIN rollout r ON r.certificate_id = m.certificate_id
        LEFT JOIN rollout_target h ON h.certificate_id = m.certificate_id AND h.target_id = m.target_id
    WHERE m.certificate_id = $1
    """
)
LAST = ("last_job_id", "last_deployed_at", "served_fingerprint", "last_status")
TARGETS_LIST = listing(TARGETS, {})
DEPLOYMENTS = replace(
    TARGETS_LIST,
    name="Deployment",
    fields=TARGETS_LIST.fields | {*LAST, "deployment_state", "rollout"},
    optional=TARGETS_LIST.optional | {*LAST, "rollout"},
    types={
        **TARGETS_LIST.types,
        **dict.fromkeys(("last_job_id", "served_fingerprint"), str),
        "last_deployed_at": Time,
        "last_status": JobState,
        "deployment_state": Deployed,
        "rollout": RolloutShown,
    },
)
MAPPED = "item.id IN (SELECT target_id FROM certificate_target WHERE certificate_id = {})"


class Triggered(TypedDict):
    """The jobs that were begun; the first of them stands by itself as well."""

    job_ids: list[str]
    job_id: NotRequired[str]


class RenewalTriggered(Triggered):
    """The renewals that were begun."""

    status: Literal["renewal_triggered"]


class DeploymentTriggered(Triggered):
    """The deployments that were begun."""

    status: Literal["deployment_triggered"]


class Revoked(TypedDict):
    """It is revoked here, and perhaps at its issuer already."""

    status: Literal["revoked"]
    revocation_state: str


async def _object(id: str, request: Req) -> msgspec.Raw:
    return read(await read_one(SELECT, Certificate, id, request.user, "Certificate"))


@get(BASE, opt={"roles": READ, "query": LISTED, "list": CERTIFICATES})
async def list_(request: Req) -> Response[bytes]:
    """List certificates."""
    return await list_response(request, CERTIFICATES)


@post(BASE, opt={"roles": WRITE, "body": NewCertificate, "answer": CERTIFICATES})
async def create_(request: Req) -> Answer[Row]:
    """Make a certificate and order it."""
    body = await new(request, NewCertificate, aliases=ALIASES)
    given = {name: getattr(body, name) for name in body.__struct_fields__}
    if body.environment == IMPORT:
        given |= {name: given[name] or placeholder for name, placeholder in IMPORTED.items()}
    given |= {"sans": tuple(body.sans), "target_ids": tuple(body.target_ids), "status": Status(body.status)}
    if body.status == "Pending":
        given |= {"expires_at": None, "serial_number": ""}
    id, job_id = await create(Wanted(**given), actor_of(request))
    found: Row = msgspec.json.decode(await _object(id, request))
    return Answer(found | ({"job_id": job_id} if job_id else {}), status_code=201)


@get(BASE + "/{id:str}", opt={"roles": READ, "answer": CERTIFICATES})
async def get_(id: FromPath[str], request: Req) -> msgspec.Raw:
    """Return a certificate."""
    return await _object(id, request)


@put(BASE + "/{id:str}", opt={"roles": WRITE, "change": CertificateChange, "answer": CERTIFICATES})
async def update(id: FromPath[str], request: Req) -> msgspec.Raw:
    """Change what is wanted of a certificate."""
    await one(Certificate, id, request.user, "Certificate")
    await change(id, await changes(request, CertificateChange, aliases=ALIASES), actor_of(request))
    return await _object(id, request)


@delete(BASE + "/{id:str}", opt={"roles": WRITE})
async def delete_(id: FromPath[str], request: Req) -> None:
    """Archive a certificate."""
    await archive(await one(Certificate, id, request.user, "Certificate"), actor_of(request))


@get(BASE + "/{id:str}/versions", opt={"roles": READ, "query": LISTED, "list": VERSIONS})
async def versions(id: FromPath[str], request: Req) -> Response[bytes]:
    """List the versions of a certificate, newest first."""
    await one(Certificate, id, request.user, "Certificate")
    return await list_response(request, VERSIONS, where=Where("item.certificate_id = {}", (id,)))


def _there(row: Row) -> Row:
    """What is on a target, and how far the rollout is that it is part of."""
    found: Row = {"deployment_state": row["state"]}
    found |= {name: row[name] for name in LAST if row[name]}
    if row["rolled"]:
        wave = None if row["wave"] is None else row["wave"] + 1
        found["rollout"] = {"status": row["rollout"], "held": wave is None, "waves": msgspec.Raw(row["waves"].encode())}
        found["rollout"] |= {name: each for name, each in {"wave": wave, "reason": row["reason"]}.items() if each}
    return found


@get(BASE + "/{id:str}/deployments", opt={"roles": READ, "query": LISTED, "list": DEPLOYMENTS})
async def deployments(id: FromPath[str], request: Req, ctx: Ctx) -> Response[bytes]:
    """List the targets of a certificate, with what is there."""
    await one(Certificate, id, request.user, "Certificate")
    there = {row["target_id"]: _there(row) for row in await db.fetch(THERE, id)}
    spec = replace(DEPLOYMENTS, show=lambda row: TARGETS.show(row, ctx.plugins) | there[row["id"]])
    return await list_response(request, spec, where=Where(MAPPED, (id,)))


@post(BASE + "/{id:str}/renew", opt={"roles": WRITE, "body": RenewBody}, status_code=202)
async def renew_(id: FromPath[str], request: Req) -> RenewalTriggered:
    """Renew now."""
    row = await one(Certificate, id, request.user, "Certificate")
    body = await new(request, RenewBody)
    ids = await renew(row, Renewal(body.force, body.csr_pem), actor_of(request))
    found: RenewalTriggered = {"status": "renewal_triggered", "job_ids": ids}
    if ids:
        found["job_id"] = ids[0]
    return found


@post(BASE + "/{id:str}/deploy", opt={"roles": WRITE, "body": DeployBody}, status_code=202)
async def deploy_(id: FromPath[str], request: Req) -> DeploymentTriggered:
    """Deploy the newest version again."""
    row = await one(Certificate, id, request.user, "Certificate")
    body = await new(request, DeployBody)
    ids = await redeploy(row, body.target_id, actor_of(request))
    found: DeploymentTriggered = {"status": "deployment_triggered", "job_ids": ids}
    if ids:
        found["job_id"] = ids[0]
    return found


@post(BASE + "/{id:str}/revoke", opt={"roles": WRITE, "body": RevokeBody}, status_code=200)
async def revoke_(id: FromPath[str], request: Req, ctx: Ctx) -> Revoked:
    """Revoke."""
    await one(Certificate, id, request.user, "Certificate")
    body = await new(request, RevokeBody)
    state = await revoke(id, Revocation(body.reason, ctx.plugins, actor_of(request)))
    return {"status": "revoked", "revocation_state": state}


routes = [
    list_, create_, get_, update, delete_, versions, deployments, renew_, deploy_, revoke_,
]  # fmt: skip
