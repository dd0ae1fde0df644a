"""What the front and a handler tell each other about one request."""

from __future__ import annotations

from typing import Any

from litestar import Request


def is_head(request: Request[Any, Any, Any]) -> bool:
    """Whether HEAD was asked; the front hands it on as GET, so ``request.method`` does not say."""
    return bool(request.scope["state"].get("head"))


def mark_secret(request: Request[Any, Any, Any]) -> None:
    """Say that the body is little else than a secret: a digest of it, which many may read, would help to guess that."""
    request.scope["state"]["secret"] = True


def mark_idle(request: Request[Any, Any, Any]) -> None:
    """Say that a poll found nothing: the audit trail keeps one such call per agent and hour."""
    request.scope["state"]["idle"] = True
