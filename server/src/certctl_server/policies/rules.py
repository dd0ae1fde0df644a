"""The rules that are enabled, as core holds certificates against them; and what clients may say of one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from certctl_core.policy import Rule, Severity, TermsError, read_terms, renamed

from certctl_server import db

ENABLED = "SELECT id, name, type, config, severity FROM policy_rule WHERE enabled"
RULES = db.Sql(f"{ENABLED} ORDER BY id")
# With the open violations of some certificates, told apart by their certificate: one round trip for both.
BOOK = db.Sql(
    f"""
    SELECT '' AS certificate_id, '' AS violation_id, '' AS message, rule.* FROM ({ENABLED}) AS rule
    UNION ALL SELECT certificate_id, id, message, rule_id, '', '', '', severity FROM policy_violation
    WHERE certificate_id IN ({{ids:$1}}) AND resolved_at IS NULL
    """  # noqa: S608  # ours
)


@dataclass(slots=True)
class Book:
    """The rules, and which violations of some certificates are open by now."""

    rules: list[Rule]
    open: dict[str, dict[str, db.Row]] = field(default_factory=dict)
    """By certificate and rule."""


async def rules() -> list[Rule]:
    """Return every rule that is enabled."""
    return [_rule(row) for row in await db.fetch(RULES)]


async def book(certificate_ids: Iterable[str]) -> Book:
    """Return every rule that is enabled, and the open violations of these certificates, those of other rules too."""
    rows = await db.fetch(BOOK, json.dumps(list(certificate_ids)))
    found = Book([_rule(row) for row in sorted(rows, key=lambda row: str(row["id"])) if not row["violation_id"]])
    for row in rows:
        if row["violation_id"]:
            found.open.setdefault(row["certificate_id"], {})[row["id"]] = row
    return found


def _rule(row: db.Row) -> Rule:
    return rule_of(row["id"], row["name"], row["type"], row["config"], row["severity"])


@lru_cache(maxsize=1024)
def rule_of(id: str, name: str, type_: str, config: str, severity: str) -> Rule:
    """Return the rule that a row of ``policy_rule`` holds.

    What this version cannot read, which an older or a newer one may have written, is a rule all the same.
    """
    try:
        return Rule(id=id, name=name, severity=Severity(severity), terms=read_terms(type_, json.loads(config)))
    except TermsError as exc:
        return Rule(id=id, name=name, severity=Severity(severity), terms=None, unreadable=str(exc))
    except ValueError as exc:
        return Rule(id=id, name=name, severity=Severity.CRITICAL, terms=None, unreadable=str(exc))


def check_rule(values: dict[str, Any], before: Mapping[str, Any] | None) -> dict[str, str]:
    """Complete what a client says of a rule and return what is wrong with it.

    Configs merge at their first level, null removes a key; the config of another type does not go on.
    """
    if not values.keys() & {"type", "config"}:
        return {}
    type_ = str(values.get("type") or (before or {})["type"])
    kept = before["config"] if before and (before["type"] == type_ or "config" not in values) else {}
    merged = {**kept, **renamed(type_, values.get("config", {}))}
    config = {key: each for key, each in merged.items() if each is not None}
    try:
        terms = read_terms(type_, config)
    except TermsError as exc:
        return {f"config.{path}" if path else "type": text for path, text in exc.faults.items()}
    values["config"] = terms.model_dump(mode="json", exclude_unset=True)
    return {}
