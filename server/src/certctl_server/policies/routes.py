"""Policies over HTTP: the rules, and the certificates that break one."""

from typing import Any

import msgspec
from certctl_core.policy import RuleType, Severity
from litestar import Response, get
from litestar.params import FromPath

from certctl_server.auth.principal import Req, Where
from certctl_server.auth.roles import LISTED, READ
from certctl_server.body import Name
from certctl_server.context import Context
from certctl_server.crud import Crud, crud_routes
from certctl_server.filters import equal, flag, word
from certctl_server.jobs import bell
from certctl_server.lists import Row, list_response, listed
from certctl_server.policies.rules import check_rule
from certctl_server.policies.sweep import LOOP
from certctl_server.policies.tables import PolicyRule, PolicyViolation

BASE = "/api/v1/policies"
PLAIN = ("id", "certificate_id", "rule_id", "message", "severity", "created_at")


class RuleBody(msgspec.Struct):
    """What clients may set."""

    name: Name
    type: RuleType
    config: dict[str, Any] = msgspec.field(default_factory=dict)
    severity: Severity = Severity.WARNING
    enabled: bool = True


async def _changed(_: Context, __: str) -> None:
    """Hold every certificate against the rule soon."""
    bell.poke(LOOP)


POLICIES = Crud(
    BASE,
    PolicyRule,
    RuleBody,
    "pr",
    "Policy",
    audit_name="policy",
    filters={
        "type": word("item.type", RuleType),
        "enabled": flag("item.enabled"),
        "severity": word("item.severity", Severity),
    },
    json=frozenset({"config"}),
    check=check_rule,
    changed=_changed,
)


def _show(row: Row) -> Row:
    found = {name: row[name] for name in PLAIN}
    return found | ({"resolved_at": row["resolved_at"]} if row["resolved_at"] else {})


VIOLATIONS = listed(
    PolicyViolation,
    _show,
    (*PLAIN, "resolved_at"),
    optional=("resolved_at",),
    filters={
        "certificate_id": equal("item.certificate_id"),
        "severity": word("item.severity", Severity),
        "resolved": flag("(item.resolved_at IS NOT NULL)"),
    },
)


@get(BASE + "/{id:str}/violations", opt={"roles": READ, "query": LISTED, "list": VIOLATIONS})
async def violations(id: FromPath[str], request: Req) -> Response[bytes]:
    """List what breaks a rule, and what did."""
    await POLICIES.one(id, request.user)
    return await list_response(request, VIOLATIONS, where=Where("item.rule_id = {}", (id,)))


routes: list[Any] = [crud_routes(POLICIES), violations]
