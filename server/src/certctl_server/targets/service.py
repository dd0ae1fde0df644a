"""What is particular to targets: their agents, the certificates on them, the commands they name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal, TypedDict

import msgspec

from certctl_server import db
from certctl_server.body import ID, Name
from certctl_server.certificates.mapping import catch_up
from certctl_server.certificates.status import hold, settle
from certctl_server.connectors.config import spellings
from certctl_server.connectors.probe import Check
from certctl_server.connectors.service import Change, Family, Given, assess
from certctl_server.context import Context
from certctl_server.jobs import bell
from certctl_server.jobs.state import cancel
from certctl_server.jobs.tables import Job
from certctl_server.lists import Row
from certctl_server.targets.tables import Target

FRESH = timedelta(minutes=5)
COMMAND_CHARACTERS = 1024
SHELL = re.compile(r"[;|&$`(){}<>\\\"'\r\n\0]")
MAPPED = db.Sql("SELECT certificate_id FROM certificate_target WHERE target_id = $1")
UNMAP = db.Sql("DELETE FROM certificate_target WHERE target_id = $1 RETURNING certificate_id")
# Another machine: nothing is known to be on it.
START_OVER = db.Sql(
    """
    UPDATE certificate_target SET state = 'none', version_id = NULL, served_fingerprint = '', not_before = NULL,
        not_after = NULL, failures = 0, last_job_id = ''
    WHERE target_id = $1
    """
)
# Its agent is waited for from now on (certificates/rollout_state.py): until now it was offered nothing.
REACHABLE = db.Sql(
    """
    UPDATE job SET scheduled_at = {now} WHERE target_id = $1 AND type = 'Deployment' AND status = 'Pending'
        AND scheduled_at < {now}
    """
)
HEARTBEAT = db.Sql("SELECT last_heartbeat_at FROM agent WHERE id = $1")
# Of FRESH, in seconds.
STATUS = """CASE WHEN item.status = 'ready' AND NOT EXISTS (SELECT 1 FROM agent WHERE agent.id = item.agent_id
    AND agent.last_heartbeat_at >= {after:-300}) THEN 'offline' ELSE item.status END"""


class TargetBody(msgspec.Struct):
    """What clients may set. Every target is deployed to by an agent; one without a machine, by a proxy agent."""

    name: Name
    type: Annotated[str, msgspec.Meta(max_length=64)]
    agent_id: ID
    config: dict[str, Any] = msgspec.field(default_factory=dict)
    enabled: bool = True


def _unsafe(given: Given) -> Mapping[str, str]:
    """Agents run argument lists and never a shell, but older ones pass the text on to one."""
    known = {key.casefold(): key for key in spellings(given.model)}
    misspelt = {
        key: f"is spelt {known[key.casefold()]}"
        for key in given.raw
        if known.get(key.casefold(), key) != key and key not in known.values()
    }
    return misspelt | {
        path: f"holds a character that shells act on, or more than {COMMAND_CHARACTERS} characters"
        for path, text in _commands(given.raw, "", inside=False)
        if SHELL.search(text) or len(text) > COMMAND_CHARACTERS
    }


def _commands(value: Any, path: str, *, inside: bool) -> Iterator[tuple[str, str]]:
    """Every text that lies in an option whose name says that it is a command, in any case and at any depth."""
    if isinstance(value, str) and inside:
        yield path, value
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _commands(each, f"{path}[{index}]", inside=inside)
    elif isinstance(value, Mapping):
        for key, each in value.items():
            is_command = inside or key.casefold().endswith("command")
            yield from _commands(each, f"{path}.{key}".lstrip("."), inside=is_command)


async def _written(change: Change) -> None:
    moved, turned = change.changed("agent_id"), change.changed("enabled", "status")
    if moved or turned:
        ids = await _held(change)
        if moved:
            await cancel(Job.target_id == change.id, actor=change.actor, reason="the target moved to another agent")
            await db.fetch(START_OVER, change.id)
        if turned and change.after["enabled"]:
            await db.fetch(REACHABLE, change.id)
        await _follow(change, ids)
    # What was not offered may be now.
    bell.ring_agent(change.after["agent_id"])


async def _removing(change: Change) -> None:
    ids = await _held(change)
    await cancel(Job.target_id == change.id, actor=change.actor, reason="the target was removed")
    await db.fetch(UNMAP, change.id)
    await _follow(change, ids)


async def _held(change: Change) -> list[str]:
    ids = [row["certificate_id"] for row in await db.fetch(MAPPED, change.id)]
    await hold(ids)
    return ids


async def _follow(change: Change, ids: list[str]) -> None:
    """Let the certificates of the target have, and only have, what its agents need now."""
    await catch_up(ids, change.actor)
    await settle(ids, actor=change.actor)


class Tested(TypedDict):
    """Whether a target could be deployed to."""

    status: Literal["success", "failed"]
    message: str
    checks: list[Check]


async def test(ctx: Context, row: Row) -> Tested:
    """Return what can be said of a target from here: whether it could be deployed to now."""
    verdict = assess(TARGETS, ctx, row["type"], json.loads(row["config"]), TARGETS.where(row["id"]))
    wrong = "; ".join(f"{path}: {words}" for path, words in {**verdict.missing, **verdict.faults}.items())
    checks = [_check("configuration", wrong), _check("agent", await _silence(ctx, row))]
    checks += [
        {"name": name, "ok": None, "message": f"not done: {why}", "ms": 0}
        for name, why in {
            "dry_run": "the agent is not asked by this version",
            "tls": "the agent looks at what is served after each deployment",
        }.items()
    ]
    failed = [check for check in checks if check["ok"] is False]
    message = "; ".join(f"{check['name']}: {check['message']}" for check in failed)
    return {
        "status": "failed" if failed else "success",
        "message": message or "the target is configured and its agent is there",
        "checks": checks,
    }


def _check(name: str, fault: str) -> Check:
    return {"name": name, "ok": not fault, "message": fault, "ms": 0}


async def _silence(ctx: Context, row: Row) -> str:
    """Why the agent counts as gone; empty if it does not."""
    found = await db.fetch(HEARTBEAT, row["agent_id"])
    last = found[0]["last_heartbeat_at"] if found else None
    if last is None:
        return f"agent {row['agent_id']} has never reported"
    if ctx.clock() - last > FRESH:
        return f"agent {row['agent_id']} has not reported since {last.isoformat(timespec='seconds')}"
    return ""


TARGETS = Family(
    path="/api/v1/targets",
    table=Target,
    kind="Target",
    object_name="DeploymentTarget",
    prefix="tgt",
    body=TargetBody,
    types=(
        *("NGINX", "Apache", "HAProxy", "F5", "IIS", "Traefik", "Caddy", "Envoy", "Postfix", "Dovecot", "SSH"),
        *("WinCertStore", "JavaKeystore", "KubernetesSecrets", "AWSACM", "AzureKeyVault"),
    ),
    classes=lambda plugins: plugins.targets,
    states=("ready", "incomplete", "offline", "disabled"),
    status=STATUS,
    more=("agent_id",),
    unsafe=_unsafe,
    written=_written,
    removing=_removing,
)
