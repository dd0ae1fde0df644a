"""Audit rows leave by a signed archive only, and neither checkpoints nor the records of archives change."""

from __future__ import annotations

from certctl_server.db.migrations.collation import by_code_point
from certctl_server.db.migrations.m0001_first import STORED
from certctl_server.db.sql import Dialect

ARCHIVES = [
    """
    CREATE TABLE audit_archive (
        last_sequence BIGINT PRIMARY KEY,
        first_sequence BIGINT NOT NULL,
        hash TEXT NOT NULL,
        trailer TEXT NOT NULL,
        file TEXT NOT NULL,
        created_at TIMESTAMPTZ NOT NULL)
    """
]
REFUSED = "the audit trail is append-only"
KEPT = ("audit_checkpoint", "audit_archive")
COVERED = "SELECT max(last_sequence) FROM audit_archive"
#: An archive goes on where the last one ended, up to a row that is there and that a checkpoint signs.
FITS = f"""
    NEW.first_sequence = coalesce(({COVERED}), 0) + 1 AND NEW.last_sequence >= NEW.first_sequence
    AND EXISTS (SELECT 1 FROM audit_checkpoint c JOIN audit_event e ON e.sequence = c.sequence AND e.hash = c.hash
        WHERE c.sequence = NEW.last_sequence AND c.hash = NEW.hash)
    """  # noqa: S608  # ours


def _postgres() -> list[str]:
    new, old = (", ".join(f"{row}.{column}" for column in STORED) for row in ("new", "old"))
    return [
        f"""
        CREATE OR REPLACE FUNCTION audit_event_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF tg_op = 'UPDATE' THEN
                IF old.sequence IS NULL AND new.sequence IS NOT NULL AND new.previous_hash IS NOT NULL
                    AND new.hash IS NOT NULL AND ({new}) IS NOT DISTINCT FROM ({old}) THEN
                    RETURN new;
                END IF;
            ELSIF tg_op = 'DELETE' THEN
                IF old.sequence <= ({COVERED}) THEN
                    RETURN old;
                END IF;
            END IF;
            RAISE EXCEPTION '{REFUSED}';
        END $$
        """,  # ours
        # The function that is there raises for it: none comes sealed.
        (
            "CREATE TRIGGER audit_event_new BEFORE INSERT ON audit_event FOR EACH ROW"
            " WHEN (new.sequence IS NOT NULL) EXECUTE FUNCTION audit_event_append_only()"
        ),
        f"""
        CREATE FUNCTION audit_kept() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '{REFUSED}';
        END $$
        """,
        *(
            f"CREATE TRIGGER {table}_{name} BEFORE {events} ON {table} FOR EACH {each} EXECUTE FUNCTION audit_kept()"
            for table in KEPT
            for name, events, each in (("rows", "UPDATE OR DELETE", "ROW"), ("whole", "TRUNCATE", "STATEMENT"))
        ),
        f"""
        CREATE FUNCTION audit_archive_fits() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF {FITS} THEN
                RETURN new;
            END IF;
            RAISE EXCEPTION '{REFUSED}';
        END $$
        """,
        (
            "CREATE TRIGGER audit_archive_new BEFORE INSERT ON audit_archive"
            " FOR EACH ROW EXECUTE FUNCTION audit_archive_fits()"
        ),
    ]


def _sqlite() -> list[str]:
    refuse = f"BEGIN SELECT RAISE(ABORT, '{REFUSED}'); END"
    changed = " OR ".join(f"NEW.{column} IS NOT OLD.{column}" for column in STORED)
    taken = "EXISTS (SELECT 1 FROM audit_event WHERE sequence = NEW.sequence AND number <> NEW.number)"
    missing = " OR ".join(f"NEW.{column} IS NULL" for column in ("sequence", "previous_hash", "hash"))
    return [
        "DROP TRIGGER audit_event_kept",
        (
            "CREATE TRIGGER audit_event_kept BEFORE DELETE ON audit_event"
            f" WHEN OLD.sequence IS NULL OR OLD.sequence > coalesce(({COVERED}), 0) {refuse}"
        ),
        "DROP TRIGGER audit_event_sealed_once",
        (
            "CREATE TRIGGER audit_event_sealed_once BEFORE UPDATE ON audit_event"
            f" WHEN OLD.sequence IS NOT NULL OR {missing} OR {changed} OR {taken} {refuse}"
        ),
        *(
            f"CREATE TRIGGER {table}_{name} BEFORE {event} ON {table} {refuse}"
            for table in KEPT
            for name, event in (("fixed", "UPDATE"), ("kept", "DELETE"))
        ),
        # OR REPLACE would remove what is in its way without firing a trigger; two sealers may write the same one.
        (
            "CREATE TRIGGER audit_checkpoint_new BEFORE INSERT ON audit_checkpoint"
            " WHEN EXISTS (SELECT 1 FROM audit_checkpoint WHERE sequence = NEW.sequence)"
            " BEGIN SELECT RAISE(IGNORE); END"
        ),
        f"CREATE TRIGGER audit_archive_new BEFORE INSERT ON audit_archive WHEN NOT ({FITS}) {refuse}",
    ]


def statements(dialect: Dialect) -> list[str]:
    """Return the step's statements, in order."""
    return by_code_point(ARCHIVES, dialect) + (_postgres() if dialect == "postgres" else _sqlite())
