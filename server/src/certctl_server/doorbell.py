"""How processes wake each other: which lane has a due job, which agent has work, which loop should look again.

Nothing that is said here is kept anywhere, and nothing is lost with it: workers look for due jobs, polls for their
agent's work and loops for what became due, by themselves and every few seconds. A bell only makes it sooner.

Lanes are named through Dramatiq, to one worker. What polls and loops wait for is told to every server. With Redis both
cross the network; without, the broker is Dramatiq's stub and there is nobody else to tell.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import dramatiq
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import BrokerError

if TYPE_CHECKING:
    import redis

log = logging.getLogger(__name__)
Look: TypeAlias = Callable[[str], None]
QUEUE = "lanes"
NAMESPACE = "certctl"
#: Say every three seconds that the broker is away; the doorbell says it once.
SILENT = (f"dramatiq.worker.ConsumerThread({QUEUE})", f"dramatiq.worker.ConsumerThread({QUEUE}.DQ)")
TELL = f"{NAMESPACE}:tell"
AGAIN = "again:"
"""The word that words may have been missed."""
LOOK_MS = 250
"""How long an idle listener for lanes waits before it asks Redis again, in the worst case."""
MOST = 1_000
"""Bells that may wait in Redis; while no worker lives, more would only take its memory."""
PATIENCE_MS = 5_000
AGAIN_SECONDS = 1.0
FULL_SECONDS = 1.0
"""How long a worker that has no room keeps a bell from the others before it lets go of it."""


class Doorbell(Protocol):
    """Sends and receives bells, from threads of its own; no method but ``stop`` waits for anything."""

    def start(self) -> None:
        """Begin to listen."""

    def ring(self, lane: str) -> None:
        """Wake a worker: ``lane`` has a due job."""

    def tell(self, word: str) -> None:
        """Say ``word`` to every other server."""

    def reachable(self) -> bool:
        """Whether bells are heard, as far as is known."""

    def stop(self) -> None:
        """Stop listening; blocks until the threads have ended."""


class Answers:
    """What a process does when it hears something: called on its event loop."""

    def __init__(self, look: Look | None, hear: Look | None, room: threading.Event | None = None) -> None:
        """``look`` into a lane (None: this process has no workers), ``hear`` a word (None: it waits for none).

        ``room``: while it is not set, workers have none, and bells are better left to other processes.
        """
        self._loop = asyncio.get_running_loop()
        self.looks, self.hears = look is not None, hear is not None
        self._look, self._hear, self._room = look, hear, room

    def lane(self, lane: str) -> None:
        """Pass a lane's bell on; called from a listener's thread, which it stops while there is no room."""
        if self._room is not None:
            self._room.wait(FULL_SECONDS)
        self._pass(self._look, lane)

    def word(self, word: str) -> None:
        """Pass a word on."""
        self._pass(self._hear, word)

    def _pass(self, call: Look | None, what: str) -> None:
        if call is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, what)


class _Lanes:
    """Dramatiq, as far as we need it: a lane's name goes in here and comes out at a worker."""

    def __init__(self, broker: dramatiq.Broker, answers: Answers) -> None:
        self.broker = broker
        self._actor = dramatiq.actor(actor_name="look", queue_name=QUEUE, broker=broker)(answers.lane)
        self._worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=LOOK_MS) if answers.looks else None

    def start(self) -> None:
        if self._worker:
            self._worker.start()

    def send(self, lane: str) -> None:
        self._actor.send(lane)

    def stop(self) -> None:
        if self._worker:
            self._worker.stop(timeout=PATIENCE_MS)
        self.broker.close()


class LocalDoorbell:
    """Bells of a process that is alone, or whose neighbours find out by looking."""

    def __init__(self, answers: Answers) -> None:
        self._lanes = _Lanes(StubBroker(middleware=[]), answers)

    def start(self) -> None:
        """Begin to listen."""
        self._lanes.start()

    def ring(self, lane: str) -> None:
        """Wake a worker of this process."""
        self._lanes.send(lane)

    def tell(self, word: str) -> None:
        """Nobody else listens."""

    def reachable(self) -> bool:
        """Always."""
        return True

    def stop(self) -> None:
        """Stop listening."""
        self._lanes.stop()


class RedisDoorbell:
    """Bells between processes. While Redis is away they are dropped, which is logged once."""

    def __init__(self, url: str, answers: Answers) -> None:
        import redis  # noqa: PLC0415  # a fifth of a second that only needs who has a broker
        from dramatiq.brokers.redis import RedisBroker  # noqa: PLC0415

        for name in SILENT:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        self._trouble = (redis.RedisError, BrokerError, OSError)
        self._redis: redis.Redis = redis.Redis.from_url(
            url, socket_connect_timeout=2, socket_timeout=5, health_check_interval=10
        )
        self._answers = answers
        broker = RedisBroker(client=self._redis, namespace=NAMESPACE, middleware=[])  # type: ignore[no-untyped-call]
        self._lanes = _Lanes(broker, answers)
        self._waiting: dict[tuple[str, str], None] = {}
        self._changed = threading.Condition()
        self._stopped = False
        self._down = False
        targets = [self._sending, *([self._listening] if answers.hears else [])]
        self._threads = [threading.Thread(target=target, name="doorbell", daemon=True) for target in targets]

    def start(self) -> None:
        """Begin to send and to listen, whether or not Redis is there by now."""
        for thread in self._threads:
            thread.start()
        self._lanes.start()

    def ring(self, lane: str) -> None:
        """Wake a worker of some process."""
        self._put(QUEUE, lane)

    def tell(self, word: str) -> None:
        """Say ``word`` to every server that listens, this one included."""
        self._put(TELL, word)

    def reachable(self) -> bool:
        """Whether the last bell got through."""
        return not self._down

    def stop(self) -> None:
        """Stop listening; what was rung a moment ago is still sent."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        for thread in self._threads:
            thread.join(PATIENCE_MS / 1000)
        try:
            self._lanes.stop()
            self._redis.close()
        except self._trouble as exc:
            log.warning("broker not left in good order", exc_info=exc)

    def _put(self, where: str, what: str) -> None:
        # The same bell twice before anybody heard it is one bell.
        with self._changed:
            self._waiting[where, what] = None
            self._changed.notify()

    def _sending(self) -> None:
        while batch := self._next():
            try:
                self._send([what for where, what in batch if where == QUEUE])
                self._tell([what for where, what in batch if where == TELL])
            except self._trouble as exc:
                self._found(down=True, error=str(exc))
            else:
                self._found(down=False)

    def _next(self) -> Sequence[tuple[str, str]]:
        with self._changed:
            while not self._waiting and not self._stopped:
                self._changed.wait()
            batch = list(self._waiting)
            self._waiting.clear()
        return batch

    def _send(self, lanes: Sequence[str]) -> None:
        if lanes and self._lanes.broker.do_qsize(QUEUE) < MOST:  # type: ignore[attr-defined]  # RedisBroker's
            for lane in lanes:
                self._lanes.send(lane)

    def _tell(self, words: Sequence[str]) -> None:
        if words:
            with self._redis.pipeline(transaction=False) as pipe:
                for word in words:
                    pipe.publish(TELL, word)
                pipe.execute()

    def _listening(self) -> None:
        while not self._stopped:
            try:
                with self._redis.pubsub(ignore_subscribe_messages=True) as heard:  # type: ignore[no-untyped-call]
                    heard.subscribe(TELL)
                    self._found(down=False)
                    self._answers.word(AGAIN)  # what was said meanwhile was not heard
                    while not self._stopped:
                        message: Any = heard.get_message(timeout=LOOK_MS / 1000)
                        if message is not None:
                            self._answers.word(message["data"].decode())
            except self._trouble as exc:
                self._found(down=True, error=str(exc))
                time.sleep(AGAIN_SECONDS)

    def _found(self, *, down: bool, error: str = "") -> None:
        if down and not self._down:
            log.warning("the broker is away: work is found by looking, a few seconds later", extra={"error": error})
        elif self._down and not down:
            log.info("the broker is back")
        self._down = down
