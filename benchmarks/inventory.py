"""A big installation, made by the database itself: certificates, their versions, targets, jobs and audit rows.

Per certificate: one version, one place where it is served, two finished jobs, one finding, ten audit rows.
Only ``DUE`` certificates are due for renewal, so that a server started on it has little to do at once.
"""

from __future__ import annotations

from certctl_server.db import Sql

DUE = 20
AGENTS, TARGETS, TEAMS = 100, 500, 20
CHAIN_CHARACTERS = 1600
WAITING_FOR = 1000
"""How many certificates the waiting jobs are for."""
NOW = "{after:0}"
OF_64 = "'" + "0" * 57 + "' || (1000000 + n.i)"
TABLES = ("certificate", "certificate_version", "certificate_target", "job", "audit_event", "discovered_certificate")


def _each(table: str, count: int, columns: dict[str, str], *, first: int = 1, clause: str = "") -> Sql:
    """Return the statement that inserts rows ``first`` to ``count``, their columns made by expressions."""
    names, values = ", ".join(columns), ", ".join(columns.values())
    numbers = f"WITH RECURSIVE n (i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
    return Sql(f"{numbers} INSERT INTO {table} ({names}) SELECT {values} FROM n {clause} ORDER BY n.i")


def _one_of(*words: str) -> str:
    cases = " ".join(f"WHEN {number} THEN '{word}'" for number, word in enumerate(words))
    return f"CASE n.i % {len(words)} {cases} END"


TIMES = {"created_at": "{after:n.i - 3000000}", "updated_at": "{after:n.i - 3000000}"}
REFERENCE = {
    "owner_id": f"'o-' || (n.i % {TEAMS} + 1)",
    "team_id": f"'t-' || (n.i % {TEAMS} + 1)",
    "issuer_id": "'iss-plenty'",
    "renewal_policy_id": "'rp-plenty'",
}
AGENT = f"'ag-' || (n.i % {AGENTS} + 1)"
TARGET = f"'t-' || (n.i % {TARGETS} + 1)"
LIFE = {"not_before": "{after:0 - 864000}", "not_after": "{after:n.i + 6480000}"}


def _grounds() -> list[Sql]:
    plain = {"name": "'plenty'", **TIMES}
    return [
        _each("team", TEAMS, {"id": "'t-' || n.i", "name": "'team ' || n.i", **TIMES}),
        _each(
            "owner",
            TEAMS,
            {"id": "'o-' || n.i", "name": "'owner ' || n.i", "team_id": "'t-' || n.i", **TIMES},
        ),
        _each("issuer", 1, {"id": "'iss-plenty'", "type": "'GenericCA'", "status": "'ready'", **plain}),
        _each("renewal_policy", 1, {"id": "'rp-plenty'", **plain}),
        _each(
            "agent",
            AGENTS,
            {
                "id": "'ag-' || n.i",
                "name": "'agent ' || n.i",
                "status": "'Offline'",
                "registered_at": NOW,
                **TIMES,
            },
        ),
        _each(
            "target",
            TARGETS,
            {
                "id": "'t-' || n.i",
                "name": "'target ' || n.i",
                "type": "'NGINX'",
                "agent_id": AGENT,
                "status": "'ready'",
                **TIMES,
            },
        ),
    ]


def _certificates(first: int, count: int) -> list[Sql]:
    certificate = {
        "id": "'mc-plenty-' || n.i",
        "name": "'plenty-' || n.i",
        "common_name": "'host-' || n.i || '.example.com'",
        "sans": "'[\"host-' || n.i || '.example.com\"]'",
        "environment": _one_of("production", "staging", "test", "development"),
        **REFERENCE,
        "status": "'Active'",
        "decided": "'Active'",
        "was_active": "true",
        "flip_at": "{after:n.i + 3888000}",
        "renew_due_at": f"{{after:CASE WHEN n.i <= {DUE} THEN 0 - 60 ELSE n.i + 3888000 END}}",
        "version_id": "'certver-plenty-' || n.i",
        "not_before": LIFE["not_before"],
        "expires_at": LIFE["not_after"],
        "issued_at": LIFE["not_before"],
        "serial_number": OF_64,
        "fingerprint": OF_64,
        "key_algorithm": "'ECDSA'",
        "key_size": "256",
        "deployment_state": "'served'",
        **TIMES,
    }
    version = {
        "id": "'certver-plenty-' || n.i",
        "certificate_id": "'mc-plenty-' || n.i",
        "version": "1",
        "issuer_id": "'iss-plenty'",
        "agent_id": AGENT,
        "serial_number": OF_64,
        **LIFE,
        "fingerprint_sha256": OF_64,
        "public_key_sha256": OF_64,
        "pem_chain": f"'{'x' * CHAIN_CHARACTERS}'",
        "created_at": TIMES["created_at"],
    }
    place = {
        "certificate_id": "'mc-plenty-' || n.i",
        "target_id": TARGET,
        "state": "'served'",
        "version_id": "'certver-plenty-' || n.i",
        "served_fingerprint": OF_64,
        **LIFE,
    }
    return [
        _each("certificate", count, certificate, first=first),
        _each("certificate_version", count, version, first=first),
        _each("certificate_target", count, place, first=first),
    ]


def _past(count: int) -> list[Sql]:
    """What was done: jobs, findings, audit rows, sealed already."""
    job = {
        "id": "'job-plenty-' || k.kind || n.i",
        "type": "k.kind",
        "certificate_id": "'mc-plenty-' || n.i",
        "target_id": f"CASE k.kind WHEN 'Deployment' THEN {TARGET} END",
        "agent_id": AGENT,
        "issuer_id": "'iss-plenty'",
        "version_id": "'certver-plenty-' || n.i",
        "lane": "CASE k.kind WHEN 'Issuance' THEN 'issuer:iss-plenty' ELSE '' END",
        "status": "'Completed'",
        "scheduled_at": TIMES["created_at"],
        "completed_at": TIMES["created_at"],
        "created_at": TIMES["created_at"],
        "verification_status": "CASE k.kind WHEN 'Deployment' THEN 'success' ELSE 'pending' END",
    }
    finding = {
        "id": "'dc-plenty-' || n.i",
        "fingerprint_sha256": OF_64,
        "source_path": "'/etc/ssl/' || n.i || '.pem'",
        "agent_id": AGENT,
        "status": _one_of("Unmanaged", "Managed", "Dismissed"),
        "first_seen_at": TIMES["created_at"],
        "last_seen_at": TIMES["created_at"],
        **TIMES,
    }
    event = {
        "id": "'audit-plenty-' || n.i",
        "timestamp": "{after:n.i - 3000000}",
        "actor": f"'person-' || (n.i % {TEAMS})",
        "actor_type": "'User'",
        "action": _one_of("certificate_created", "renewal_triggered", "job_running", "certificate_issued"),
        "resource_type": "'certificate'",
        "resource_id": f"'mc-plenty-' || (n.i % {count} + 1)",
    }
    kinds = "CROSS JOIN (SELECT 'Issuance' AS kind UNION ALL SELECT 'Deployment') k"
    return [
        _each("job", count, job, clause=kinds),
        _each("discovered_certificate", count, finding),
        _each("audit_event", 10 * count, event),
        Sql("UPDATE audit_event SET sequence = number, previous_hash = id, hash = id"),  # none comes sealed
    ]


def statements(certificates: int) -> list[Sql]:
    """Return what fills a migrated database with so many certificates and all that belongs to them, in order."""
    return [*_grounds(), *_certificates(1, certificates), *_past(certificates)]


def more(first: int, certificates: int) -> list[Sql]:
    """Return what lets such a database grow on, from ``first`` to ``certificates``: all but what was done for them."""
    return _certificates(first, certificates)


def due(first: int, last: int) -> list[Sql]:
    """Return what lets the certificates of these numbers be due for renewal, and the versions they have."""
    numbers = f"WITH RECURSIVE n (i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i < {last})"
    ids = f"IN ({numbers} SELECT 'mc-plenty-' || n.i FROM n)"
    life = "not_before = {after:0 - 6480000}, %s = {after:864000}"
    return [
        Sql(f"UPDATE certificate_version SET {life % 'not_after'} WHERE certificate_id {ids}"),
        Sql(f"UPDATE certificate SET {life % 'expires_at'}, renew_due_at = {{after:0 - 60}} WHERE id {ids}"),
    ]


def varied(first: int, last: int) -> Sql:
    """Return what lets the certificates of these numbers end all over the next 400 days, some of them in other states.

    Of twenty one is expiring and one revoked.
    """
    return Sql(
        f"WITH RECURSIVE n (i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i < {last})"
        " UPDATE certificate SET expires_at = {after:(1 + n.i % 400) * 86400},"
        " status = CASE n.i % 20 WHEN 0 THEN 'Expiring' WHEN 10 THEN 'Revoked' ELSE 'Active' END"
        " FROM n WHERE certificate.id = 'mc-plenty-' || n.i"
    )


def waiting(lane: str, count: int) -> list[Sql]:
    """Return what lets so many jobs of the lane be due for a worker."""
    job = {
        "id": f"'job-{lane}-' || n.i",
        "type": "'Renewal'",
        "certificate_id": f"'mc-plenty-' || (n.i % {WAITING_FOR} + 1)",
        "issuer_id": "'iss-plenty'",
        "lane": f"'{lane}'",
        "place": f"'{lane}|' || n.i",
        "status": "'Pending'",
        "due_at": "{after:n.i - 400000}",
        "scheduled_at": TIMES["created_at"],
        "created_at": TIMES["created_at"],
    }
    return [Sql(f"INSERT INTO lane (name) VALUES ('{lane}')"), _each("job", count, job)]
