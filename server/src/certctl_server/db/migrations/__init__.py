"""Schema steps, oldest first, each applied once. Never change one that was released: add the next.

A step is a module with ``statements(dialect)``. Types are spelt as Piccolo's SQLite converters know them,
which PostgreSQL reads as well.
"""

from certctl_server.db.migrations import (
    m0001_first,
    m0002_alerts,
    m0003_lanes,
    m0004_rollouts,
    m0005_retention,
    m0006_policies,
    m0007_tally,
    m0008_bulk,
    m0009_access,
    m0010_audit,
    m0011_lines,
    m0012_counted,
)

STEPS = (
    m0001_first,
    m0002_alerts,
    m0003_lanes,
    m0004_rollouts,
    m0005_retention,
    m0006_policies,
    m0007_tally,
    m0008_bulk,
    m0009_access,
    m0010_audit,
    m0011_lines,
    m0012_counted,
)
