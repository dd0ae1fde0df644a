from datetime import UTC, datetime, timedelta

import pytest
from certctl_sdk.http import httpx
from certctl_server import filters
from certctl_server.agents.tables import Agent
from certctl_server.auth.guard import Guard
from certctl_server.auth.keys import create_key
from certctl_server.auth.principal import Req, Where
from certctl_server.auth.roles import ANY_KEY, LISTED, Role
from certctl_server.certificates.tables import CertificateVersion
from certctl_server.discovery.tables import DiscoveredCertificate
from certctl_server.errors import HANDLERS, Refused
from certctl_server.filters import Bound, equal, flag, word
from certctl_server.list_spec import SORT_ALIASES
from certctl_server.lists import Tallied, conditions, list_response, listed
from certctl_server.people.tables import Team
from litestar import Litestar, get
from litestar.datastructures import State

SHOWN = ("id", "common_name", "status", "is_ca", "key_size", "not_after", "created_at", "agent_id", "sans")
KEYS = {Role.ADMIN: {}, Role.AGENT: {"agent_id": "ag-1"}}
START = datetime(2030, 1, 1, tzinfo=UTC)


def show(row):
    return {name: row[name] for name in SHOWN if row[name] is not None}


FOUND = listed(
    DiscoveredCertificate,
    show,
    SHOWN,
    json=["sans"],
    order="-created_at",
    filters={
        "status": word("item.status", ("Managed", "Unmanaged", "Dismissed"), {"mine": "Managed"}),
        "agent_id": equal("item.agent_id"),
        "common_name": equal("item.common_name"),
        "is_ca": flag("item.is_ca"),
        "key_size": filters.number("item.key_size"),
    },
    unless={"is_ca": Where("item.key_size < {}", (9000,))},
    others=frozenset({"format"}),
)


@get("/", opt={"roles": ANY_KEY, "query": LISTED})
async def found(request: Req) -> object:
    return await list_response(request, FOUND)


@get("/narrow", opt={"roles": ANY_KEY, "query": LISTED})
async def narrow(request: Req) -> object:
    return await list_response(request, FOUND, where=Where("item.key_size > {}", (2,)))


async def agent(number):
    row = Agent(
        id=f"ag-{number}", name=f"a{number}", hostname="h", registered_at=START, created_at=START, updated_at=START
    )
    await Agent.insert(row)


async def plant(number, **values):
    defaults = {
        "id": f"dc-{number}",
        "fingerprint_sha256": f"{number:064x}",
        "common_name": f"name {number}",
        "status": "Managed",
        "key_size": number,
        "source_path": "/x",
        "agent_id": "ag-1",
        "first_seen_at": START,
        "last_seen_at": START,
        "created_at": START + timedelta(seconds=number),
        "updated_at": START,
    }
    await DiscoveredCertificate.insert(DiscoveredCertificate(**{**defaults, **values}))


@pytest.fixture
async def ask(ctx):
    await agent(1)
    await agent(2)
    _, key = await create_key("ada", Role.ADMIN)
    app = Litestar(
        [found, narrow],
        guards=[Guard(ctx).admit],
        exception_handlers=HANDLERS,
        openapi_config=None,
        logging_config=None,
        state=State({"ctx": ctx}),
    )

    async def ask(query="", path="/", key=key):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://x") as client:
            return await client.get(f"{path}?{query}", headers={"Authorization": f"Bearer {key}"})

    return ask


async def ids(ask, query="", path="/"):
    answer = await ask(query, path)
    assert answer.status_code == 200, answer.text
    return [int(row["id"].removeprefix("dc-")) for row in answer.json()["data"]]


async def walk(ask, query, path="/"):
    """All ids of a walk, page by page, and the totals it told."""
    pages, totals, cursor = [], [], ""
    while True:
        answer = (await ask(f"{query}&cursor={cursor}", path)).json()
        pages.append([int(row["id"].removeprefix("dc-")) for row in answer["data"]])
        totals.append(answer["total"])
        if "next_cursor" not in answer:
            return pages, totals
        cursor = answer["next_cursor"]


async def test_the_paged_envelope_is_the_default(ask):
    for number in range(3):
        await plant(number)
    body = (await ask()).json()
    assert body.keys() == {"data", "total", "page", "per_page"}
    assert (body["total"], body["page"], body["per_page"], len(body["data"])) == (3, 1, 50, 3)
    assert (await ask()).content.endswith(b"}\n")


@pytest.mark.parametrize(
    ("query", "found", "per_page"),
    [
        ("per_page=2", [4, 3], 2),
        ("page=2&per_page=2", [2, 1], 2),
        ("page=3&per_page=2", [0], 2),
        ("page=2&page_size=2", [2, 1], 2),
        ("page=9", [], 50),
        ("page=9007199254740992&per_page=500", [], 500),
        ("per_page=2&_=17", [4, 3], 2),
    ],
)
async def test_pages_are_cut_from_the_order_with_the_true_total(ask, query, found, per_page):
    for number in range(5):
        await plant(number)
    body = (await ask(query)).json()
    assert [row["key_size"] for row in body["data"]] == found
    assert (body["total"], body["per_page"]) == (5, per_page)


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("page=0", ["page"]),
        ("page=-1", ["page"]),
        ("page=x", ["page"]),
        ("page=", ["page"]),
        ("page=9007199254740993", ["page"]),
        ("page=%D9%A1", ["page"]),
        ("per_page=0", ["per_page"]),
        ("per_page=501", ["per_page"]),
        ("page_size=501", ["page_size"]),
        ("per_page=1e2", ["per_page"]),
        ("colour=red", ["colour"]),
        ("sort=colour", ["sort"]),
        ("sort=sans", ["sort"]),
        ("sort=id;drop", ["sort"]),
        ("sort_desc=maybe", ["sort_desc"]),
        ("fields=id,colour", ["fields"]),
        ("status=gone", ["status"]),
        ("status=managed,gone", ["status"]),
        ("is_ca=2", ["is_ca"]),
        ("key_size=big", ["key_size"]),
        ("key_size=99999999999999999999", ["key_size"]),
        ("expires_before=tomorrow", ["expires_before"]),
        ("created_after=2030-01-01T00:00:00", ["created_after"]),
        ("last_seen_before=2030-01-01T00:00:00Z", ["last_seen_before"]),
        ("page=1&page=2", ["page"]),
        ("cursor=&page=1", ["cursor"]),
        ("cursor=&per_page=1", ["cursor"]),
        ("cursor=abc", ["cursor"]),
        ("cursor=*", ["cursor"]),
        ("page=0&sort=x&colour=y", ["colour", "page", "sort"]),
    ],
)
async def test_what_a_list_cannot_do_is_refused_by_name(ask, query, fields):
    answer = await ask(query)
    assert answer.status_code == 400, answer.text
    assert sorted(each["field"] for each in answer.json()["details"]) == fields


async def test_the_cursor_envelope_is_given_on_request(ask):
    for number in range(3):
        await plant(number)
    for query in ("cursor=", "page_size=2", "cursor=&page_size=2"):
        body = (await ask(query)).json()
        assert body.keys() - {"next_cursor"} == {"data", "total", "page_size"}
    assert "next_cursor" in body
    assert body["page_size"] == 2


SORTS = ["", "created_at", "-created_at", "id", "-id", "common_name", "-common_name"]
SORTS += ["not_after", "-not_after", "is_ca", "-key_size", "status"]


@pytest.mark.parametrize("sort", SORTS)
async def test_a_walk_sees_every_row_once_in_the_order_of_the_pages(ask, sort):
    for number in range(23):
        values = {
            "common_name": ["", "b", "a", "B", "é"][number % 5],
            "not_after": None if number % 4 == 0 else START + timedelta(days=number % 3, microseconds=number % 2),
            "is_ca": number % 2 == 0,
            "status": ["Managed", "Dismissed"][number % 2],
            "created_at": START + timedelta(microseconds=500_000 * (number % 3)),
            "key_size": number % 7,
        }
        await plant(number, **values)
    query = f"sort={sort}" if sort else "fields=id"
    whole = await ids(ask, f"{query}&per_page=500")
    assert sorted(whole) == list(range(23))
    for size in (1, 4, 23):
        pages, totals = await walk(ask, f"{query}&page_size={size}")
        assert [each for page in pages for each in page] == whole
        assert set(totals) == {23}
        assert all(len(page) == size for page in pages[:-1])
        assert pages[-1]
    paged = [each for page in range(1, 7) for each in await ids(ask, f"{query}&per_page=4&page={page}")]
    assert paged == whole


async def test_text_sorts_by_code_point_with_nothing_last_either_way(ask):
    for number, name in enumerate(["b", "", "a", "Z", "é", "_"]):
        await plant(number, common_name=name)
    assert await ids(ask, "sort=common_name") == [3, 5, 2, 0, 4, 1]
    assert await ids(ask, "sort=-common_name") == [4, 0, 2, 5, 3, 1]
    assert await ids(ask, "sort=common_name&sort_desc=true") == [4, 0, 2, 5, 3, 1]
    assert await ids(ask, "sort=commonName&sort_desc=false") == [3, 5, 2, 0, 4, 1]


async def test_no_time_sorts_last_either_way(ask):
    for number, days in enumerate([3, None, 1, 2]):
        await plant(number, not_after=None if days is None else START + timedelta(days=days))
    assert await ids(ask, "sort=not_after") == [2, 3, 0, 1]
    assert await ids(ask, "sort=-notAfter") == [0, 3, 2, 1]
    assert await ids(ask, "sort=expires_at") == [2, 3, 0, 1]


async def test_rows_that_come_and_go_do_not_disturb_a_walk(ask):
    for number in range(10, 20):
        await plant(number)
    first = (await ask("sort=id&page_size=4")).json()
    await plant(5, id="dc-09")
    await DiscoveredCertificate.delete().where(DiscoveredCertificate.id == "dc-12")
    await DiscoveredCertificate.delete().where(DiscoveredCertificate.id == "dc-15")
    await plant(30, id="dc-165")
    second = (await ask(f"sort=id&page_size=9&cursor={first['next_cursor']}")).json()
    assert [row["id"] for row in second["data"]] == ["dc-14", "dc-16", "dc-165", "dc-17", "dc-18", "dc-19"]


async def test_a_cursor_is_good_for_its_own_walk_only(ask):
    for number in range(6):
        await plant(number)
    token = (await ask("sort=id&page_size=2&status=managed")).json()["next_cursor"]
    assert (await ask(f"sort=id&page_size=3&status=managed&cursor={token}")).status_code == 200
    for other in ("sort=-id&status=managed", "sort=id", "sort=id&status=dismissed", "sort=key_size&status=managed"):
        assert (await ask(f"{other}&cursor={token}")).status_code == 400
    assert (await ask(f"sort=id&status=managed&cursor={token}", "/narrow")).status_code == 400
    for place in range(0, len(token), 7):
        bent = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
        assert (await ask(f"sort=id&status=managed&cursor={bent}")).status_code == 400
    assert (await ask(f"sort=id&status=managed&cursor={'A' * 5000}")).status_code == 400


async def test_a_cursor_survives_a_restart(ask, ctx):
    for number in range(3):
        await plant(number)
    token = (await ask("page_size=2")).json()["next_cursor"]
    ctx.cursor_key = b""
    assert (await ask(f"cursor={token}")).status_code == 200


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("status=Managed", [0, 2, 4]),
        ("status=managed,DISMISSED", [0, 1, 2, 3, 4]),
        ("status=mine", [0, 2, 4]),
        ("status=", [0, 1, 2, 3, 4]),
        ("status=unmanaged", []),
        ("agent_id=ag-2", [3, 4]),
        ("agent_id=ag-2,ag-1,ag-1", [0, 1, 2, 3, 4]),
        ("agent_id=ag-2&status=managed", [4]),
        ("common_name=name%203", [3]),
        ("common_name=Name%203", []),
        ("is_ca=true", [4]),
        ("is_ca=FALSE", [0, 1, 2, 3]),
        ("key_size=2", [2]),
        ("created_after=2030-01-01T00:00:02Z", [3, 4]),
        ("created_before=2030-01-01T00:00:02Z", [0, 1]),
        ("created_before=2030-01-01T01:00:02%2B01:00", [0, 1]),
        ("created_before=2030-01-01T01:00:02+01:00", [0, 1]),
        ("expires_after=2030-01-01T00:00:00Z", [1]),
        ("format=csv", [0, 1, 2, 3, 4]),
        ("status=%27%20OR%201=1--%20,managed", None),
        ("agent_id=%27%20OR%201=1--%20", []),
    ],
)
async def test_filters_match_exactly_and_count_truly(ask, query, found):
    for number in range(5):
        await plant(
            number,
            status=["Managed", "Dismissed"][number % 2],
            agent_id="ag-2" if number > 2 else "ag-1",
            is_ca=number == 4,
            not_after=START + timedelta(days=1) if number == 1 else None,
        )
    if found is None:
        assert (await ask(query)).status_code == 400
        return
    assert await ids(ask, f"sort=id&{query}") == found
    pages, totals = await walk(ask, f"sort=id&page_size=2&{query}")
    assert [each for page in pages for each in page] == found
    assert set(totals) == {len(found)}


async def test_what_holds_unless_asked_holds_unless_asked(ask):
    await plant(1)
    await plant(2, key_size=9500)
    assert await ids(ask) == [1]
    assert await ids(ask, "is_ca=false") == [2, 1]


async def test_a_path_narrows_its_list(ask):
    for number in range(5):
        await plant(number)
    assert (await ask("", "/narrow")).json()["total"] == 2


async def test_agents_see_their_own_rows_only(ask):
    await plant(1)
    await plant(2, agent_id="ag-2")
    _, key = await create_key("x", Role.AGENT, agent_id="ag-2")
    body = (await ask("agent_id=ag-1,ag-2", key=key)).json()
    assert ([row["id"] for row in body["data"]], body["total"]) == (["dc-2"], 1)


async def test_fields_keep_those_keys(ask):
    await plant(1)
    assert (await ask("fields=id,status")).json()["data"] == [{"id": "dc-1", "status": "Managed"}]
    assert (await ask("fields=not_after")).json()["data"] == [{}]


async def test_one_query_may_name_many_values(ask):
    await plant(3)
    assert await ids(ask, "agent_id=" + ",".join(f"ag-{n}" for n in range(1000))) == [3]
    assert (await ask("agent_id=" + "," * 1000)).status_code == 400


async def test_a_total_that_is_kept_is_not_counted_unless_the_list_is_narrowed(ctx):
    kept = "SELECT 'Managed' AS status, 7 AS n UNION ALL SELECT 'Dismissed', 2"
    spec = listed(
        DiscoveredCertificate,
        show,
        SHOWN,
        filters={"status": word("item.status", ("Managed", "Dismissed")), "agent_id": equal("item.agent_id")},
        shown=Where("item.key_size < {}", (9000,)),
        tallies=[Tallied(kept, frozenset({"status"}))],
    )

    @get("/", opt={"roles": ANY_KEY, "query": LISTED})
    async def rows(request: Req) -> object:
        return await list_response(request, spec)

    @get("/narrow", opt={"roles": ANY_KEY, "query": LISTED})
    async def fewer(request: Req) -> object:
        return await list_response(request, spec, where=Where("item.key_size > {}", (0,)))

    await agent(1)
    for number in range(3):
        await plant(number)
    await plant(9001)
    key, agents_key = [(await create_key(role, role, **more))[1] for role, more in KEYS.items()]
    app = Litestar([rows, fewer], guards=[Guard(ctx).admit], openapi_config=None, state=State({"ctx": ctx}))
    transport = httpx.ASGITransport(app=app)

    async def total(path, key=key):
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://x", headers=headers) as client:
            return (await client.get(path)).json()["total"]

    assert [await total(f"/?{size}=2") for size in ("per_page", "page_size")] == [9, 9]
    assert [await total(f"/?per_page=1&status={status}") for status in ("managed", "Dismissed,Managed")] == [7, 9]
    assert await total("/?per_page=1&agent_id=ag-1") == 3
    assert await total("/?per_page=1&agent_id=ag-1&status=Managed") == 3
    assert await total("/narrow?per_page=1") == 2
    assert await total("/?per_page=1", agents_key) == 3


def test_bulk_actions_use_the_filters_of_the_list():
    spec = listed(Team, dict, ["id"], filters={"name": equal("item.name")})
    bound = Bound(["first"])
    assert conditions(spec, {}, bound) == "1 = 1"
    assert (
        conditions(spec, {"name": "x"}, bound, Where("item.id <> {}", ("t-1",))) == "item.id <> $2 AND item.name = $3"
    )
    assert bound.args == ["first", "t-1", "x"]
    with pytest.raises(Refused) as refused:
        conditions(spec, {"colour": "red"}, bound)
    assert refused.value.faults == {"colour": "is unknown"}


def test_sort_names_of_the_originals_clients_are_known():
    spec = listed(CertificateVersion, dict, ["id", "created_at", "not_after"])
    assert spec.sort_key("expiresAt") == "not_after"
    assert {name for name in SORT_ALIASES if name.endswith("At")} == {"expiresAt", "createdAt", "updatedAt"}
