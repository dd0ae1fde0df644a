"""Machines taken together: by what they are, or one by one."""

from __future__ import annotations

from typing import Literal

import click

from certctl_sdk.api import agent_groups as api
from certctl_sdk.cli.build import part_command
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


agent_groups.add_command(part_command(PATH, "members", MEMBER_COLUMNS, "List the machines that belong to a group now."))


def _membership(name: Literal["include", "exclude"], words: str, sentence: str) -> click.Command:
    @with_session
    def run(session: Session, id: str, agent: str) -> None:
        with session.client() as client:
            found = client.send(api.put_member(id, agent, {"membership_type": name}))
            session.say(found, sentence.format(agent=agent, id=id))

    return click.Command(name, callback=run, params=[click.Argument(["id"]), click.Argument(["agent"])], help=words)


for command in (
    _membership("include", "Put AGENT into the group ID, whatever it is like.", "{agent} is in {id}"),
    _membership("exclude", "Keep AGENT out of the group ID, whatever it is like.", "{agent} is kept out of {id}"),
):
    agent_groups.add_command(command)


@agent_groups.command("forget")
@click.argument("id")
@click.argument("agent")
@with_session
def forget(session: Session, id: str, agent: str) -> None:
    """Leave it to the criteria of the group ID again whether AGENT belongs."""
    with session.client() as client:
        client.send(api.forget_member(id, agent))
        session.say({"status": "forgotten"}, f"the criteria of {id} decide about {agent}")
