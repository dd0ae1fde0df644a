"""Call what blocks, a socket or the making of an RSA key, without stopping the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


async def in_thread(call: Callable[[], T], *, abandon: Callable[[], object] | None = None) -> T:
    """Return what ``call`` returns, from a daemon thread: one that hangs never holds up the exit.

    When the caller is cancelled, ``abandon`` is called and ``call`` ends unheard.
    """
    heard: Future[T] = Future()
    heard.set_running_or_notify_cancel()

    def work() -> None:
        try:
            result = call()
        except BaseException as exc:  # noqa: BLE001  # handed to the caller, whatever it is
            heard.set_exception(exc)
        else:
            heard.set_result(result)

    Thread(target=work, daemon=True).start()
    try:
        return await asyncio.wrap_future(heard)
    except asyncio.CancelledError:
        if abandon:
            abandon()
        raise
