"""Bulk actions on certificates over HTTP: of those that are named, or of all that match."""

from typing import Any

import msgspec
from litestar import post

from certctl_server.auth.principal import Req, actor_of, visible
from certctl_server.auth.roles import ADMIN, WRITE
from certctl_server.body import ID, new
from certctl_server.bulk import Ids, select
from certctl_server.certificates.bulk import (
    Asked,
    Reassignments,
    Renewals,
    Revocations,
    reassign_all,
    renew_all,
    revoke_all,
)
from certctl_server.certificates.revoke import Revocation
from certctl_server.certificates.routes import BASE, CERTIFICATES, Reason
from certctl_server.certificates.tables import Certificate
from certctl_server.context import Ctx
from certctl_server.crud import missing_references
from certctl_server.errors import Refused, invalid

SELECTORS = ("profile_id", "owner_id", "agent_id", "issuer_id", "team_id")
NONE = "name some, or give another selector"


class Chosen(msgspec.Struct, kw_only=True):
    """Which certificates; selectors narrow each other down."""

    certificate_ids: Ids = msgspec.field(default_factory=list)
    filter: dict[str, Any] = msgspec.field(default_factory=dict)
    dry_run: bool = False


class BulkRenewBody(Chosen, kw_only=True):
    """Which to renew."""

    profile_id: ID = ""
    owner_id: ID = ""
    agent_id: ID = ""
    issuer_id: ID = ""
    team_id: ID = ""


class BulkRevokeBody(BulkRenewBody, kw_only=True):
    """Which to revoke, and why."""

    reason: Reason


class BulkReassignBody(Chosen, kw_only=True):
    """Which to give away, and to whom; without a team each stays with its own."""

    owner_id: ID
    team_id: ID = ""


def _asked(request: Req, body: Chosen) -> Asked:
    """Raise Refused, 400, unless the body selects something in a way that makes sense."""
    also = {name: value for name in SELECTORS if isinstance(body, BulkRenewBody) and (value := getattr(body, name))}
    if not (body.certificate_ids or body.filter or also):
        raise invalid({"certificate_ids": NONE})
    found = select(CERTIFICATES, visible(request.user, Certificate), body.certificate_ids, body.filter, also)
    return Asked(found, actor_of(request), body.dry_run)


@post(BASE + "/bulk-renew", opt={"roles": WRITE, "body": BulkRenewBody}, status_code=200)
async def bulk_renew(request: Req) -> Renewals:
    """Renew all certificates that are named or match, each by the rules of one."""
    return await renew_all(_asked(request, await new(request, BulkRenewBody)))


@post(BASE + "/bulk-revoke", opt={"roles": ADMIN, "body": BulkRevokeBody}, status_code=200)
async def bulk_revoke(request: Req, ctx: Ctx) -> Revocations:
    """Revoke all certificates that are named or match, each by the rules of one."""
    body = await new(request, BulkRevokeBody)
    return await revoke_all(_asked(request, body), Revocation(body.reason, ctx.plugins, actor_of(request)))


@post(BASE + "/bulk-reassign", opt={"roles": WRITE, "body": BulkReassignBody}, status_code=200)
async def bulk_reassign(request: Req) -> Reassignments:
    """Give all certificates that are named or match to another owner."""
    body = await new(request, BulkReassignBody)
    wanted = {"owner_id": body.owner_id, "team_id": body.team_id}
    faults = await missing_references(Certificate, wanted, request.user)
    try:
        asked = _asked(request, body)
    except Refused as exc:
        raise invalid(faults | exc.faults) from exc
    if faults:
        raise invalid(faults)
    return await reassign_all(asked, **wanted)


routes = [bulk_renew, bulk_revoke, bulk_reassign]
