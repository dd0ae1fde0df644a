"""Bring about what a plan says, through the API: what refers to something comes after it, the rest at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import groupby

from certctl_sdk.api import Json, Resource
from certctl_sdk.client import ApiError, AsyncClient
from certctl_sdk.declared.known import Known, references
from certctl_sdk.declared.plan import Change, difference, read
from certctl_sdk.declared.text import Fault


@dataclass(frozen=True, slots=True)
class Done:
    """One change that was made."""

    change: Change
    id: str
    notes: tuple[str, ...] = ()
    """What the server says about it, and where it keeps something in another form."""


@dataclass(slots=True)
class Outcome:
    """What came of a plan."""

    done: list[Done] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


async def apply(client: AsyncClient, changes: Iterable[Change], known: Known, tell: Callable[[Done], None]) -> Outcome:
    """Make the changes, in their order; what the server refuses is told, and what refers to it is not tried.

    Every change is one call, and the calls can be cut off anywhere: a new plan has what is left.

    Raises:
        Unreachable: the server went away.
    """
    found = Outcome()
    failed: set[tuple[str, str]] = set()
    for _, several in groupby(changes, lambda each: each.declared.kind.path):
        made = await asyncio.gather(*(_made(client, each, known, failed, tell) for each in several))
        found.done += [each for each in made if isinstance(each, Done)]
        for change, faults in (each for each in made if not isinstance(each, Done)):
            failed.add((change.declared.kind.path, change.id))
            found.faults += faults
    found.faults.sort()
    return found


async def _made(
    client: AsyncClient, change: Change, known: Known, failed: set[tuple[str, str]], tell: Callable[[Done], None]
) -> Done | tuple[Change, list[Fault]]:
    declared = change.declared
    waiting = [
        declared.fault(name, f"was not tried: {path} {id} is not as it should be")
        for name, path, id in references(declared)
        if (path, id) in failed
    ]
    if waiting:
        return change, waiting
    place = Resource[Json, Json, Json, Json](declared.kind.path)
    call = place.create(dict(change.body)) if change.is_new else place.update(change.id, dict(change.body))
    try:
        row = await client.send(call)
    except ApiError as exc:
        return change, refused(change, exc)
    done = Done(change, row["id"], tuple(_notes(change, row, known)))
    tell(done)
    return done


def refused(change: Change, exc: ApiError) -> list[Fault]:
    """Return what the server said, at the lines that it is about."""
    try:
        said = json.loads(exc.body)
        details = [(each["field"], each["message"]) for each in said.get("details", ())]
        details = details or [("", said["message"])]
    except (ValueError, TypeError, KeyError, AttributeError):
        details = [("", str(exc))]
    return [change.declared.fault(name, words) for name, words in details]


def _notes(change: Change, row: Json, known: Known) -> Iterable[str]:
    yield from (f"the connector does not know {each}" for each in row.get("config_warnings", ()))
    if row.get("status") == "incomplete":
        yield "it is incomplete and cannot be used yet"
    wanted, _ = read(change.declared, known, row)
    if left := difference(change.declared, known, row, wanted):
        for each in left.fields:
            yield f"the server keeps {each.field} as {json.dumps(each.old)}; written so, it will not be planned again"
