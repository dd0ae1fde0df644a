"""When a certificate is to be renewed, shown as expiring and warned of, as shares of its life with floors in days.

Shares, because a certificate may live minutes or years. All moments are aware UTC.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from hashlib import sha256

SHORT_LIFE = timedelta(days=10)
"""Below this half of the life is left for the renewal, not a third."""
EXPIRING = timedelta(days=30)
"""The longest that a certificate is shown as expiring."""
TYPICAL_LIFE_DAYS = 90
"""The life for which thresholds in days are meant; a shorter one shrinks them in proportion."""
SPREAD = 0.1
"""The part of what is left for the renewal by which renewals are spread, towards the past."""
LEAST_SPREAD_LEFT = timedelta(hours=1)
"""Where less is left for the renewal nothing is spread: lives of minutes are renewed when half of them is over."""


def renew_due_at(
    not_before: datetime, not_after: datetime, *, window_days: int, ari: datetime | None = None, spread: float = 0.0
) -> datetime:
    """Return when to renew: at the moment picked from the CA's window, else when so much of the life is left.

    Without a moment of the CA's: ``window_days``, but at most a third of the life, half of one under ten days.

    Certificates that were issued together would all be due in the same minute, and their CA and targets would feel
    it once in each of their lives. ``spread`` moves the moment back by up to a tenth of what is left for the
    renewal, and never ahead: three days for a life of 90, so that ten thousand of one minute become 140 an hour. A
    tenth costs little of a life that was paid for, and whole hours from a life of five days on.

    Args:
        not_before: Start of the certificate's life.
        not_after: End of it.
        window_days: The renewal policy's window.
        ari: What ``pick_ari`` chose, if the CA offers renewal information (RFC 9773). One at or past
            ``not_after`` is of no use and passed over. It is not spread: the CA has done so.
        spread: From 0 to below 1, as ``spread_of`` returns it.
    """
    if ari is not None and ari < not_after:
        return ari
    life = not_after - not_before
    share = life / 2 if life < SHORT_LIFE else life / 3
    left = min(timedelta(days=window_days), share)
    return not_after - (left if left < LEAST_SPREAD_LEFT else left * (1 + SPREAD * spread))


def spread_of(name: str) -> float:
    """Return a number from 0 to below 1 that is always the same for ``name`` and tells nothing of those beside it."""
    return int.from_bytes(sha256(name.encode()).digest()[:6]) / (1 << 48)


def expiring_at(not_before: datetime, not_after: datetime) -> datetime:
    """Return when the certificate starts to be shown as expiring: 30 days or a third of its life before the end."""
    return not_after - min(EXPIRING, (not_after - not_before) / 3)


def alert_at(not_before: datetime, not_after: datetime, threshold_days: int) -> datetime:
    """Return when the alert of this threshold applies: so many days before the end, fewer for a life under 90 days."""
    life = not_after - not_before
    return not_after - min(timedelta(days=threshold_days), life * threshold_days / TYPICAL_LIFE_DAYS)


def pick_ari(window_start: datetime, window_end: datetime, now: datetime, fraction: float) -> datetime:
    """Return the moment in the CA's window at which to renew (RFC 9773 section 4.2); ``now`` if all of it is past.

    Args:
        window_start: Start of the suggested window.
        window_end: End of it.
        now: The present.
        fraction: A uniform random number from 0 to 1; draw once for each window and keep the result.

    Raises:
        ValueError: the window does not end after it starts, so the CA's answer is to be ignored.
    """
    if window_end <= window_start:
        raise ValueError("the CA suggests a renewal window that does not end after it starts")
    if window_end <= now:
        return now
    return window_start + (window_end - window_start) * fraction
