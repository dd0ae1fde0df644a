"""Certificate profiles: what may be issued, held against the order, the CSR and the certificate that came of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from certctl_core.csr import CheckedCsr
from certctl_core.keys import CURVES, RSA_MAX_BITS, RSA_MIN_BITS, KeyKind
from certctl_core.names import San, SanKind
from certctl_core.parsed import EKU_OIDS, CertificateFacts
from certctl_core.pattern import Budget, PatternTooSlow, pattern

SHORT_LIVED = timedelta(hours=1)
"""A profile under this may say ``allow_short_lived``."""
MAX_PATTERNS = 64
"""Of names, in one profile."""
MATCHING_STEPS = 250_000
"""What all names of one order may cost against all patterns of its profile: a fraction of a second."""
ONE_SECOND = timedelta(seconds=1)
"""``notAfter`` is the last second of a certificate's life, not the first one after it (RFC 5280 section 4.1.2.5)."""


@dataclass(frozen=True, slots=True)
class KeyRule:
    """A key algorithm that a profile allows."""

    algorithm: str
    """``RSA``, ``ECDSA`` or ``Ed25519``."""
    min_size: int
    """Bits of the smallest key allowed; says nothing for Ed25519."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The rules of one kind of certificate; whether they make sense, ``check_profile`` tells."""

    name: str = ""
    """As the operator calls it."""
    allowed_key_algorithms: tuple[KeyRule, ...] = (KeyRule("ECDSA", 256), KeyRule("RSA", 2048))
    """A key passes if one of the rules admits it."""
    max_ttl: timedelta | None = None
    """The longest life, both ends included; None leaves it to the issuer."""
    allowed_ekus: tuple[str, ...] = ("serverAuth",)
    """Extended key usages as the API spells them; empty allows any, and none."""
    required_san_patterns: tuple[str, ...] = ()
    """Every name fits one of these as a whole (``certctl_core.pattern``); empty allows any name."""
    spiffe_uri_pattern: str = ""
    """Every URI fits this as a whole; empty allows any URI."""
    allow_short_lived: bool = False
    """Lives under an hour, which nobody revokes, are meant."""
    no_rev_avail: bool = False
    """Certificates say that no revocation status will be available (RFC 9608)."""
    include_common_name: bool = True
    """Certificates carry a common name where the order has one."""
    requires_approval: bool = False
    """A person approves each order."""


DEFAULT = Profile(name="default")
"""What holds where no profile is named: ECDSA from 256 bits and RSA from 2048, for servers."""


def check_profile(profile: Profile) -> dict[str, str]:
    """Return what is wrong with the profile itself, by the API's name of the field; empty if nothing is."""
    return {field: faults[0] for field, faults in _faults(profile).items() if faults}


def _faults(profile: Profile) -> dict[str, list[str]]:
    return {
        "allowed_key_algorithms": _key_rule_faults(profile.allowed_key_algorithms),
        "max_ttl_seconds": ["is negative"] if profile.max_ttl is not None and profile.max_ttl < timedelta(0) else [],
        "allowed_ekus": [
            f"{eku!r} is none of {', '.join(EKU_OIDS)}" for eku in profile.allowed_ekus if eku not in EKU_OIDS
        ],
        "required_san_patterns": _pattern_faults(profile.required_san_patterns),
        "spiffe_uri_pattern": _pattern_faults(filter(None, [profile.spiffe_uri_pattern])),
        "allow_short_lived": []
        if not profile.allow_short_lived or (profile.max_ttl and timedelta(0) < profile.max_ttl < SHORT_LIVED)
        else ["needs max_ttl_seconds above 0 and below 3600"],
    }


def _key_rule_faults(rules: Iterable[KeyRule]) -> list[str]:
    faults = [] if (rules := tuple(rules)) else ["allows no key at all"]
    for rule in rules:
        match rule.algorithm:
            case "RSA" if not RSA_MIN_BITS <= rule.min_size <= RSA_MAX_BITS:
                faults.append(f"RSA needs a min_size from {RSA_MIN_BITS} to {RSA_MAX_BITS}")
            case "ECDSA" if rule.min_size not in CURVES.values():
                faults.append(f"ECDSA needs a min_size of {', '.join(map(str, CURVES.values()))}")
            case "RSA" | "ECDSA" | "Ed25519":
                pass
            case _:
                faults.append(f"{rule.algorithm!r} is none of RSA, ECDSA, Ed25519")
    return faults


def _pattern_faults(texts: Iterable[str]) -> list[str]:
    texts = tuple(texts)
    faults = [f"at most {MAX_PATTERNS} patterns are possible"] if len(texts) > MAX_PATTERNS else []
    for text in texts[:MAX_PATTERNS]:
        try:
            pattern(text)
        except ValueError as exc:
            faults.append(f"{text!r} cannot be used: {exc}")
    return faults


def check_key(profile: Profile, key: KeyKind) -> list[str]:
    """Return why a key of this kind is not allowed; empty if it is."""
    rules = profile.allowed_key_algorithms
    if any(r.algorithm == key.algorithm and (key.algorithm == "Ed25519" or r.min_size <= key.size) for r in rules):
        return []
    allowed = ", ".join(r.algorithm if r.algorithm == "Ed25519" else f"{r.algorithm} from {r.min_size}" for r in rules)
    return [f"the profile allows no {key} key, but {allowed}"]


def check_names(profile: Profile, sans: Iterable[San]) -> list[str]:
    """Return why these names are not allowed, one sentence each; empty if they are.

    The time it takes is bounded, whoever chose names and patterns: names that were not reached in it are not
    allowed. A pattern that ``check_profile`` refuses fits nothing.
    """
    faults: list[str] = []
    budget = Budget(MATCHING_STEPS)
    try:
        for san in sans:
            faults += _name_faults(profile, san, budget)
    except PatternTooSlow:
        faults.append("these names take too long to match against the profile's patterns: fewer or simpler ones pass")
    return faults


def _name_faults(profile: Profile, san: San, budget: Budget) -> list[str]:
    faults = []
    names, uris = profile.required_san_patterns[:MAX_PATTERNS], profile.spiffe_uri_pattern
    if names and not any(_fits(each, san, budget) for each in names):
        faults.append(f"{san} fits none of the profile's name patterns")
    if san.kind is SanKind.URI and uris and not _fits(uris, san, budget):
        faults.append(f"{san} does not fit the profile's URI pattern")
    return faults


def _fits(text: str, san: San, budget: Budget) -> bool:
    try:
        return pattern(text).fits(san.value, budget)
    except ValueError:
        return False


def check_csr(profile: Profile, csr: CheckedCsr) -> list[str]:
    """Return why this CSR may not be signed under the profile; empty if it may."""
    return check_key(profile, csr.key) + check_names(profile, csr.names)


def check_certificate(profile: Profile, facts: CertificateFacts) -> list[str]:
    """Return why this certificate is not one that the profile allows: key, names, purposes, life; empty if it is."""
    faults = check_key(profile, facts.key) + check_names(profile, facts.sans)
    if profile.allowed_ekus:
        if surplus := [eku for eku in facts.ekus if eku not in profile.allowed_ekus]:
            faults.append(f"the profile does not allow {', '.join(surplus)}")
        if not facts.ekus:
            faults.append(f"it may be used for anything; the profile allows only {', '.join(profile.allowed_ekus)}")
    life = facts.not_after - facts.not_before + ONE_SECOND
    if profile.max_ttl and life > profile.max_ttl:
        faults.append(
            f"it lives {life.total_seconds():.0f} s; the profile allows {profile.max_ttl.total_seconds():.0f} s"
        )
    return faults
