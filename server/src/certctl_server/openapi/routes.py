"""The document over HTTP, and a viewer of it that asks for nothing from elsewhere."""

import gzip
from functools import lru_cache
from importlib.resources import files
from typing import Any

import msgspec
from litestar import Request, Response, get
from litestar.types import ControllerRouterHandler

from certctl_server.auth.roles import OPEN
from certctl_server.openapi.document import document

VIEWER = "rapidoc-min.js"
KEPT = {"Cache-Control": "public, max-age=86400"}
#: The viewer sets style attributes; scripts are its own file alone, and calls go to this server alone.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; img-src 'self' data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>certctl API</title><script src="/api/v1/docs/rapidoc-min.js"></script></head>
<body>
<rapi-doc spec-url="/api/v1/openapi.json" render-style="view" load-fonts="false" show-header="false"
 sort-endpoints-by="path" persist-auth="false" allow-server-selection="false"></rapi-doc>
</body>
</html>
"""


def written(app: Any) -> bytes:
    """Return the document of an application as JSON, made once."""
    if "openapi" not in app.state:
        app.state.openapi = msgspec.json.encode(document(app)) + b"\n"
    made: bytes = app.state.openapi
    return made


@get("/api/v1/openapi.json", opt={"roles": OPEN, "hidden": True})
async def openapi(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Return this document."""
    return Response(written(request.app), media_type="application/json")


@get("/api/v1/docs", opt={"roles": OPEN, "hidden": True})
async def docs() -> Response[str]:
    """Show the document to people."""
    return Response(PAGE, media_type="text/html", headers={"Content-Security-Policy": POLICY})


@get(f"/api/v1/docs/{VIEWER}", opt={"roles": OPEN, "hidden": True})
async def viewer(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Return RapiDoc, as its makers packed it."""
    packed = "gzip" in request.headers.get("accept-encoding", "")
    headers = {**KEPT, "Vary": "Accept-Encoding", **({"Content-Encoding": "gzip"} if packed else {})}
    return Response(_viewer(packed=packed), media_type="text/javascript", headers=headers)


@lru_cache(maxsize=2)
def _viewer(*, packed: bool) -> bytes:
    found = files("certctl_server.openapi").joinpath(f"viewer/{VIEWER}.gz").read_bytes()
    return found if packed else gzip.decompress(found)


routes: list[ControllerRouterHandler] = [openapi, docs, viewer]
