"""Machines taken together: by what they are, or one by one."""

from __future__ import annotations

import click

from certctl_sdk.cli.resources import Resource, group
from certctl_sdk.cli.session import Session, with_session

PATH = "agent-groups"
MEMBER_COLUMNS = ("id", "name", "hostname", "status", "os", "architecture", "version", "membership_type")

agent_groups = group(
    Resource(
        path=PATH,
        words="Machines taken together.",
        one="group of agents",
        columns=("id", "name", "member_count", "max_concurrent_deployments", "enabled"),
        filters={"enabled": "enabled"},
        options={
            "os": "match_os",
            "architecture": "match_architecture",
            "cidr": "match_ip_cidr",
            "version": "match_version",
            "description": "description",
        },
    )
)


@agent_groups.command("members")
@click.argument("id")
@click.option("--page", type=click.IntRange(min=1))
@click.option("--per-page", type=click.IntRange(min=1, max=500))
@with_session
def members(session: Session, id: str, **paging: int | None) -> None:
    """List the machines that belong to a group now."""
    with session.client() as client:
        session.show_page(client.page(PATH, id, "members", **paging), MEMBER_COLUMNS)


def _say(id: str, agent: str, kind: str, sentence: str, session: Session) -> None:
    with session.client() as client:
        session.say(client.put(PATH, id, "members", agent, body={"membership_type": kind}), sentence)


@agent_groups.command("include")
@click.argument("id")
@click.argument("agent")
@with_session
def include(session: Session, id: str, agent: str) -> None:
    """Put AGENT into the group ID, whatever it is like."""
    _say(id, agent, "include", f"{agent} is in {id}", session)


@agent_groups.command("exclude")
@click.argument("id")
@click.argument("agent")
@with_session
def exclude(session: Session, id: str, agent: str) -> None:
    """Keep AGENT out of the group ID, whatever it is like."""
    _say(id, agent, "exclude", f"{agent} is kept out of {id}", session)


@agent_groups.command("forget")
@click.argument("id")
@click.argument("agent")
@with_session
def forget(session: Session, id: str, agent: str) -> None:
    """Leave it to the criteria of the group ID again whether AGENT belongs."""
    with session.client() as client:
        client.delete(PATH, id, "members", agent)
        session.say({"status": "forgotten"}, f"the criteria of {id} decide about {agent}")
