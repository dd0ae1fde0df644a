"""Policies: what an operator wants certificates to keep to, whoever orders them.

A rule is read strictly, as a whole or not at all, and held against one certificate without any I/O. A rule that cannot
be read is broken by every certificate: what nobody understands allows nothing.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from certctl_core.names import SanKind, parse_dns, parse_ip, parse_san

MOST_ENTRIES = 1000
"""Of one list in a rule."""
MOST_TOLD = 5
"""Names that a message spells out."""
PLACEHOLDERS = {"owner_id": "o-unassigned", "team_id": "t-unassigned"}
"""What stands for nobody."""


class Severity(StrEnum):
    """What comes of a breach."""

    WARNING = "Warning"
    """It is noted and told."""
    ERROR = "Error"
    """And nothing is issued or renewed."""
    CRITICAL = "Critical"
    """And nothing is deployed."""


class RuleType(StrEnum):
    """What a rule is about."""

    ALLOWED_ISSUERS = "AllowedIssuers"
    ALLOWED_DOMAINS = "AllowedDomains"
    REQUIRED_METADATA = "RequiredMetadata"
    ALLOWED_ENVIRONMENTS = "AllowedEnvironments"
    RENEWAL_LEAD_TIME = "RenewalLeadTime"


class Act(StrEnum):
    """What a breach may forbid."""

    ORDER = "order"
    """To issue or renew."""
    DEPLOY = "deploy"


_LEAST = {Act.ORDER: (Severity.ERROR, Severity.CRITICAL), Act.DEPLOY: (Severity.CRITICAL,)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A certificate as rules see it."""

    names: tuple[str, ...]
    """Every name that it is for, in normal form (``certctl_core.names``)."""
    issuer_id: str
    """The CA that is to sign it."""
    issuer_type: str
    """The kind of that CA."""
    environment: str = ""
    """Where it is used."""
    owner_id: str = ""
    """Who is told about it."""
    team_id: str = ""
    """Who it belongs to."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """What else is known of it."""
    not_before: datetime | None = None
    """When the life of its newest version began, None if that is not known."""
    not_after: datetime | None = None
    """When that life ends; None if nothing is to be renewed."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that breaks a rule."""

    field: str
    """The field of the certificate, as the API calls it."""
    message: str
    """What is wrong with it, without the field's name."""


class TermsError(ValueError):
    """What a rule says cannot be read; ``faults`` has everything that is wrong, by the path in its config."""

    def __init__(self, faults: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{path}: {text}" if path else text for path, text in faults.items()))
        self.faults = dict(faults)


class Terms(BaseModel, ABC):
    """What a rule of one type says."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    aliases: ClassVar[Mapping[str, str]] = {}
    """Other names of keys."""
    ended_by_renewal: ClassVar[bool] = False
    """A renewal is what ends a breach, so a breach cannot forbid one."""

    @abstractmethod
    def faults(self, subject: Subject, now: datetime) -> Iterator[Fault]:
        """Yield everything about a certificate that breaks the rule at this moment."""


def _pattern(text: str) -> str:
    if address := parse_ip(text):
        return address.value
    star, base = ("*.", text[2:]) if text.startswith("*.") else ("", text)
    if "*" in base:
        raise ValueError("is a host name, an address, or *. and a host name")
    return star + parse_dns(base).value


_Text = Annotated[str, Field(min_length=1, max_length=256)]
_Texts = Annotated[tuple[_Text, ...], Field(max_length=MOST_ENTRIES)]
_Patterns = Annotated[tuple[Annotated[_Text, AfterValidator(_pattern)], ...], Field(max_length=MOST_ENTRIES)]


class AllowedIssuers(Terms):
    """The CAs that may sign, by id or by type; none if the list is empty."""

    allowed_issuer_ids: _Texts = ()

    @cached_property
    def ids(self) -> frozenset[str]:
        """The entries, to be looked up."""
        return frozenset(self.allowed_issuer_ids)

    @cached_property
    def types(self) -> frozenset[str]:
        """The same, for types in any case of letters."""
        return frozenset(each.casefold() for each in self.allowed_issuer_ids)

    def faults(self, subject: Subject, now: datetime) -> Iterator[Fault]:  # not about time
        """Yield the issuer if it is not listed."""
        if subject.issuer_id not in self.ids and subject.issuer_type.casefold() not in self.types:
            yield Fault("issuer_id", f"{subject.issuer_id} ({subject.issuer_type}) is not an allowed issuer")


_PLAIN = re.compile(r"[a-z0-9_*.-]+")
_AUTHORITY = re.compile(r"[^:]+://(?:[^@/?#]*@)?(?:\[(?P<v6>[^\]]*)\]|(?P<host>[^:/?#]*))")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a name lies."""

    host: str
    above: tuple[str, ...]
    """The domains that the host lies in, the nearest first."""


@lru_cache(maxsize=4096)
def _place(name: str) -> _Place:
    host = _host(name)
    labels = host.split(".")
    return _Place(host, tuple(".".join(labels[number:]) for number in range(1, len(labels))))


def _host(name: str) -> str:
    """The host that a name stands for: of a mailbox its domain, of a URI its authority's; empty if there is none."""
    if _PLAIN.fullmatch(name):
        return name
    try:
        san = parse_san(name)
    except ValueError:
        return ""
    if san.kind is SanKind.EMAIL:
        return san.value.rpartition("@")[2]
    if san.kind is SanKind.URI:
        found = _AUTHORITY.match(san.value)
        return (found["v6"] or found["host"] or "") if found else ""
    return san.value


class _Domains:
    """Hosts and addresses, and whole domains below a name."""

    def __init__(self, patterns: Iterable[str]) -> None:
        every = frozenset(patterns)
        self._below = frozenset(each[2:] for each in every if each.startswith("*."))
        self._exact = frozenset(each for each in every if not each.startswith("*."))
        self._parents = frozenset(each.partition(".")[2] for each in self._exact)

    def hold(self, place: _Place) -> bool:
        """Whether a host, or every host of a wildcard, is one of them."""
        return place.host in self._exact or not self._below.isdisjoint(place.above)

    def are_covered_by(self, place: _Place) -> bool:
        """Whether a wildcard is good for one of them, though not for those alone."""
        return place.host.startswith("*.") and place.above[0] in self._parents


class AllowedDomains(Terms):
    """The domains that names may lie in, and those that they may not.

    ``*.x`` is every name below x, not x itself. A rule that only denies allows all the rest; one that says nothing
    allows nothing.
    """

    allowed_domains: _Patterns = ()
    denied_domains: _Patterns = ()

    @cached_property
    def allowed(self) -> _Domains | None:
        """Where every name lies; None if that may be anywhere."""
        only_denies = self.denied_domains and "allowed_domains" not in self.model_fields_set
        return None if only_denies else _Domains(self.allowed_domains)

    @cached_property
    def denied(self) -> _Domains | None:
        """Where no name lies; None if nothing is denied."""
        return _Domains(self.denied_domains) if self.denied_domains else None

    def faults(self, subject: Subject, now: datetime) -> Iterator[Fault]:  # not about time
        """Yield the names that lie outside what is allowed, or in what is denied."""
        outside, denied = [], []
        for name in subject.names:
            place = _place(name)
            if self.allowed and not self.allowed.hold(place):
                outside.append(name)
            if self.denied and (self.denied.hold(place) or self.denied.are_covered_by(place)):
                denied.append(name)
        if outside:
            yield Fault("sans", f"{_told(outside)} outside of the allowed domains")
        if denied:
            yield Fault("sans", f"{_told(denied)} in a denied domain")


def _told(names: list[str]) -> str:
    shown = ", ".join(names[:MOST_TOLD])
    if len(names) > MOST_TOLD:
        return f"{shown} and {len(names) - MOST_TOLD} more lie"
    return f"{shown} {'lies' if len(names) == 1 else 'lie'}"


class RequiredMetadata(Terms):
    """What has to be known of a certificate: ``owner_id``, ``team_id``, ``environment``, or tags by their keys."""

    aliases: ClassVar[Mapping[str, str]] = {"required_fields": "required_keys"}

    required_keys: Annotated[_Texts, Field(min_length=1)]

    def faults(self, subject: Subject, now: datetime) -> Iterator[Fault]:  # not about time
        """Yield what is empty, or stands for nobody."""
        fields = {"owner_id": subject.owner_id, "team_id": subject.team_id, "environment": subject.environment}
        for key in self.required_keys:
            value = fields[key] if key in fields else subject.tags.get(key, "")
            if not value:
                yield Fault(key if key in fields else f"tags.{key}", f"{key} is empty")
            elif value == PLACEHOLDERS.get(key):
                yield Fault(key, f"{key} is {value}, which is nobody")


class AllowedEnvironments(Terms):
    """The environments that there are; none if the list is empty."""

    aliases: ClassVar[Mapping[str, str]] = {"allowed_environments": "allowed"}

    allowed: _Texts = ()

    @cached_property
    def known(self) -> frozenset[str]:
        """The entries, to be looked up."""
        return frozenset(self.allowed)

    def faults(self, subject: Subject, now: datetime) -> Iterator[Fault]:  # not about time
        """Yield the environment if it is not listed."""
        if subject.environment not in self.known:
            said = (
                f"environment {subject.environment} is" if subject.environment else "no environment is given, which is"
            )
            yield Fault("environment", f"{said} not allowed")


class RenewalLeadTime(Terms):
    """How long before its end a certificate has to be renewed: so many days, but at most a third of its life."""

    ended_by_renewal: ClassVar[bool] = True

    lead_time_days: Annotated[int, Field(ge=1, le=3650)]

    def faults(self, subject: Subject, now: datetime) -> Iterator[Fault]:
        """Yield the end of the newest version if it has come too near."""
        if subject.not_after is None:
            return
        lead = timedelta(days=self.lead_time_days)
        if subject.not_before is not None:
            lead = min(lead, (subject.not_after - subject.not_before) / 3)
        if subject.not_after - now < lead:
            until = f"{subject.not_after:%Y-%m-%d %H:%M} UTC"
            yield Fault("expires_at", f"it expires on {until} and should have been renewed {_spelt(lead)} before")


def _spelt(lead: timedelta) -> str:
    days = lead / timedelta(days=1)
    return f"{days:.0f} days" if days >= 2 else f"{days * 24:.0f} hours"  # noqa: PLR2004  # of one there are few


TERMS: Mapping[RuleType, type[Terms]] = {
    RuleType.ALLOWED_ISSUERS: AllowedIssuers,
    RuleType.ALLOWED_DOMAINS: AllowedDomains,
    RuleType.REQUIRED_METADATA: RequiredMetadata,
    RuleType.ALLOWED_ENVIRONMENTS: AllowedEnvironments,
    RuleType.RENEWAL_LEAD_TIME: RenewalLeadTime,
}
"""By the type of a rule, what it says."""


def renamed(type_: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``config`` with the keys of this type of rule under their real names."""
    aliases = TERMS[RuleType(type_)].aliases
    return {aliases.get(key, key) if aliases.get(key) not in config else key: each for key, each in config.items()}


def read_terms(type_: str, config: Mapping[str, Any]) -> Terms:
    """Return what a rule of this type says; its keys have their real names.

    Raises:
        TermsError: the type is none that we know, or the config does not fit it; with every fault.
    """
    try:
        kind = TERMS[RuleType(type_)]
    except ValueError as exc:
        raise TermsError({"": f"there are no rules of type {type_}"}) from exc
    try:
        # Strict, as JSON: a list there is what a tuple is here.
        return kind.model_validate_json(json.dumps(config))
    except ValidationError as exc:
        errors = exc.errors(include_input=False, include_context=False, include_url=False)
        raise TermsError({_path(each["loc"]): _words(each["type"], each["msg"]) for each in errors}) from exc


def _path(parts: Iterable[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")


def _words(type_: str, message: str) -> str:
    known = {"missing": "required", "extra_forbidden": "is unknown"}
    return known.get(type_, message.removeprefix("Value error, "))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule that is enabled."""

    id: str
    """As the API knows it."""
    name: str
    """What people call it."""
    severity: Severity
    """What comes of a breach."""
    terms: Terms | None
    """What it says; None if that cannot be read."""
    unreadable: str = ""
    """Why not."""

    def blocks(self, act: Act) -> bool:
        """Return whether a breach forbids ``act``. One that cannot be read allows no order, whatever its severity."""
        if self.terms is None:
            return act is Act.ORDER or self.severity in _LEAST[act]
        return not self.terms.ended_by_renewal and self.severity in _LEAST[act]

    def check(self, subject: Subject, now: datetime) -> Breach | None:
        """Return how a certificate breaks the rule at this moment, None if it keeps to it."""
        if self.terms is None:
            return Breach(self, (Fault("policy", f"the rule cannot be evaluated: {self.unreadable}"),))
        found = tuple(self.terms.faults(subject, now))
        return Breach(self, found) if found else None


@dataclass(frozen=True, slots=True)
class Breach:
    """That a certificate breaks a rule."""

    rule: Rule
    """Which."""
    faults: tuple[Fault, ...]
    """By what, at least one."""

    @property
    def message(self) -> str:
        """What is wrong, in one line."""
        return "; ".join(fault.message for fault in self.faults)


def evaluate(rules: Iterable[Rule], subject: Subject, now: datetime) -> list[Breach]:
    """Return which of ``rules`` a certificate breaks at this moment, in their order."""
    return [breach for rule in rules if (breach := rule.check(subject, now))]
