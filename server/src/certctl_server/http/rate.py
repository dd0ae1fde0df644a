"""How fast one caller may go on: a token bucket kept as one number (GCRA, ITU-T I.371)."""

from __future__ import annotations

import time
from collections.abc import Callable

PRUNE_AT = 10_000


class RateLimiter:
    """Lets each key pass ``rps`` times a second, after ``burst`` at once."""

    def __init__(self, rps: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.interval = 1 / rps
        """Seconds that one call takes out of the bucket."""
        # One part in a million, so that a caller who waits as long as it was told is let in.
        self.tolerance = burst / rps * (1 + 1e-6)
        """How many seconds' worth of calls may come at once."""
        self._clock = clock
        #: By key, when its bucket will be full again.
        self._full_at: dict[str, float] = {}
        self._prune_at = PRUNE_AT

    def wait(self, key: str) -> float:
        """Let ``key`` pass and return 0, or return the seconds after which it may."""
        now = self._clock()
        full_at = max(now, self._full_at.get(key, now)) + self.interval
        over = full_at - now - self.tolerance
        if over > 0:
            return over
        if len(self._full_at) >= self._prune_at:
            self._prune(now)
        self._full_at[key] = full_at
        return 0

    def __len__(self) -> int:
        """How many keys are remembered."""
        return len(self._full_at)

    def _prune(self, now: float) -> None:
        """Forget full buckets: they are as good as new ones."""
        self._full_at = {key: full_at for key, full_at in self._full_at.items() if full_at > now}
        self._prune_at = max(PRUNE_AT, 2 * len(self._full_at))
