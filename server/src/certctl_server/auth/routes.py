"""Who am I, logins and keys, over HTTP."""

from contextlib import suppress
from http import HTTPStatus
from typing import Annotated, Literal, NotRequired, TypedDict

import msgspec
from litestar import Response, Router, delete, get, post
from litestar.params import FromPath
from litestar.types import ControllerRouterHandler

from certctl_server import db
from certctl_server.audit.record import Event, audited, record
from certctl_server.auth.guard import CHALLENGE, login_cookie
from certctl_server.auth.keys import Keyring, authenticate, create_key, end_key, rotate_key
from certctl_server.auth.logins import log_in, log_out, set_cookie
from certctl_server.auth.principal import Principal, Req, Where, actor_of
from certctl_server.auth.roles import ADMIN, ANY_KEY, LISTED, OPEN, READ, STORED, Role
from certctl_server.auth.tables import ApiKey
from certctl_server.body import Name, Time, new
from certctl_server.context import Ctx
from certctl_server.errors import Refused, invalid, request_id
from certctl_server.filters import word
from certctl_server.http.answer import Answer
from certctl_server.http.asked import mark_secret
from certctl_server.http.client_address import client_address, is_encrypted
from certctl_server.leader import TROUBLE
from certctl_server.lists import Row, list_response, listed
from certctl_server.loops import Beat, beats

SHOWN = ("id", "name", "role", "prefix", "created_at", "expires_at", "last_used_at")
OPTIONAL = ("expires_at", "last_used_at")


class NewKey(msgspec.Struct):
    """A key for a person or a program; agents get theirs when they register."""

    name: Name
    role: Literal["admin", "operator", "viewer"]
    expires_at: Time | None = None


class NewLogin(msgspec.Struct):
    """The key that a browser exchanges for a cookie."""

    key: Annotated[str, msgspec.Meta(max_length=1024)]


def show(row: Row) -> Row:
    """Return the JSON object of a key, without anything that helps to guess it."""
    return {name: row[name] for name in SHOWN if name not in OPTIONAL or row[name] is not None}


KEYS = listed(
    ApiKey,
    show,
    SHOWN,
    optional=OPTIONAL,
    types={"key": Annotated[str, msgspec.Meta(description="In the answer that made it, and never again.")]},
    filters={"role": word("item.role", STORED)},
)


class Health(TypedDict):
    """The process lives; the loops are missing while the database does not answer."""

    status: Literal["healthy"]
    timestamp: Time
    loops: NotRequired[list[Beat]]


class Info(TypedDict):
    """Whether a key is needed."""

    auth_type: str
    required: bool


class Checked(TypedDict):
    """The key is good."""

    status: Literal["authenticated"]
    actor: str
    role: Role


class Me(TypedDict):
    """Whose key it is; what is not known is left out."""

    actor: str
    role: Role
    name: NotRequired[str]
    key_id: NotRequired[str]
    csrf_token: NotRequired[str]
    expires_at: NotRequired[Time]


class LoggedIn(TypedDict):
    """Who logged in, and what proves with later calls that a page of this server makes them."""

    actor: str
    role: Role
    csrf_token: str


@get("/api/v1/health", opt={"roles": OPEN})
async def health(ctx: Ctx) -> Health:
    """Say that the process lives, and when each background loop last came to its end, on whichever server leads."""
    alive: Health = {"status": "healthy", "timestamp": ctx.clock()}
    with suppress(*TROUBLE):  # it lives without its database as well
        alive["loops"] = await beats()
    return alive


@get("/api/v1/auth/info", opt={"roles": OPEN})
async def info(ctx: Ctx) -> Info:
    """Say whether a key is needed."""
    type_ = ctx.settings.auth.type
    return {"auth_type": type_, "required": type_ != "none"}


@get("/api/v1/auth/check", opt={"roles": ANY_KEY})
async def check(request: Req) -> Checked:
    """Say that the key is good."""
    return {"status": "authenticated", "actor": request.user.name, "role": request.user.role}


@get("/api/v1/auth/me", opt={"roles": ANY_KEY})
async def me(request: Req) -> Me:
    """Say whose key it is."""
    user = request.user
    found: Me = {"actor": user.name, "role": user.role}
    if user.named:
        found["name"] = user.name
    if user.key_id:
        found["key_id"] = user.key_id
    if user.csrf_token:
        found["csrf_token"] = user.csrf_token
    if user.expires_at:
        found["expires_at"] = user.expires_at
    return found


@post("/api/v1/auth/login", opt={"roles": OPEN, "body": NewLogin, "errors": (401, 403)}, status_code=HTTPStatus.OK)
async def login(request: Req, ctx: Ctx) -> Answer[LoggedIn]:
    """Exchange a key for a cookie."""
    mark_secret(request)
    if request.headers.get("sec-fetch-site") == "cross-site":
        raise Refused(HTTPStatus.FORBIDDEN, "Only a page of this server logs in")
    key = (await new(request, NewLogin)).key
    principal = await _holder(request, ctx, key)
    # The call's row in the audit trail says who it was.
    request.scope["user"] = principal
    now, life = ctx.clock(), ctx.settings.login_lifetime
    made = await log_in(principal, key, now, life=life, instead_of=login_cookie(request, ctx.settings))
    headers = {
        "Set-Cookie": set_cookie(made.cookie, life, encrypted=is_encrypted(request.scope, ctx.settings)),
        "Cache-Control": "no-store",
    }
    shown: LoggedIn = {"actor": principal.name, "role": principal.role, "csrf_token": made.csrf_token}
    return Answer(shown, status_code=HTTPStatus.OK, headers=headers)


async def _holder(request: Req, ctx: Ctx, key: str) -> Principal:
    principal = await authenticate(key, Keyring.of_settings(ctx.settings), ctx.clock())
    if principal is not None and principal.role in READ:
        return principal
    actor = principal.actor(request_id(request.scope)) if principal else actor_of(request)
    told = {
        "remote_addr": client_address(request.scope, ctx.settings.trusted_proxies),
        "reason": f"the role {principal.role} has no login" if principal else "no such key",
    }
    await record([Event(actor, "login_failed", "login", actor.name, told)])
    if principal is not None:
        raise Refused(HTTPStatus.FORBIDDEN, f"This is not for the role {principal.role}")
    raise Refused(HTTPStatus.UNAUTHORIZED, "Invalid API key", headers=CHALLENGE)


@post("/api/v1/auth/logout", opt={"roles": READ}, status_code=HTTPStatus.NO_CONTENT)
async def logout(request: Req, ctx: Ctx) -> Answer[None]:
    """End the login whose cookie was sent."""
    await log_out(login_cookie(request, ctx.settings))
    gone = set_cookie("", ctx.settings.login_lifetime, encrypted=is_encrypted(request.scope, ctx.settings))
    return Answer(None, status_code=HTTPStatus.NO_CONTENT, headers={"Set-Cookie": gone})


@get("/", opt={"roles": ADMIN, "query": LISTED, "list": KEYS})
async def list_(request: Req, ctx: Ctx) -> Response[bytes]:
    """List the stored keys that work."""
    now = ctx.clock()
    living = Where("item.ended_at IS NULL AND (item.expires_at IS NULL OR item.expires_at > {})", (now,))
    return await list_response(request, KEYS, where=living)


@post("/", opt={"roles": ADMIN, "body": NewKey, "answer": KEYS})
async def create(request: Req, ctx: Ctx) -> Answer[Row]:
    """Make a key; its text is in this reply only."""
    body = await new(request, NewKey)
    if body.expires_at and body.expires_at <= ctx.clock():
        raise invalid({"expires_at": "lies in the past"})
    async with db.transaction():
        row, text = await create_key(body.name, body.role, expires_at=body.expires_at)
        await record([Event(actor_of(request), "key_created", "api_key", row.id, {"name": row.name, "role": row.role})])
    return Answer({**show(row.to_dict()), "key": text}, status_code=HTTPStatus.CREATED)


@post("/{id:str}/rotate", opt={"roles": READ, "answer": KEYS}, status_code=HTTPStatus.OK)
async def rotate(request: Req, ctx: Ctx, id: FromPath[str]) -> Row:
    """Make the successor of a key; its text is in this reply only."""
    if request.user.role is not Role.ADMIN and request.user.key_id != id:
        raise Refused(HTTPStatus.FORBIDDEN, "Only an admin rotates the keys of others")
    async with db.transaction():
        row, text = await rotate_key(id, ctx.clock())
        await record([Event(actor_of(request), "key_rotated", "api_key", id, {"new_key": row.id})])
    return {**show(row.to_dict()), "key": text}


@delete("/{id:str}", opt={"roles": ADMIN})
async def delete_(request: Req, ctx: Ctx, id: FromPath[str]) -> None:
    """End a key at once."""
    async with audited(actor_of(request), "key_deleted", "api_key", id):
        await end_key(id, ctx.clock())


routes: list[ControllerRouterHandler] = [
    health,
    info,
    check,
    me,
    login,
    logout,
    Router("/api/v1/auth/keys", route_handlers=[list_, create, rotate, delete_], tags=["Key"]),
]
