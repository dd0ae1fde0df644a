"""Have a server as files want it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from certctl_sdk.cli.session import Session, with_session, wrongly_called

if TYPE_CHECKING:
    from certctl_sdk.client import Access
    from certctl_sdk.declared.apply import Done, Outcome
    from certctl_sdk.declared.known import Known
    from certctl_sdk.declared.plan import Change, Plan
    from certctl_sdk.declared.text import Fault

FAULT, CHANGES = 1, 2
"""How a plan ends beside 0, which is that nothing is to be done."""


class Judged(click.Command):
    """Ends with 1 where it is called wrongly: 2 says something of the plan."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """As click does."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as exc:
            wrongly_called(exc, parent)


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--secrets", is_flag=True, help="Count secrets, which the server never shows, as changed."),
        click.option(
            "-f",
            "--file",
            "files",
            required=True,
            multiple=True,
            metavar="FILE",
            help="YAML; a directory of it; - for the input. Several times if need be.",
        ),
    ):
        command = option(command)
    return command


@click.command(cls=Judged)
@_options
@with_session
def plan(session: Session, files: tuple[str, ...], *, secrets: bool) -> None:
    """Show what certctl apply would change.

    It compares the server with what FILE wants of it, and changes nothing. Ends with 0 if nothing would change,
    with 2 if something would, and with 1 if something is wrong.
    """
    found, _ = _planned(session, files, secrets=secrets)
    _show_plan(session, found)
    if found.changes:
        sys.exit(CHANGES)


@click.command(cls=Judged)
@_options
@with_session
def apply(session: Session, files: tuple[str, ...], *, secrets: bool) -> None:
    """Change the server to be as files want it.

    It does what certctl plan shows; what no FILE speaks of stays. Cut off and called again, it does the rest.
    Ends with 0 if all is as the files want it, else with 1.
    """
    found, known = _planned(session, files, secrets=secrets)
    outcome = _applied(session, found, known)
    if session.form == "json":
        _write_json(
            {
                **_counts(found),
                "done": [{**_change(each.change), "id": each.id, "notes": list(each.notes)} for each in outcome.done],
                "faults": [_fault(each) for each in outcome.faults],
            }
        )
    else:
        _show_faults(outcome.faults)
        made = sum(each.change.is_new for each in outcome.done)
        told = f"{made} created, {len(outcome.done) - made} changed, {found.same} as they were"
        click.echo(told if outcome.done or outcome.faults else f"no change: {found.same} as they were")
    if outcome.faults:
        sys.exit(FAULT)


def _planned(session: Session, files: Iterable[str], *, secrets: bool) -> tuple[Plan, Known]:
    """What is to be done; faults of the files end the program."""
    from certctl_sdk.declared.file import read_files  # noqa: PLC0415  # YAML, HTTP: not for those who only want help
    from certctl_sdk.declared.known import ask  # noqa: PLC0415
    from certctl_sdk.declared.patience import PatientClient  # noqa: PLC0415
    from certctl_sdk.declared.plan import plan as planned  # noqa: PLC0415

    found = read_files(files, os.environ)

    async def asked(access: Access) -> Known:
        async with PatientClient(access) as client:
            return await ask(client, found.declared)

    with session.access() as access:
        known = asyncio.run(asked(access))
        plan = planned(found.declared, known, secrets=secrets)
    if faults := sorted([*found.faults, *plan.faults]):
        if session.form == "json":
            _write_json({"faults": [_fault(each) for each in faults]})
        _show_faults(faults)
        sys.exit(FAULT)
    return plan, known


def _applied(session: Session, plan: Plan, known: Known) -> Outcome:
    from certctl_sdk.declared.apply import apply as applied  # noqa: PLC0415
    from certctl_sdk.declared.patience import PatientClient  # noqa: PLC0415

    with session.access() as access, session.progress("applying", len(plan.changes)) as step:

        def tell(done: Done) -> None:
            step()
            if session.form != "json":
                sign = "+" if done.change.is_new else "~"
                click.echo(_inert(f"{sign} {done.change.declared.kind.path} {done.id}"))
                for note in done.notes:
                    click.echo(_inert(f"    note: {note}"))

        async def run() -> Outcome:
            async with PatientClient(access) as client:
                return await applied(client, plan.changes, known, tell)

        return asyncio.run(run())


def _show_plan(session: Session, plan: Plan) -> None:
    if session.form == "json":
        _write_json({**_counts(plan), "changes": [_change(each) for each in plan.changes]})
        return
    for change in plan.changes:
        for line in _lines(change):
            click.echo(_inert(line))
    counts = _counts(plan)
    told = f"{counts['create']} to create, {counts['change']} to change, {counts['same']} as they are"
    click.echo(told if plan.changes else f"no change: {plan.same} as they are")


def _lines(change: Change) -> Iterator[str]:
    yield f"{'+' if change.is_new else '~'} {change.declared.kind.path} {change.label}"
    for each in change.fields:
        there = "" if change.is_new else f"{_value(each.old)} -> "
        yield f"    {each.field}: {there}{_value(each.new)}"
    for name in change.along:
        yield f"    config.{name}: sent along, the server does not show what it has"


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _counts(plan: Plan) -> dict[str, int]:
    made = sum(each.is_new for each in plan.changes)
    return {"create": made, "change": len(plan.changes) - made, "same": plan.same}


def _change(change: Change) -> dict[str, Any]:
    declared = change.declared
    return {
        "action": "create" if change.is_new else "change",
        "kind": declared.kind.path,
        "id": change.id,
        "name": declared.name,
        "file": declared.file,
        "line": declared.line,
        "fields": [{"field": each.field, "old": each.old, "new": each.new} for each in change.fields],
        "sent_along": [f"config.{name}" for name in change.along],
    }


def _fault(fault: Fault) -> dict[str, Any]:
    return {"file": fault.file, "line": fault.line, "field": fault.field, "message": fault.message}


def _show_faults(faults: Iterable[Fault]) -> None:
    for each in faults:
        click.echo(_inert(f"error: {each}"), err=True)


def _write_json(found: Mapping[str, Any]) -> None:
    from certctl_sdk.cli.output import write_json  # noqa: PLC0415

    write_json(found)


def _inert(text: str) -> str:
    from certctl_sdk.cli.output import inert  # noqa: PLC0415

    return inert(text)
