"""How many there are of what, kept by triggers, and indexes over the days on which things end."""

from __future__ import annotations

from dataclasses import dataclass, field

from certctl_server.db.migrations.collation import by_code_point
from certctl_server.db.sql import Dialect


@dataclass(frozen=True, slots=True)
class Tallied:
    """A table whose rows are counted."""

    columns: tuple[str, ...]
    """Those by which it is counted: when none of them changes, no count does."""
    dimensions: dict[str, tuple[str, str]] = field(default_factory=dict)
    """By name, what is counted: value and detail, as SQL over the row ``{r}``. A value that is NULL is not counted."""
    beats: bool = False
    """Most changes change no count and concern one row: PostgreSQL then looks at rows, not at whole statements."""


CERTIFICATE = ("status", "environment", "owner_id", "team_id", "issuer_id", "certificate_profile_id")
TABLES = {
    "certificate": Tallied(CERTIFICATE, {f"certificate.{name}": (f"{{r}}.{name}", "''") for name in CERTIFICATE}),
    "job": Tallied(("type", "status"), {"job": ("{r}.type", "{r}.status")}),
    # The server's own agent is none to people.
    "agent": Tallied(
        ("id", "status", "retired_at"),
        {
            "agent": (
                "CASE WHEN {r}.id <> 'server-scanner' THEN {r}.status END",
                "CASE WHEN {r}.retired_at IS NULL THEN '' ELSE 'retired' END",
            )
        },
        beats=True,
    ),
    "discovered_certificate": Tallied(("status",), {"discovered_certificate": ("{r}.status", "''")}),
    "notification": Tallied(("status", "type"), {"notification": ("{r}.status", "{r}.type")}),
}
KEY = "dimension, value, detail"
KEPT = [
    """
    CREATE TABLE tally (
        dimension TEXT NOT NULL,
        value TEXT NOT NULL,
        detail TEXT NOT NULL,
        n BIGINT NOT NULL,
        PRIMARY KEY (dimension, value, detail))
    """,
    "CREATE INDEX tally_none ON tally (dimension) WHERE n = 0",
]
# What transactions add and take away, so that none waits for another at a row that all of them count in. Its rows live
# for half a second: without frequent vacuums their remains would soon outnumber them.
DELTA = [
    """
    CREATE TABLE tally_delta (
        dimension TEXT NOT NULL,
        value TEXT NOT NULL,
        detail TEXT NOT NULL,
        number BIGINT GENERATED ALWAYS AS IDENTITY,
        n BIGINT NOT NULL,
        PRIMARY KEY (dimension, value, detail, number))
    WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0)
    """
]
NOW = {
    "postgres": f"SELECT {KEY}, n FROM tally UNION ALL SELECT {KEY}, n FROM tally_delta",  # noqa: S608  # ours
    "sqlite": f"SELECT {KEY}, n FROM tally",  # noqa: S608  # ours
}
INDEXES = [
    "CREATE INDEX job_ended ON job (completed_at, status, type) WHERE completed_at IS NOT NULL",
    "CREATE INDEX certificate_version_created_at ON certificate_version (created_at)",
]
# Without being told, SQLite takes the index of what has ended for what waits to be proven, which is next to nothing.
TOLD_TO_SQLITE = [
    """
    INSERT INTO sqlite_stat1 (tbl, idx, stat)
    VALUES ('job', 'job_completed_at_part', '100 1'), ('job', 'job_ended', '200000 2 2 1')
    """,
    "ANALYZE sqlite_schema",
]


def _rows(tallied: Tallied, row: str, n: str) -> str:
    """What one row counts for, as SELECTs that follow each other."""
    return " UNION ALL ".join(
        f"SELECT '{name}' AS dimension, {value.format(r=row)} AS value, {detail.format(r=row)} AS detail, {n} AS n"
        for name, (value, detail) in tallied.dimensions.items()
    )


def _summed(rows: str) -> str:
    return f"SELECT {KEY}, sum(n) FROM ({rows}) AS counts WHERE value IS NOT NULL GROUP BY {KEY} HAVING sum(n) <> 0"  # noqa: S608  # ours


def _counted(table: str, tallied: Tallied) -> list[str]:
    """What a full count finds."""
    return [
        f"SELECT '{name}' AS dimension, value, detail, count(*) AS n FROM (SELECT {value.format(r='r')} AS value,"  # noqa: S608  # ours
        f" {detail.format(r='r')} AS detail FROM {table} AS r) AS counts WHERE value IS NOT NULL GROUP BY value, detail"
        for name, (value, detail) in tallied.dimensions.items()
    ]


def _views(dialect: Dialect) -> list[str]:
    counted = " UNION ALL ".join(each for table, tallied in TABLES.items() for each in _counted(table, tallied))
    return [f"CREATE VIEW tally_now AS {NOW[dialect]}", f"CREATE VIEW tally_counted AS {counted}"]


def _triggers_sqlite(table: str, tallied: Tallied) -> list[str]:
    # One writer at a time: there is no row that others would wait for.
    tail = f"ON CONFLICT ({KEY}) DO UPDATE SET n = tally.n + excluded.n"
    new, old = _rows(tallied, "NEW", "1"), _rows(tallied, "OLD", "-1")
    changed = " OR ".join(f"NEW.{column} IS NOT OLD.{column}" for column in tallied.columns)
    update = f"UPDATE OF {', '.join(tallied.columns)}"
    return [
        f"CREATE TRIGGER {table}_tally_{verb.split()[0].lower()} AFTER {verb} ON {table} {when}"
        f" BEGIN INSERT INTO tally ({KEY}, n) {_summed(rows)} {tail}; END"
        for verb, when, rows in (
            ("INSERT", "", new),
            ("DELETE", "", old),
            (update, f"WHEN {changed}", f"{new} UNION ALL {old}"),
        )
    ]


def _function(name: str, rows: str) -> str:
    into = f"INSERT INTO tally_delta ({KEY}, n) {_summed(rows)}"
    return f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {into}; RETURN NULL; END $$"


def _triggers_postgres(table: str, tallied: Tallied) -> list[str]:
    values = ", ".join(
        f"('{name}', {value.format(r='r')}, {detail.format(r='r')})"
        for name, (value, detail) in tallied.dimensions.items()
    )
    new, old = (
        f"SELECT {KEY}, {n} AS n FROM {rows} AS r CROSS JOIN LATERAL (VALUES {values}) AS d ({KEY})"  # noqa: S608  # ours
        for rows, n in (("new_rows", "1"), ("old_rows", "-1"))
    )
    both = f"{new} UNION ALL {old}"
    each = "REFERENCING {} FOR EACH STATEMENT"
    ways = {
        "insert": (new, each.format("NEW TABLE AS new_rows")),
        "delete": (old, each.format("OLD TABLE AS old_rows")),
        "update": (both, each.format("NEW TABLE AS new_rows OLD TABLE AS old_rows")),
    }
    if tallied.beats:
        changed = " OR ".join(f"NEW.{column} IS DISTINCT FROM OLD.{column}" for column in tallied.columns)
        rows = f"{_rows(tallied, 'NEW', '1')} UNION ALL {_rows(tallied, 'OLD', '-1')}"
        ways["update"] = rows, f"FOR EACH ROW WHEN ({changed})"
    return [
        statement
        for verb, (rows, when) in ways.items()
        for name in (f"{table}_tally_{verb}",)
        for statement in (
            _function(name, rows),
            f"CREATE TRIGGER {name} AFTER {verb.upper()} ON {table} {when} EXECUTE FUNCTION {name}()",
        )
    ]


def statements(dialect: Dialect) -> list[str]:
    """Return the step's statements, in order."""
    lite = dialect == "sqlite"
    triggers = _triggers_sqlite if lite else _triggers_postgres
    found = [*KEPT, *([] if lite else DELTA), *_views(dialect)]
    # With its triggers a table is locked until the end of the step: what is counted then is what they go on from.
    found += [each for table, tallied in TABLES.items() for each in triggers(table, tallied)]
    found.append(f"INSERT INTO tally ({KEY}, n) SELECT {KEY}, n FROM tally_counted")  # noqa: S608  # ours
    return by_code_point(found + INDEXES, dialect) + (TOLD_TO_SQLITE if lite else [])
