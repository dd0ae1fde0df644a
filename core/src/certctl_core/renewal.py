"""When a certificate is to be renewed, shown as expiring and warned of, as shares of its life with floors in days.

Shares, because a certificate may live minutes or years. All moments are aware UTC.
"""

from __future__ import annotations

from datetime import datetime, timedelta

SHORT_LIFE = timedelta(days=10)
"""Below this half of the life is left for the renewal, not a third."""
EXPIRING = timedelta(days=30)
"""The longest that a certificate is shown as expiring."""
TYPICAL_LIFE_DAYS = 90
"""The life for which thresholds in days are meant; a shorter one shrinks them in proportion."""


def renew_due_at(
    not_before: datetime, not_after: datetime, *, window_days: int, ari: datetime | None = None
) -> datetime:
    """Return when to renew: at the moment picked from the CA's window, else when so much of the life is left.

    Without a moment of the CA's: ``window_days``, but at most a third of the life, half of one under ten days.

    Args:
        not_before: Start of the certificate's life.
        not_after: End of it.
        window_days: The renewal policy's window.
        ari: What ``pick_ari`` chose, if the CA offers renewal information (RFC 9773). One at or past
            ``not_after`` is of no use and passed over.
    """
    if ari is not None and ari < not_after:
        return ari
    life = not_after - not_before
    share = life / 2 if life < SHORT_LIFE else life / 3
    return not_after - min(timedelta(days=window_days), share)


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
