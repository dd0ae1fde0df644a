"""Questions asked at the same time become one statement.

A hundred polls or orders at once would each pay for a round trip of their own. Whoever asks through a ``Together``
asks for one thing; what is asked while the answer to others is under way goes to the database as one set.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

from certctl_server.db.session import Row, fetch, in_transaction
from certctl_server.db.sql import Sql

Q = TypeVar("Q")
A = TypeVar("A")
MOST = 200


class Together(Generic[Q, A]):
    """``work`` gets a list of questions and returns an answer to each, in their order; one may be an exception.

    Inside a transaction a question goes alone: it belongs to what is seen and written there. With ``apart``, questions
    that fail together are asked again one by one, so that the fault of one is not the others'.
    """

    def __init__(self, work: Callable[[list[Q]], Awaitable[Sequence[A | Exception]]], *, apart: bool = False) -> None:
        self._work = work
        self._apart = apart
        self._waiting: list[tuple[Q, asyncio.Future[A]]] = []
        self._turn: asyncio.Task[None] | None = None

    async def __call__(self, question: Q) -> A:
        """Return the answer, or raise it if it is an exception."""
        if in_transaction():
            [answer] = await self._work([question])
            if isinstance(answer, Exception):
                raise answer
            return answer
        loop = asyncio.get_running_loop()
        if self._turn is None or self._turn.done() or self._turn.get_loop() is not loop:
            self._waiting = []  # a loop that was closed may have left some behind
            # In a context of its own: it works for all of them, not for who came first.
            self._turn = loop.create_task(self._answer_all(), name="together", context=contextvars.Context())
        future: asyncio.Future[A] = loop.create_future()
        self._waiting.append((question, future))
        return await future

    async def _answer_all(self) -> None:
        await asyncio.sleep(0)  # whoever was woken together with the first
        while self._waiting:
            some, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
            some = [(question, future) for question, future in some if not future.done()]
            for (_, future), answer in zip(some, await self._answers([each for each, _ in some]), strict=True):
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    async def _answers(self, questions: list[Q]) -> Sequence[A | Exception]:
        try:
            return await self._work(questions) if questions else []
        except Exception as exc:  # noqa: BLE001  # it is raised where the question was asked
            if not self._apart or len(questions) == 1:
                return [exc] * len(questions)
        return [answer for each in questions for answer in await self._answers([each])]


Once: TypeAlias = Together[tuple[Any, ...], list[Row]]


def once(sql: Sql) -> Once:
    """Return what runs ``sql`` with the arguments it is asked, once for all who ask the same at the same time.

    None of them sees less than what was there when it asked.
    """

    async def work(asked: list[tuple[Any, ...]]) -> list[list[Row]]:
        found = {args: await fetch(sql, *args) for args in dict.fromkeys(asked)}
        return [found[args] for args in asked]

    return Together(work)
