"""The digest over HTTP."""

from http import HTTPStatus

import msgspec
from litestar import Response, get, post
from litestar.types import ControllerRouterHandler

from certctl_server.auth.principal import Req
from certctl_server.auth.roles import READ, WRITE
from certctl_server.body import new
from certctl_server.digest.figures import digest
from certctl_server.digest.page import page
from certctl_server.errors import Refused
from certctl_server.notices.routes import Sent

BASE = "/api/v1/digest"
#: It is styled as mail is, inline, and brings nothing that runs.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class SendBody(msgspec.Struct):
    """Nothing is asked."""


@get(BASE + "/preview", opt={"roles": READ, "media": "text/html"})
async def preview() -> Response[str]:
    """Return the digest as it would be sent now."""
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-store"}
    return Response(page(await digest()), media_type="text/html", headers=headers)


@post(BASE + "/send", opt={"roles": WRITE, "body": SendBody}, status_code=200)
async def send(request: Req) -> Sent:
    """Send the digest now."""
    await new(request, SendBody)
    raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "No connector that sends mail is installed")


routes: list[ControllerRouterHandler] = [preview, send]
