"""The first schema. All text is TEXT: lengths are checked where it comes in, and SQLite would not check them."""

from __future__ import annotations

from certctl_server.db.migrations.collation import by_code_point
from certctl_server.db.migrations.spread import told_to_sqlite
from certctl_server.db.sql import Dialect

NAMED = "id TEXT PRIMARY KEY, name TEXT NOT NULL"
TIMES = "created_at TIMESTAMPTZ NOT NULL, updated_at TIMESTAMPTZ NOT NULL"
IDENTITY = {
    "postgres": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    "sqlite": "INTEGER PRIMARY KEY AUTOINCREMENT",
}


def _text(name: str, default: str = "") -> str:
    return f"{name} TEXT NOT NULL DEFAULT '{default}'"


def _refers(name: str, table: str, *, optional: bool = False) -> str:
    return f"{name} TEXT {'NULL' if optional else 'NOT NULL'} REFERENCES {table} (id) ON DELETE RESTRICT"


def _table(name: str, *columns: str) -> str:
    return f"CREATE TABLE {name} ({', '.join(columns)})"


def _index(table: str, *columns: str, where: str = "", unique: bool = False) -> str:
    name = f"{table}_{'_'.join(column.split()[0] for column in columns)}" + ("_part" if where else "")
    kind = "UNIQUE INDEX" if unique else "INDEX"
    return f"CREATE {kind} {name} ON {table} ({', '.join(columns)})" + (f" WHERE {where}" if where else "")


PEOPLE = [
    _table("team", NAMED, _text("description"), _text("email"), TIMES),
    _table("owner", NAMED, _text("email"), _refers("team_id", "team"), TIMES),
]
RULES = [
    _table(
        "certificate_profile",
        NAMED,
        _text("description"),
        _text("allowed_key_algorithms", "[]"),
        "max_ttl_seconds BIGINT NOT NULL DEFAULT 0",
        _text("allowed_ekus", "[]"),
        _text("required_san_patterns", "[]"),
        _text("spiffe_uri_pattern"),
        "allow_short_lived BOOLEAN NOT NULL DEFAULT false",
        "no_rev_avail BOOLEAN NOT NULL DEFAULT false",
        "include_common_name BOOLEAN NOT NULL DEFAULT true",
        "requires_approval BOOLEAN NOT NULL DEFAULT false",
        "enabled BOOLEAN NOT NULL DEFAULT true",
        TIMES,
    ),
    _table(
        "renewal_policy",
        NAMED,
        "renewal_window_days BIGINT NOT NULL DEFAULT 30",
        "auto_renew BOOLEAN NOT NULL DEFAULT true",
        "max_retries BIGINT NOT NULL DEFAULT 3",
        "retry_interval_seconds BIGINT NOT NULL DEFAULT 3600",
        _text("alert_thresholds_days", "[30,14,7,0]"),
        _refers("certificate_profile_id", "certificate_profile", optional=True),
        "requires_approval BOOLEAN NOT NULL DEFAULT false",
        _text("maintenance_windows", "[]"),
        "rollout TEXT NULL",
        TIMES,
    ),
]
CONNECTED = [
    *(
        _table(
            table,
            NAMED,
            _text("type"),
            _text("config", "{}"),
            "config_version BIGINT NOT NULL DEFAULT 1",
            _text("config_warnings", "[]"),
            "enabled BOOLEAN NOT NULL DEFAULT true",
            _text("status"),
            "last_tested_at TIMESTAMPTZ NULL",
            *more,
            TIMES,
        )
        for table, more in {
            "issuer": ["limits TEXT NULL"],
            "notifier": [_text("events", "[]")],
        }.items()
    ),
    _table(
        "connector_memory",
        "connector_id TEXT NOT NULL",
        "name TEXT NOT NULL",
        "value TEXT NOT NULL",
        "PRIMARY KEY (connector_id, name)",
    ),
]
AGENTS = [
    _table(
        "agent",
        NAMED,
        _text("hostname"),
        _text("status"),
        "last_heartbeat_at TIMESTAMPTZ NULL",
        "registered_at TIMESTAMPTZ NOT NULL",
        _text("os"),
        _text("architecture"),
        _text("ip_address"),
        _text("version"),
        "capabilities TEXT NULL",
        "clock_offset_ms BIGINT NULL",
        _text("boot_id"),
        "retired_at TIMESTAMPTZ NULL",
        _text("retired_reason"),
        TIMES,
    ),
    _table(
        "target",
        NAMED,
        _text("type"),
        _refers("agent_id", "agent", optional=True),
        _text("config", "{}"),
        "config_version BIGINT NOT NULL DEFAULT 1",
        _text("config_warnings", "[]"),
        "enabled BOOLEAN NOT NULL DEFAULT true",
        _text("status"),
        TIMES,
    ),
    _index("target", "agent_id"),
    "CREATE UNIQUE INDEX target_agent_name ON target (agent_id, name)",
]
KEYS = [
    _table(
        "api_key",
        NAMED,
        _text("role"),
        "agent_id TEXT NULL REFERENCES agent (id) ON DELETE RESTRICT",
        _text("prefix"),
        "digest TEXT NOT NULL",
        "created_at TIMESTAMPTZ NOT NULL",
        "expires_at TIMESTAMPTZ NULL",
        "last_used_at TIMESTAMPTZ NULL",
        "replaces TEXT NULL",
        "ended_at TIMESTAMPTZ NULL",
    ),
    _index("api_key", "digest", unique=True),
    _index("api_key", "agent_id"),
    _index("api_key", "replaces"),
    _table(
        "enrolment_token",
        NAMED,
        "digest TEXT NOT NULL",
        "max_uses BIGINT NOT NULL DEFAULT 1",
        "uses BIGINT NOT NULL DEFAULT 0",
        "expires_at TIMESTAMPTZ NOT NULL",
        "created_at TIMESTAMPTZ NOT NULL",
        _text("created_by"),
        "last_used_at TIMESTAMPTZ NULL",
    ),
    _index("enrolment_token", "digest", unique=True),
    _table("setting", "name TEXT PRIMARY KEY", "value TEXT NOT NULL"),
]
CERTIFICATES = [
    _table(
        "certificate",
        NAMED,
        _text("common_name"),
        _text("sans", "[]"),
        _text("environment"),
        _refers("owner_id", "owner"),
        _refers("team_id", "team"),
        _refers("issuer_id", "issuer"),
        _refers("renewal_policy_id", "renewal_policy"),
        _refers("certificate_profile_id", "certificate_profile", optional=True),
        _text("tags", "{}"),
        "status TEXT NOT NULL",
        "decided TEXT NOT NULL",
        "flip_at TIMESTAMPTZ NULL",
        "renew_due_at TIMESTAMPTZ NULL",
        "was_active BOOLEAN NOT NULL DEFAULT false",
        "version_id TEXT NULL",
        "expires_at TIMESTAMPTZ NULL",
        "not_before TIMESTAMPTZ NULL",
        "issued_at TIMESTAMPTZ NULL",
        _text("serial_number"),
        _text("fingerprint"),
        _text("key_algorithm"),
        "key_size BIGINT NOT NULL DEFAULT 0",
        "last_renewal_at TIMESTAMPTZ NULL",
        "last_deployment_at TIMESTAMPTZ NULL",
        "revoked_at TIMESTAMPTZ NULL",
        _text("revocation_reason"),
        _text("revocation_state"),
        "archived_at TIMESTAMPTZ NULL",
        "deployment_state TEXT NOT NULL DEFAULT 'none'",
        _text("last_error"),
        TIMES,
    ),
    _index("certificate", "flip_at"),
    _index("certificate", "renew_due_at"),
    _index("certificate", "expires_at", "id"),
    _index("certificate", "updated_at", "id"),
    *(
        _index("certificate", column, "created_at", "id")
        for column in (
            "status",
            "environment",
            "owner_id",
            "team_id",
            "issuer_id",
            "renewal_policy_id",
            "certificate_profile_id",
            "common_name",
        )
    ),
    _table(
        "certificate_version",
        "id TEXT PRIMARY KEY",
        _refers("certificate_id", "certificate"),
        "version BIGINT NOT NULL",
        _refers("issuer_id", "issuer"),
        _text("agent_id"),
        _text("job_id"),
        _text("serial_number"),
        "not_before TIMESTAMPTZ NOT NULL",
        "not_after TIMESTAMPTZ NOT NULL",
        _text("fingerprint_sha256"),
        _text("public_key_sha256"),
        _text("pem_chain"),
        _text("csr_pem"),
        _text("key_algorithm"),
        "key_size BIGINT NOT NULL DEFAULT 0",
        _text("reference"),
        "created_at TIMESTAMPTZ NOT NULL",
        "revoked_at TIMESTAMPTZ NULL",
        _text("revocation_reason"),
    ),
    _index("certificate_version", "certificate_id", "version", unique=True),
    _index("certificate_version", "fingerprint_sha256", unique=True),
    _index("certificate_version", "issuer_id", "serial_number", unique=True),
    _index("certificate_version", "public_key_sha256"),
    _table(
        "certificate_target",
        _refers("certificate_id", "certificate"),
        _refers("target_id", "target"),
        "position BIGINT NOT NULL DEFAULT 0",
        "state TEXT NOT NULL DEFAULT 'none'",
        "version_id TEXT NULL",
        _text("served_fingerprint"),
        "not_before TIMESTAMPTZ NULL",
        "not_after TIMESTAMPTZ NULL",
        "failures BIGINT NOT NULL DEFAULT 0",
        _text("last_job_id"),
        "last_deployed_at TIMESTAMPTZ NULL",
        "PRIMARY KEY (certificate_id, target_id)",
    ),
    _index("certificate_target", "target_id"),
    _table(
        "revocation",
        "id TEXT PRIMARY KEY",
        _refers("issuer_id", "issuer"),
        _text("serial_number"),
        _refers("certificate_id", "certificate"),
        _text("version_id"),
        _text("reason"),
        "revoked_at TIMESTAMPTZ NOT NULL",
        "state TEXT NOT NULL",
        "confirmed_at TIMESTAMPTZ NULL",
    ),
    _index("revocation", "issuer_id", "serial_number", unique=True),
    _index("revocation", "certificate_id"),
    _table("blocked_key", "public_key_sha256 TEXT PRIMARY KEY", _text("reason"), "created_at TIMESTAMPTZ NOT NULL"),
]
JOBS = [
    _table(
        "lane",
        "name TEXT PRIMARY KEY",
        "concurrency BIGINT NOT NULL DEFAULT 25",
        "tokens BIGINT NULL",
        "circuit_until TIMESTAMPTZ NULL",
    ),
    _table(
        "job",
        "id TEXT PRIMARY KEY",
        "type TEXT NOT NULL",
        _refers("certificate_id", "certificate", optional=True),
        "target_id TEXT NULL",
        "agent_id TEXT NULL",
        "issuer_id TEXT NULL",
        "version_id TEXT NULL",
        _text("lane"),
        "status TEXT NOT NULL",
        "place TEXT NULL",
        "priority BIGINT NOT NULL DEFAULT 5",
        "due_at TIMESTAMPTZ NULL",
        "offer_at TIMESTAMPTZ NULL",
        _text("owner"),
        "fence BIGINT NOT NULL DEFAULT 0",
        "beat BIGINT NOT NULL DEFAULT 0",
        "lease_until TIMESTAMPTZ NULL",
        "attempts BIGINT NOT NULL DEFAULT 0",
        "failures BIGINT NOT NULL DEFAULT 0",
        "crashes BIGINT NOT NULL DEFAULT 0",
        "max_attempts BIGINT NOT NULL DEFAULT 3",
        _text("last_error"),
        "next_retry_at TIMESTAMPTZ NULL",
        _text("requested_by"),
        _text("request", "{}"),
        _text("result", "{}"),
        _text("run_state", "{}"),
        _text("csr_pem"),
        _text("csr_sha256"),
        _text("traceparent"),
        "scheduled_at TIMESTAMPTZ NOT NULL",
        "started_at TIMESTAMPTZ NULL",
        "completed_at TIMESTAMPTZ NULL",
        "created_at TIMESTAMPTZ NOT NULL",
        "verification_status TEXT NOT NULL DEFAULT 'pending'",
        "verified_at TIMESTAMPTZ NULL",
        _text("verification_error"),
        _text("verification_fingerprint"),
    ),
    _index("job", "place", unique=True),
    "CREATE INDEX job_due ON job (lane, priority, due_at, id) WHERE due_at IS NOT NULL",
    "CREATE INDEX job_due_any ON job (due_at) WHERE due_at IS NOT NULL",
    "CREATE INDEX job_running ON job (lane) WHERE status = 'Running'",
    "CREATE INDEX job_leased ON job (lease_until) WHERE lease_until IS NOT NULL",
    "CREATE INDEX job_owner ON job (owner) WHERE lease_until IS NOT NULL",
    "CREATE INDEX job_offer ON job (agent_id, offer_at, id) WHERE offer_at IS NOT NULL",
    _index(
        "job",
        "completed_at",
        where="type = 'Deployment' AND status = 'Completed' AND verification_status = 'pending'",
    ),
    "CREATE INDEX job_next_retry ON job (next_retry_at) WHERE next_retry_at IS NOT NULL",
    _index("job", "created_at", "id"),
    *(
        _index("job", column, "created_at", "id")
        for column in (
            "status",
            "type",
            "certificate_id",
            "target_id",
            "agent_id",
        )
    ),
    _table(
        "intent",
        "job_id TEXT NOT NULL REFERENCES job (id) ON DELETE RESTRICT",
        "number BIGINT NOT NULL",
        "issuer_id TEXT NOT NULL",
        "certificate_id TEXT NOT NULL",
        "csr_sha256 TEXT NOT NULL",
        "public_key_sha256 TEXT NOT NULL",
        "status TEXT NOT NULL",
        _text("reason"),
        _text("reference"),
        "version_id TEXT NULL",
        "created_at TIMESTAMPTZ NOT NULL",
        "settled_at TIMESTAMPTZ NULL",
        "PRIMARY KEY (job_id, number)",
    ),
    _index("intent", "public_key_sha256"),
    # What an agent sent before there was an order for it.
    _table(
        "kept_csr",
        "agent_id TEXT NOT NULL REFERENCES agent (id) ON DELETE CASCADE",
        "csr_sha256 TEXT NOT NULL",
        "csr_pem TEXT NOT NULL",
        "names_sha256 TEXT NOT NULL",
        "public_key_sha256 TEXT NOT NULL",
        "key_algorithm TEXT NOT NULL",
        "key_size INTEGER NOT NULL",
        "until TIMESTAMPTZ NOT NULL",
        "PRIMARY KEY (agent_id, csr_sha256)",
    ),
    # The key in the file of an agent that keeps one per certificate.
    _table(
        "agent_key",
        "agent_id TEXT NOT NULL REFERENCES agent (id) ON DELETE CASCADE",
        "certificate_id TEXT NOT NULL REFERENCES certificate (id) ON DELETE CASCADE",
        "public_key_sha256 TEXT NOT NULL",
        "PRIMARY KEY (agent_id, certificate_id)",
    ),
    _table(
        "lease",
        "name TEXT PRIMARY KEY",
        _text("owner"),
        "epoch BIGINT NOT NULL DEFAULT 0",
        "beat BIGINT NOT NULL DEFAULT 0",
        "lease_until TIMESTAMPTZ NULL",
    ),
    _table(
        "loop_beat",
        "name TEXT PRIMARY KEY",
        "started_at TIMESTAMPTZ NULL",
        "finished_at TIMESTAMPTZ NULL",
        _text("last_error"),
    ),
]
NOTICES = [
    _table(
        "notification",
        "id TEXT PRIMARY KEY",
        "type TEXT NOT NULL",
        "certificate_id TEXT NULL",
        "notifier_id TEXT NULL",
        _text("channel"),
        _text("recipient"),
        _text("subject"),
        _text("message"),
        _text("severity"),
        _text("incident"),
        "occurrence TEXT NOT NULL",
        "status TEXT NOT NULL",
        _text("error"),
        "retry_count BIGINT NOT NULL DEFAULT 0",
        "next_retry_at TIMESTAMPTZ NULL",
        "sent_at TIMESTAMPTZ NULL",
        "created_at TIMESTAMPTZ NOT NULL",
    ),
    _index("notification", "occurrence", unique=True),
    _index("notification", "created_at", "id"),
    _index("notification", "certificate_id", "created_at", "id"),
]
DISCOVERY = [
    _table(
        "discovery_scan",
        "id TEXT PRIMARY KEY",
        _refers("agent_id", "agent"),
        _text("directories", "[]"),
        "certificates_found BIGINT NOT NULL DEFAULT 0",
        "certificates_new BIGINT NOT NULL DEFAULT 0",
        "errors_count BIGINT NOT NULL DEFAULT 0",
        "scan_duration_ms BIGINT NOT NULL DEFAULT 0",
        "started_at TIMESTAMPTZ NOT NULL",
        "completed_at TIMESTAMPTZ NULL",
    ),
    _index("discovery_scan", "agent_id", "started_at", "id"),
    _index("discovery_scan", "started_at", "id"),
    _table(
        "discovered_certificate",
        "id TEXT PRIMARY KEY",
        "fingerprint_sha256 TEXT NOT NULL",
        _text("common_name"),
        _text("sans", "[]"),
        _text("serial_number"),
        _text("issuer_dn"),
        _text("subject_dn"),
        "not_before TIMESTAMPTZ NULL",
        "not_after TIMESTAMPTZ NULL",
        _text("key_algorithm"),
        "key_size BIGINT NOT NULL DEFAULT 0",
        "is_ca BOOLEAN NOT NULL DEFAULT false",
        _text("pem_data"),
        "source_path TEXT NOT NULL",
        _text("source_format"),
        _refers("agent_id", "agent"),
        "discovery_scan_id TEXT NULL",
        "managed_certificate_id TEXT NULL",
        "status TEXT NOT NULL",
        "first_seen_at TIMESTAMPTZ NOT NULL",
        "last_seen_at TIMESTAMPTZ NOT NULL",
        "dismissed_at TIMESTAMPTZ NULL",
        TIMES,
    ),
    _index("discovered_certificate", "fingerprint_sha256", "agent_id", "source_path", unique=True),
    _index("discovered_certificate", "last_seen_at", "id"),
    *(_index("discovered_certificate", column, "last_seen_at", "id") for column in ("status", "agent_id")),
]
# Names are unique but for targets, whose names are their agent's; certificates' too, so lists sort by one index.
LISTED = ("team", "owner", "certificate_profile", "renewal_policy", "issuer", "notifier", "agent", "certificate")
LISTS = [
    *(_index(table, "created_at", "id") for table in (*LISTED, "target", "api_key", "enrolment_token")),
    *(_index(table, "name", unique=True) for table in LISTED),
    _index("owner", "team_id"),
    _index("renewal_policy", "certificate_profile_id"),
]


def _audit(dialect: Dialect) -> list[str]:
    tables = [
        _table(
            "audit_event",
            f"number {IDENTITY[dialect]}",
            "id TEXT NOT NULL",
            "timestamp TIMESTAMPTZ NOT NULL",
            _text("actor"),
            _text("actor_type"),
            _text("action"),
            _text("resource_type"),
            _text("resource_id"),
            _text("details", "{}"),
            _text("request_id"),
            "sequence BIGINT NULL",
            "previous_hash TEXT NULL",
            "hash TEXT NULL",
        ),
        _index("audit_event", "id", unique=True),
        _index("audit_event", "sequence", unique=True),
        "CREATE INDEX audit_event_unsealed ON audit_event (number) WHERE sequence IS NULL",
        _index("audit_event", "timestamp", "id"),
        *(_index("audit_event", column, "timestamp", "id") for column in ("resource_id", "actor", "action")),
        _table(
            "audit_checkpoint",
            "sequence BIGINT PRIMARY KEY",
            "hash TEXT NOT NULL",
            "signature TEXT NOT NULL",
            "created_at TIMESTAMPTZ NOT NULL",
        ),
    ]
    return tables + (_append_only_postgres() if dialect == "postgres" else _append_only_sqlite())


STORED = (
    "number",
    "id",
    "timestamp",
    "actor",
    "actor_type",
    "action",
    "resource_type",
    "resource_id",
    "details",
    "request_id",
)


def _append_only_postgres() -> list[str]:
    new, old = (", ".join(f"{row}.{column}" for column in STORED) for row in ("new", "old"))
    return [
        f"""
        CREATE FUNCTION audit_event_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF tg_op = 'UPDATE' THEN
                IF old.sequence IS NULL AND new.sequence IS NOT NULL AND ({new}) IS NOT DISTINCT FROM ({old}) THEN
                    RETURN new;
                END IF;
            END IF;
            RAISE EXCEPTION 'the audit trail is append-only';
        END $$
        """,
        (
            "CREATE TRIGGER audit_event_rows BEFORE UPDATE OR DELETE ON audit_event"
            " FOR EACH ROW EXECUTE FUNCTION audit_event_append_only()"
        ),
        (
            "CREATE TRIGGER audit_event_whole BEFORE TRUNCATE ON audit_event"
            " FOR EACH STATEMENT EXECUTE FUNCTION audit_event_append_only()"
        ),
    ]


def _append_only_sqlite() -> list[str]:
    refuse = "BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END"
    changed = " OR ".join(f"NEW.{column} IS NOT OLD.{column}" for column in STORED)
    # OR REPLACE removes whatever is in its way without firing a trigger for that row.
    taken = "EXISTS (SELECT 1 FROM audit_event WHERE {0})"
    same = taken.format("number = NEW.number OR id = NEW.id")
    place = taken.format("sequence = NEW.sequence AND number <> NEW.number")
    return [
        f"CREATE TRIGGER audit_event_kept BEFORE DELETE ON audit_event {refuse}",
        (
            "CREATE TRIGGER audit_event_new BEFORE INSERT ON audit_event"
            f" WHEN NEW.sequence IS NOT NULL OR {same} {refuse}"
        ),
        (
            "CREATE TRIGGER audit_event_sealed_once BEFORE UPDATE ON audit_event"
            f" WHEN OLD.sequence IS NOT NULL OR NEW.sequence IS NULL OR {changed} OR {place} {refuse}"
        ),
    ]


def statements(dialect: Dialect) -> list[str]:
    """Return what makes the schema, in order."""
    found = [
        *PEOPLE,
        *RULES,
        *CONNECTED,
        *AGENTS,
        *KEYS,
        *CERTIFICATES,
        *JOBS,
        *NOTICES,
        *DISCOVERY,
        *LISTS,
        *_audit(dialect),
    ]
    return by_code_point(found, dialect) + (told_to_sqlite() if dialect == "sqlite" else [])
