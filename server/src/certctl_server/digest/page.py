"""The digest as HTML that mail programs show: tables and inline styles, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from html import escape

from certctl_server.digest.figures import Digest, Expiring

NAMES = 3
"""As many of a certificate's names are shown."""
URGENCY = ((timedelta(days=7), "#b3261e"), (timedelta(days=14), "#b35c00"))
"""Below which rest of life a row is shown in which colour."""
CALM = "#1b1b1b"
CELL = "padding:4px 12px 4px 0;text-align:left;vertical-align:top"
BODY = "font-family:sans-serif;color:#1b1b1b;max-width:60em;margin:1em auto;padding:0 1em"


def page(found: Digest) -> str:
    """Return the digest as a whole document. Every text in it that anybody chose is escaped."""
    certificates = [("All", sum(found.certificates.values())), *found.certificates.items()]
    agents = [("All", sum(found.agents.values())), *found.agents.items()]
    parts = [
        f"<h1>certctl digest</h1><p>{found.made_at:%Y-%m-%d %H:%M} UTC</p>",
        _section("Certificates", _counts(certificates)),
        _section("Jobs of the last 30 days", _counts([("Completed", found.completed), ("Failed", found.failed)])),
        _section("Agents", _counts(agents) + _counts((version or "unknown", n) for version, n in found.versions)),
        _section("Certificates that expire within 30 days", _expiring(found)),
    ]
    head = '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>certctl digest</title></head>'
    return f'{head}<body style="{BODY}">{"".join(parts)}</body></html>\n'


def _section(title: str, inner: str) -> str:
    return f"<h2>{escape(title)}</h2>{inner}"


def _counts(counts: Iterable[tuple[str, int]]) -> str:
    return _table([], [[name, str(number)] for name, number in counts])


def _expiring(found: Digest) -> str:
    if not found.expiring:
        return "<p>None.</p>"
    rows = [_row(each, found.made_at) for each in found.expiring]
    colours = [_colour(each.expires_at - found.made_at) for each in found.expiring]
    shown = "" if len(rows) == found.expiring_total else f", the first {len(rows)} of them here"
    table = _table(["Certificate", "Names", "Owner", "Status", "Expires", "Days left"], rows, colours)
    return f"<p>{found.expiring_total} in all{shown}.</p>{table}"


def _row(each: Expiring, now: datetime) -> list[str]:
    more = len(each.names) - NAMES
    names = ", ".join(each.names[:NAMES]) + (f" and {more} more" if more > 0 else "")
    left = str((each.expires_at - now).days)
    return [each.name, names, each.owner, each.status, f"{each.expires_at:%Y-%m-%d %H:%M} UTC", left]


def _colour(left: timedelta) -> str:
    return next((colour for bound, colour in URGENCY if left < bound), CALM)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], colours: Sequence[str] = ()) -> str:
    head = "".join(f'<th style="{CELL}">{escape(title)}</th>' for title in titles)
    lines = [f"<tr>{head}</tr>"] if titles else []
    for number, row in enumerate(rows):
        colour = colours[number] if colours else CALM
        cells = "".join(f'<td style="{CELL}">{escape(text)}</td>' for text in row)
        lines.append(f'<tr style="color:{colour}">{cells}</tr>')
    return f'<table style="border-collapse:collapse">{"".join(lines)}</table>'
