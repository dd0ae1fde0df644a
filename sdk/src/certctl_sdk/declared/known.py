"""What a server has and what it takes, as far as some files are about it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from certctl_sdk.api import Call, Json, Readable, Rows, connectors
from certctl_sdk.client import MOST_PER_PAGE, ApiError, AsyncClient
from certctl_sdk.declared.file import Declared
from certctl_sdk.declared.masking import Options
from certctl_sdk.declared.shape import Shapes

NOT_FOUND = 404


@dataclass(frozen=True, slots=True)
class There:
    """The objects of one kind."""

    by_id: Mapping[str, Json]
    whole: bool
    """Whether these are all that there are; otherwise only what was asked for by its id."""

    def named(self, name: str) -> list[Json]:
        """Return those that are called so."""
        return [row for row in self.by_id.values() if row.get("name") == name]


@dataclass(frozen=True, slots=True)
class Known:
    """All of it."""

    shapes: Shapes
    options: Options
    rows: Mapping[str, There]
    """By path."""


def references(declared: Declared) -> Iterator[tuple[str, str, str]]:
    """Yield each reference: the field, the path of what it refers to, and the id."""
    for field, path in declared.kind.references.items():
        value = declared.body.get(field)
        ids = value.plain if value else None
        for number, id in enumerate(ids if isinstance(ids, list) else [ids]):
            if id and isinstance(id, str):
                yield f"{field}[{number}]" if isinstance(ids, list) else field, path, id


async def ask(client: AsyncClient, declared: Iterable[Declared]) -> Known:
    """Ask a server for all that is needed to tell what the files would change there.

    Raises:
        ClientError: as of ``AsyncClient.send``.
    """
    ids: dict[str, set[str]] = defaultdict(set)
    by_name = set()
    has_options = False
    for each in declared:
        ids[each.kind.path].add(each.id)
        has_options = has_options or each.kind.has_options
        if not each.id:
            by_name.add(each.kind.path)
        for _, path, id in references(each):
            ids[path].add(id)
    asked = [_rows(client, path, some, by_name=path in by_name) for path, some in ids.items()]
    document, loaded, *rows = await asyncio.gather(
        client.send(Call[Json]("GET", "/api/v1/openapi.json")),
        client.send(connectors()) if has_options else _none(),
        *asked,
    )
    return Known(
        Shapes(document),
        Options.of(loaded["loaded"] if loaded else []),
        dict(zip(ids, rows, strict=True)),
    )


async def _none() -> None:
    """Nothing is asked."""


async def _rows(client: AsyncClient, path: str, ids: set[str], *, by_name: bool) -> There:
    """By pages, unless the server has so many more than are wanted that a call for each is the shorter way."""
    listed = Rows[Json, Json](path)
    page = await client.send(listed.list({"cursor": "", "page_size": MOST_PER_PAGE}))
    if not by_name and page.total > MOST_PER_PAGE * len(ids):
        found = await asyncio.gather(*(_row(client, path, id) for id in ids))
        return There({row["id"]: row for row in found if row}, whole=False)
    rows = {row["id"]: row for row in page.data}
    while page.next_cursor:
        page = await client.send(listed.list({"cursor": page.next_cursor, "page_size": MOST_PER_PAGE}))
        rows |= {row["id"]: row for row in page.data}
    return There(rows, whole=True)


async def _row(client: AsyncClient, path: str, id: str) -> Json | None:
    try:
        return await client.send(Readable[Json, Json](path).get(id))
    except ApiError as exc:
        if exc.status == NOT_FOUND:
            return None
        raise
