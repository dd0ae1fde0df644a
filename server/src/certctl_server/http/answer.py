"""Answers of handlers."""

from __future__ import annotations

from typing import Any, TypeVar

from litestar import MediaType, Response
from litestar.serialization import default_serializer
from litestar.types import Serializer

T = TypeVar("T")


class Answer(Response[T]):
    """What a handler returns to say more than a body; JSON ends with a newline."""

    def render(self, content: Any, media_type: str, enc_hook: Serializer = default_serializer) -> bytes:
        """Return the body's bytes."""
        body = super().render(content, media_type, enc_hook)
        # None is how a handler says that there is no body.
        if media_type != MediaType.JSON or content is None or isinstance(content, bytes):
            return body
        return body + b"\n"
