"""The document: every route of the API, with what goes in, what comes out, and who may."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, NotRequired, TypedDict, get_args, get_origin, is_typeddict

from litestar import Litestar
from litestar.handlers import HTTPRouteHandler
from litestar.routes import HTTPRoute

from certctl_server.auth.roles import OPEN, Role
from certctl_server.connectors.probe import Check
from certctl_server.errors import REASONS
from certctl_server.http.answer import Answer
from certctl_server.http.health import HEALTH
from certctl_server.openapi.examples import KEYS
from certctl_server.openapi.parameters import filter_parameters, list_parameters, path_parameters, query_parameters
from certctl_server.openapi.schemas import PLACE, Schema, Schemas

BASE = "/api/v1/"
KEY = "key"
JSON = "application/json"
ERRORS: Mapping[int, str] = {
    400: "Something is not possible as it is asked; details names every field at fault.",
    401: "No key was shown, or none that works.",
    403: "The key is not for this.",
    404: "What the path, or an id in it, names is not there.",
    409: "Not in the present state: a name is taken, something is in use or over.",
    413: "The body is longer than the server takes.",
    415: "The body is no JSON.",
    429: "Too many calls; Retry-After says when to come back.",
    500: "A fault of the server; its log has more under request_id.",
    503: "The database, a CA or another peer is away; Retry-After says when to come back, if that is known.",
}
VERBS = {"list": "List", "get": "Get", "create": "Create", "update": "Change", "delete": "Delete"}
HEADERS = {
    429: {"Retry-After": {"required": True, "schema": {"type": "integer", "minimum": 1}}},
    401: {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}},
}
ABOUT = """Certificates that stay issued, deployed, proven and renewed.

A body is a JSON object. Keys that are not known are ignored and named in the header X-Certctl-Ignored-Fields, as are
those that only the server writes, so that what GET returns can be sent back. A POST takes null and "" for absent; a PUT
keeps what is not given, and null clears what may be empty. Enum values are taken in any case of letters.
"""


class Fault(TypedDict):
    """One field at fault."""

    field: str
    message: str


class Error(TypedDict):
    """Every answer of 400 and above."""

    error: str
    message: str
    request_id: str
    details: NotRequired[list[Fault]]
    """Every field at fault."""
    checks: NotRequired[list[Check]]
    """What was looked at when a connection was tested, and what came of it."""


class Alive(TypedDict):
    """What those ask who watch the process; a broker is named while it does not answer."""

    status: str
    broker: NotRequired[str]


def document(app: Litestar) -> Schema:
    """Return the OpenAPI document of the routes of ``app``; it says nothing of the installation."""
    schemas = Schemas()
    fault = schemas.of(Error)
    paths: dict[str, Schema] = {}
    for path, method, handler in operations(app):
        paths.setdefault(path, {})[method.lower()] = _operation(path, method, handler, schemas)
    _link(paths)
    paths |= {path: {"get": _alive(path, schemas)} for path in HEALTH}
    return {
        "openapi": "3.1.0",
        "info": {"title": "certctl", "version": version("certctl-server"), "description": ABOUT},
        "servers": [{"url": "/"}],
        "paths": {path: paths[path] for path in sorted(paths)},
        "components": {
            "schemas": schemas.done(),
            "responses": {str(code): _error(code, fault) for code in ERRORS},
            "securitySchemes": {KEY: {"type": "http", "scheme": "bearer", "description": "A key of certctl."}},
        },
        "tags": [
            {"name": name}
            for name in sorted({tag for each in paths.values() for one in each.values() for tag in one["tags"]})
        ],
    }


def _alive(path: str, schemas: Schemas) -> Schema:
    """What the front answers before there is a route."""
    found = {"description": "OK", "content": {JSON: {"schema": schemas.of(Alive)}}}
    away = {"503": {"$ref": "#/components/responses/503"}} if path == "/ready" else {}
    return {
        "operationId": "alive" if path == "/health" else path[1:],
        "summary": "Say that the process lives." if path == "/health" else "Say that the server can work.",
        "tags": ["health"],
        "x-roles": sorted(map(str, OPEN)),
        "security": [],
        "responses": {"200": found, **away},
    }


def _link(paths: Mapping[str, Schema]) -> None:
    """Say which calls are about what was made or listed: they are below its path, by its id."""
    for path, methods in paths.items():
        below = [found for other, found in paths.items() if other.startswith(f"{path}/{{id}}")]
        about = [each["operationId"] for found in below for each in found.values()]
        for method, code, id in (("post", "201", "/id"), ("get", "200", "/data/0/id")):
            answer = methods.get(method, {}).get("responses", {}).get(code)
            if answer and about:
                at = {"id": f"$response.body#{id}"}
                answer["links"] = {name: {"operationId": name, "parameters": at} for name in about}


def operations(app: Litestar) -> Iterator[tuple[str, str, HTTPRouteHandler]]:
    """Yield path, method and handler of every operation that is part of the API."""
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for method, (handler, _) in route.route_handler_map.items():
                if method not in {"HEAD", "OPTIONS"} and not handler.opt.get("hidden"):
                    yield route.path_format, str(method), handler


def _operation(path: str, method: str, handler: HTTPRouteHandler, schemas: Schemas) -> Schema:
    opt, names = handler.opt, re.findall(r"{(\w+)}", path)
    body = schemas.new(opt["body"]) if "body" in opt else schemas.change(opt["change"]) if "change" in opt else None
    roles = opt["roles"]
    found: Schema = {
        "operationId": operation_id(path, method, handler),
        "summary": _summary(path, method, handler),
        "tags": [_tag(path)],
        "x-roles": sorted(map(str, roles)),
        "security": [] if Role.ANONYMOUS in roles else [{KEY: []}],
        "parameters": [*path_parameters(names), *_query(opt, schemas)],
    }
    if body:
        required = "required" in schemas.components[body["$ref"].removeprefix(PLACE)]
        found["requestBody"] = {"required": required, "content": {JSON: {"schema": body}}}
    answer = _answer(handler, schemas)
    found["responses"] = {str(code): answer for code in (int(handler.status_code), *opt.get("codes", ()))}
    for code, other in opt.get("others", {}).items():
        content = {JSON: {"schema": schemas.of(other)}}
        found["responses"][str(code)] = {"description": HTTPStatus(code).phrase, "content": content}
    found["responses"] |= {str(code): {"$ref": f"#/components/responses/{code}"} for code in _faults(method, handler)}
    return found


def _query(opt: Mapping[str, Any], schemas: Schemas) -> Iterator[Schema]:
    if "list" in opt:
        return list_parameters(opt["list"])
    if "filters" in opt:
        return filter_parameters(opt["filters"])
    return query_parameters(opt.get("query", ()), schemas)


def operation_id(path: str, method: str, handler: HTTPRouteHandler) -> str:
    """Return what the operation is called: ``certificates_list``, ``certificates_renew``."""
    parts = [part.replace("-", "_") for part in path.removeprefix(BASE).split("/") if not part.startswith("{")]
    return "_".join([*parts, *([verb] if (verb := _verb(path, method, handler)) else [])])


def _verb(path: str, method: str, handler: HTTPRouteHandler) -> str:
    if method == "GET":
        return "list" if "list" in handler.opt else "get" if path.endswith("}") else ""
    if method == "POST":
        return "create" if handler.status_code == HTTPStatus.CREATED else ""
    return {"PUT": "update", "DELETE": "delete"}[method]


def _summary(path: str, method: str, handler: HTTPRouteHandler) -> str:
    words = (handler.fn.__doc__ or "").partition("\n")[0].strip()
    return words or f"{VERBS[_verb(path, method, handler)]}: {_tag(path).replace('-', ' ')}."


def _tag(path: str) -> str:
    return path.removeprefix(BASE).strip("/").partition("/")[0]


def _answer(handler: HTTPRouteHandler, schemas: Schemas) -> Schema:
    opt, returned = handler.opt, handler.parsed_fn_signature.return_type.annotation
    if get_origin(returned) is Answer:
        [returned] = get_args(returned)
    found: Schema = {"description": HTTPStatus(handler.status_code).phrase}
    if media := opt.get("media"):
        kinds = [media] if isinstance(media, str) else media
        return {**found, "content": {_served(kind): {"schema": _file(kind, opt, schemas)} for kind in kinds}}
    if handler.status_code == HTTPStatus.NO_CONTENT:
        return found
    if "list" in opt:
        schema = _page(schemas.object(opt["list"]))
    elif "answer" in opt:
        schema = schemas.object(opt["answer"])
    elif is_typeddict(returned) or (get_origin(returned) is list and is_typeddict(*get_args(returned))):
        schema = schemas.of(returned)
    else:
        raise TypeError(f"{handler} does not say what it answers")
    return {**found, "content": {JSON: {"schema": schema}}}


def _served(kind: str) -> str:
    """Return a media type as answers have it, which say how text is encoded."""
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def _file(kind: str, opt: Mapping[str, Any], schemas: Schemas) -> Schema:
    """What is no text has the rows of the list that was filtered."""
    return {"type": "array", "items": schemas.object(opt["filters"])} if kind == JSON else {"type": "string"}


def _page(row: Schema) -> Schema:
    numbers = {name: {"type": "integer"} for name in ("total", "page", "per_page", "page_size")}
    properties = {"data": {"type": "array", "items": row}, **numbers, "next_cursor": {"type": "string"}}
    return {"type": "object", "properties": properties, "required": ["data", "total"]}


def _faults(method: str, handler: HTTPRouteHandler) -> Iterator[int]:
    opt, is_open = handler.opt, Role.ANONYMOUS in handler.opt["roles"]
    if not is_open:
        yield from (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
    if method != "GET" and not is_open:
        yield HTTPStatus.CONFLICT
    yield from opt.get("errors", ())
    if "body" in opt or "change" in opt:
        yield from (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
    yield from (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.TOO_MANY_REQUESTS)
    yield from (HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.SERVICE_UNAVAILABLE)


def _error(code: int, fault: Schema) -> Schema:
    reason = REASONS.get(code) or HTTPStatus(code).phrase
    sample = {"error": reason, "message": ERRORS[code], "request_id": KEYS["request_id"]}
    content = {JSON: {"schema": fault, "example": sample}}
    return {"description": ERRORS[code], "content": content} | ({"headers": HEADERS[code]} if code in HEADERS else {})
