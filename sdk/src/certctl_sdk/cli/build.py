"""Commands that many resources have alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from certctl_sdk.api import Json, Readable, Rows
from certctl_sdk.cli.session import Session, with_session

PAGING = {
    "page": click.IntRange(min=1),
    "per_page": click.IntRange(min=1, max=500),
}


def _paging() -> list[click.Parameter]:
    return [click.Option([f"--{name.replace('_', '-')}", name], type=kind) for name, kind in PAGING.items()]


def list_command(path: str, columns: Sequence[str], filters: Mapping[str, str], words: str) -> click.Command:
    """Return a command that lists ``path``; ``filters`` are its options with the query parameter of each."""

    @with_session
    def run(session: Session, **given: Any) -> None:
        query = {filters.get(name, name): value for name, value in given.items()}
        with session.client() as client:
            session.show_page(client.send(Rows[Json, Json](path).list(query)), columns)

    options = [
        *filter_options(filters),
        *_paging(),
        click.Option(["--sort"], help="Column to sort by; with - in front, downwards."),
        click.Option(["--fields"], help="Columns to fetch, separated by commas; for --format json."),
    ]
    return click.Command("list", callback=run, params=options, help=words)


def filter_options(filters: Mapping[str, str]) -> list[click.Parameter]:
    """Return the options that narrow a list; ``filters`` are their names with the query parameter of each."""
    return [
        click.Option([f"--{name.replace('_', '-')}", name], help=f"Only with this {parameter.replace('_', ' ')}.")
        for name, parameter in filters.items()
    ]


def get_command(path: str, words: str) -> click.Command:
    """Return a command that shows one object of ``path``."""

    @with_session
    def run(session: Session, id: str) -> None:
        with session.client() as client:
            session.show(client.send(Readable[Json, Json](path).get(id)))

    return click.Command("get", callback=run, params=[click.Argument(["id"])], help=words)


def part_command(path: str, part: str, columns: Sequence[str], words: str) -> click.Command:
    """Return a command that lists ``path``/ID/``part``."""

    @with_session
    def run(session: Session, id: str, **paging: int | None) -> None:
        with session.client() as client:
            session.show_page(client.page(*path.split("/"), id, part, **paging), columns)

    return click.Command(part, callback=run, params=[click.Argument(["id"]), *_paging()], help=words)


def action(path: str, verb: str, words: str, sentence: str) -> click.Command:
    """Return a command that posts to ``path``/ID/``verb``; ``sentence`` has ``{id}`` in it."""

    @with_session
    def run(session: Session, id: str) -> None:
        with session.client() as client:
            session.say(client.post(*path.split("/"), id, verb), sentence.format(id=id))

    return click.Command(verb, callback=run, params=[click.Argument(["id"])], help=words)


def show_action(path: str, verb: str, words: str) -> click.Command:
    """Return a command that posts to ``path``/ID/``verb`` and shows what came of it."""

    @with_session
    def run(session: Session, id: str) -> None:
        with session.client() as client:
            session.show(client.post(*path.split("/"), id, verb))

    return click.Command(verb, callback=run, params=[click.Argument(["id"])], help=words)


def delete_command(path: str, words: str) -> click.Command:
    """Return a command that removes one object of ``path``."""

    @with_session
    def run(session: Session, id: str) -> None:
        with session.client() as client:
            client.delete(*path.split("/"), id)
            session.say({"status": "deleted"}, f"{id} is deleted")

    return click.Command("delete", callback=run, params=[click.Argument(["id"])], help=words)


def counted(found: Mapping[str, Any], verb: str, done: str) -> str:
    """Return what a bulk action came to: ``total_<verb>`` of all that match were ``done``."""
    return (
        f"{found['total_matched']} match: {found[f'total_{verb}']} {done}, {found['total_skipped']} left alone,"
        f" {found['total_failed']} not possible"
    )


def assigned(pairs: Sequence[str]) -> dict[str, Any]:
    """Return what ``key=value`` pairs say; values that are JSON are taken as such, others as text.

    Raises:
        click.UsageError: one has no ``=``.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise click.UsageError(f"--set takes key=value, not {pair!r}")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


def configured(text: str) -> dict[str, Any]:
    """Return the object that ``text`` is in JSON, or the file that ``@path`` names.

    Raises:
        click.UsageError: it is none.
    """
    if not text:
        return {}
    try:
        if text.startswith("@"):
            with open(text[1:], encoding="utf-8") as file:  # noqa: PTH123  # a path that the user typed
                text = file.read()
        found = json.loads(text)
    except (OSError, ValueError) as exc:
        raise click.UsageError(f"--config is no JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise click.UsageError("--config takes a JSON object")
    return found
