"""Notifications and notifiers over HTTP."""

from http import HTTPStatus
from typing import Literal, TypeAlias, TypedDict

from litestar import Response, get, post
from litestar.params import FromPath
from litestar.types import ControllerRouterHandler

from certctl_server.auth.principal import Req, actor_of
from certctl_server.auth.roles import LISTED, READ, WRITE
from certctl_server.connectors.probe import send_test
from certctl_server.connectors.rows import configured_routes
from certctl_server.context import Ctx
from certctl_server.crud import one
from certctl_server.filters import equal, word
from certctl_server.lists import Key, Row, list_response, listed, tallied
from certctl_server.notices.service import CHANNELS, EVENTS, NOTIFIERS, STATES, mark_read, show_notification
from certctl_server.notices.tables import Notification

#: Empty where an event found no notifier.
Channel: TypeAlias = Literal[("", *CHANNELS)]  # type: ignore[valid-type]  # the table of channels is the type
SHOWN = (
    *("id", "type", "certificate_id", "channel", "recipient", "subject", "message", "sent_at", "status", "error"),
    *("last_error", "retry_count", "next_retry_at", "created_at"),
)
NOTIFICATIONS = listed(
    Notification,
    show_notification,
    SHOWN,
    name="NotificationEvent",
    optional=("certificate_id", "sent_at", "error", "last_error", "next_retry_at"),
    types={"last_error": str, "channel": Channel},
    keys={"last_error": Key("item.error")},
    order="-created_at",
    filters={
        "status": word("item.status", STATES),
        "type": word("item.type", EVENTS),
        "channel": word("item.channel", CHANNELS),
        "certificate_id": equal("item.certificate_id"),
    },
    tallies=[tallied("notification", status="status", type="type")],
)


class MarkedAsRead(TypedDict):
    """It counts as read."""

    status: Literal["marked_as_read"]


class Sent(TypedDict):
    """The notifier took the message."""

    status: Literal["sent"]


@get("/api/v1/notifications", opt={"roles": READ, "query": LISTED, "list": NOTIFICATIONS})
async def list_(request: Req) -> Response[bytes]:
    """List what was sent to people, newest first."""
    return await list_response(request, NOTIFICATIONS)


@get("/api/v1/notifications/{id:str}", opt={"roles": READ, "answer": NOTIFICATIONS})
async def get_(request: Req, id: FromPath[str]) -> Row:
    """Return one message."""
    return show_notification(await one(Notification, id, request.user, "Notification"))


@post("/api/v1/notifications/{id:str}/read", opt={"roles": WRITE}, status_code=HTTPStatus.OK)
async def read(request: Req, id: FromPath[str]) -> MarkedAsRead:
    """Mark a message as read."""
    await mark_read(id, request.user, actor_of(request))
    return {"status": "marked_as_read"}


@post("/{id:str}/test", opt={"roles": WRITE}, status_code=HTTPStatus.OK)
async def test(request: Req, ctx: Ctx, id: FromPath[str]) -> Sent:
    """Send a message that says it is a test."""
    await send_test(NOTIFIERS, ctx, request, id)
    return {"status": "sent"}


routes: list[ControllerRouterHandler] = [list_, get_, read, configured_routes(NOTIFIERS, test)]
