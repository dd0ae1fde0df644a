"""How the values of indexed columns spread in a big installation: what SQLite plans by."""

from __future__ import annotations

#: Rows of a big installation by table, and how many of them one value of an index's first column leads to.
#: SQLite knows neither on an empty file, guesses ten, and then walks through all jobs of one type.
SPREAD: dict[str, tuple[int, dict[str, int]]] = {
    "job": (
        200_000,
        {
            "status": 5_000,  # nearly all are Completed, and nobody looks for those to act on them
            "type": 60_000,
            "certificate_id": 4,
            "target_id": 400,
            "agent_id": 2_000,
        },
    ),
    "certificate": (
        100_000,
        {
            "status": 30_000,
            "environment": 30_000,
            "owner_id": 5_000,
            "team_id": 5_000,
            "issuer_id": 60_000,
            "renewal_policy_id": 60_000,
            "certificate_profile_id": 60_000,
            "common_name": 2,
        },
    ),
}


def told_to_sqlite() -> list[str]:
    """Return what tells SQLite what ANALYZE would find later on, so that plans are the same from the start."""
    told = [
        f"('{table}', '{table}_{column}_created_at_id', '{rows} {each} 1 1')"
        for table, (rows, columns) in SPREAD.items()
        for column, each in columns.items()
    ]
    into = f"INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES {', '.join(told)}"  # noqa: S608  # names and numbers
    return ["ANALYZE", into, "ANALYZE sqlite_schema"]
