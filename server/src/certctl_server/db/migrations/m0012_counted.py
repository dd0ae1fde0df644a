"""Lists of certificates say how many match; under several filters at once, this index alone is counted.

PostgreSQL keeps equal keys once, so that it is a hundredth of the table. SQLite would store each of them anew.
"""

from __future__ import annotations

from certctl_server.db.migrations.m0007_tally import CERTIFICATE
from certctl_server.db.sql import Dialect

#: The one with most values first.
COLUMNS = sorted(CERTIFICATE, key=lambda name: name != "owner_id")


def statements(dialect: Dialect) -> list[str]:
    """Return the step's statements, in order."""
    if dialect == "sqlite":
        return []
    return [f"CREATE INDEX certificate_counted ON certificate ({', '.join(COLUMNS)})"]
