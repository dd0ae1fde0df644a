"""Resources that are listed, shown and created all in one way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from certctl_sdk import api
from certctl_sdk.cli.build import assigned, configured, delete_command, get_command, list_command, show_action
from certctl_sdk.cli.session import Session, with_session

if TYPE_CHECKING:
    from certctl_sdk.client import Client


@dataclass(frozen=True, slots=True)
class Resource:
    """What is particular about one."""

    path: str
    words: str
    one: str
    columns: Sequence[str]
    filters: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    """Options of ``create`` with the key of the body that each sets."""
    required: Sequence[str] = ()
    lists: Mapping[str, str] = field(default_factory=dict)
    """As ``options``, of those that may be given several times."""
    has_config: bool = False
    """``--set`` and ``--config`` fill the key ``config``, not the body itself."""
    has_agent: bool = False
    has_test: bool = False


FURTHER: tuple[click.Parameter, ...] = (
    click.Option(
        ["--set", "pairs"], multiple=True, metavar="KEY=VALUE", help="A further key; several times if need be."
    ),
    click.Option(["--config"], default="", metavar="JSON", help="Further keys as a JSON object, or @file."),
)


def group(resource: Resource) -> click.Group:
    """Return the commands of one resource."""
    found = click.Group(resource.path, help=resource.words)
    found.add_command(list_command(resource.path, resource.columns, resource.filters, f"List {resource.words.lower()}"))
    found.add_command(get_command(resource.path, f"Show one {resource.one}."))
    found.add_command(_create(resource))
    found.add_command(_update(resource))
    found.add_command(delete_command(resource.path, f"Delete a {resource.one} that nothing refers to."))
    if resource.has_test:
        words = f"Try whether a {resource.one} works, as far as that changes nothing."
        found.add_command(show_action(resource.path, "test", words))
    return found


def _create(resource: Resource) -> click.Command:
    @with_session
    def run(session: Session, id: str, pairs: Sequence[str], config: str, **given: Any) -> None:
        more = {**configured(config), **assigned(pairs)}
        body: dict[str, Any] = {"id": id, "name": given.pop("name", None) or id}
        body |= _named(resource, given)
        body |= {"config": more} if resource.has_config else more
        with session.client() as client:
            if resource.has_agent and "agent_id" not in body:
                body["agent_id"] = only_agent(client)
            session.show(client.send(api.Resource[api.Json, api.Json, api.Json, api.Json](resource.path).create(body)))

    params: list[click.Parameter] = [
        click.Argument(["id"]),
        click.Option(["--name"], help="A name for people.  [default: the id]"),
        *(
            click.Option([f"--{name}"], required=name in resource.required, help=f"Sets {key}.")
            for name, key in resource.options.items()
        ),
        *_listed(resource),
        *FURTHER,
    ]
    return click.Command("create", callback=run, params=params, help=f"Create a {resource.one} called ID.")


def _update(resource: Resource) -> click.Command:
    @with_session
    def run(session: Session, id: str, pairs: Sequence[str], config: str, **given: Any) -> None:
        more = {**configured(config), **assigned(pairs)}
        body = _named(resource, given)
        if more:
            body |= {"config": more} if resource.has_config else more
        if not body:
            raise click.UsageError("say what is to be different")
        with session.client() as client:
            session.show(client.put(*resource.path.split("/"), id, body=body))

    params: list[click.Parameter] = [
        click.Argument(["id"]),
        click.Option(["--name"], help="A name for people."),
        click.Option(["--enabled"], type=click.BOOL, help="Whether it is in force."),
        *(click.Option([f"--{name}"], help=f"Sets {key}.") for name, key in resource.options.items()),
        *_listed(resource),
        *FURTHER,
    ]
    return click.Command(
        "update", callback=run, params=params, help=f"Change a {resource.one}: what is given, and nothing else."
    )


def _listed(resource: Resource) -> list[click.Parameter]:
    return [
        click.Option([f"--{name}"], multiple=True, help=f"Adds to {key}; several times if need be.")
        for name, key in resource.lists.items()
    ]


def _named(resource: Resource, given: Mapping[str, Any]) -> dict[str, Any]:
    """What options say, by the keys of the body; those that are not given say nothing."""
    names = {**resource.options, **resource.lists}
    return {
        names.get(name, name): list(value) if isinstance(value, tuple) else value
        for name, value in given.items()
        if value not in (None, ())
    }


def only_agent(client: Client) -> str:
    """Return the id of the one agent there is.

    Raises:
        click.UsageError: there is none, or more than one.
    """
    page = client.send(api.agents.list({"per_page": 2}))
    if page.total != 1:
        raise click.UsageError(f"there are {page.total} agents: say which with --agent")
    return page.data[0]["id"]


CONFIGURED = {"type": "type", "status": "status", "enabled": "enabled"}
issuers = group(
    Resource(
        path="issuers",
        words="CAs that sign.",
        one="CA",
        columns=("id", "name", "type", "status", "enabled"),
        filters=CONFIGURED,
        options={"type": "type"},
        required=("type",),
        has_config=True,
        has_test=True,
    )
)
targets = group(
    Resource(
        path="targets",
        words="Where certificates are deployed to.",
        one="target",
        columns=("id", "name", "type", "agent_id", "status"),
        filters={**CONFIGURED, "agent": "agent_id"},
        options={"type": "type", "agent": "agent_id"},
        required=("type",),
        has_config=True,
        has_agent=True,
        has_test=True,
    )
)
notifiers = group(
    Resource(
        path="notifiers",
        words="Channels to people.",
        one="channel",
        columns=("id", "name", "type", "status", "enabled", "events"),
        filters=CONFIGURED,
        options={"type": "type"},
        required=("type",),
        lists={"event": "events"},
        has_config=True,
        has_test=True,
    )
)
teams = group(
    Resource(
        path="teams",
        words="Who certificates belong to.",
        one="team",
        columns=("id", "name", "email", "description"),
        options={"email": "email", "description": "description"},
    )
)
owners = group(
    Resource(
        path="owners",
        words="Who is told about a certificate.",
        one="owner",
        columns=("id", "name", "email", "team_id"),
        filters={"team": "team_id"},
        options={"team": "team_id", "email": "email"},
        required=("team",),
    )
)
profiles = group(
    Resource(
        path="profiles",
        words="What certificates may be.",
        one="profile",
        columns=("id", "name", "max_ttl_seconds", "allowed_ekus", "enabled"),
        filters={"enabled": "enabled"},
        options={"description": "description"},
    )
)
renewal_policies = group(
    Resource(
        path="renewal-policies",
        words="When certificates are renewed.",
        one="renewal policy",
        columns=("id", "name", "renewal_window_days", "auto_renew", "alert_thresholds_days"),
    )
)
