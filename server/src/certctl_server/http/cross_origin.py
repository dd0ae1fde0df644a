"""Which pages of other origins may call (Fetch standard, CORS protocol)."""

from __future__ import annotations

from collections.abc import Collection

from litestar.types import HTTPScope

PUBLIC = frozenset({"/health", "/ready", "/api/v1/auth/info"})
METHODS = "GET, POST, PUT, DELETE, PATCH, OPTIONS"
ALLOWED = "Content-Type, Authorization, X-Request-ID"
MAX_AGE = "86400"


class CrossOrigin:
    """Says the headers; ``origins`` are matched exactly, ``*`` is any, which then gets no credentials."""

    def __init__(self, origins: Collection[str]) -> None:
        self._any = "*" in origins
        self._origins = frozenset(origins)

    def headers(self, scope: HTTPScope, path: str) -> dict[str, str]:
        """Return what an answer says."""
        if path in PUBLIC or self._any:
            return {"Access-Control-Allow-Origin": "*"}
        if not self._origins:
            return {}
        origin = _origin(scope)
        if origin not in self._origins:
            return {"Vary": "Origin"}
        return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}

    def preflight(self, scope: HTTPScope) -> dict[str, str]:
        """Return what the answer to OPTIONS says besides."""
        if "Access-Control-Allow-Origin" not in self.headers(scope, scope["path"]):
            return {}
        return {
            "Access-Control-Allow-Methods": METHODS,
            "Access-Control-Allow-Headers": ALLOWED,
            "Access-Control-Max-Age": MAX_AGE,
        }


def _origin(scope: HTTPScope) -> str:
    return next((value for name, value in scope["headers"] if name == b"origin"), b"").decode("latin-1")
