from datetime import UTC, datetime, timedelta

import pytest
from certctl_core.policy import (
    Act,
    Rule,
    RuleType,
    Severity,
    Subject,
    TermsError,
    evaluate,
    read_terms,
    renamed,
)

NOW = datetime(2030, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def subject(*names, **more):
    known = {"issuer_id": "iss-local", "issuer_type": "GenericCA", "owner_id": "o", "team_id": "t"}
    return Subject(names=names or ("a.example.com",), **{**known, **more})


def broken(type_, config, certificate, now=NOW):
    """What is wrong, as text; empty if nothing is."""
    rule = Rule(id="pr", name="rule", severity=Severity.ERROR, terms=read_terms(type_, config))
    return "; ".join(
        f"{fault.field}: {fault.message}" for b in evaluate([rule], certificate, now) for fault in b.faults
    )


@pytest.mark.parametrize(
    ("listed", "keeps"),
    [
        (["iss-local"], True),
        (["genericca"], True),
        (["GenericCA", "ACME"], True),
        (["ISS-LOCAL"], False),
        (["iss-other", "ACME"], False),
        ([], False),
    ],
)
def test_an_issuer_is_listed_by_id_or_by_type(listed, keeps):
    found = broken("AllowedIssuers", {"allowed_issuer_ids": listed}, subject())
    assert found == ("" if keeps else "issuer_id: iss-local (GenericCA) is not an allowed issuer")


@pytest.mark.parametrize(
    ("names", "allowed", "outside"),
    [
        (["a.example.com"], ["*.example.com"], []),
        (["a.b.example.com"], ["*.example.com"], []),
        (["*.example.com", "*.b.example.com"], ["*.example.com"], []),
        (["example.com"], ["*.example.com"], ["example.com"]),
        (["example.com"], ["example.com"], []),
        (["a.example.com"], ["example.com"], ["a.example.com"]),
        (["*.example.com"], ["a.example.com"], ["*.example.com"]),
        (["badexample.com"], ["*.example.com"], ["badexample.com"]),
        (["a.example.com.evil.org"], ["*.example.com"], ["a.example.com.evil.org"]),
        (["a.example.com", "b.example.org"], ["*.example.com"], ["b.example.org"]),
        (["xn--bcher-kva.example"], ["bücher.example"], []),
        (["192.0.2.1"], ["*.example.com"], ["192.0.2.1"]),
        (["192.0.2.1", "2001:db8::1"], ["192.0.2.1", "2001:DB8::1"], []),
        (["ada@example.com"], ["example.com"], []),
        (["ada@mail.example.org"], ["example.com"], ["ada@mail.example.org"]),
        (["https://a.example.com/x"], ["*.example.com"], []),
        (["https://a.example.com@evil.org/"], ["*.example.com"], ["https://a.example.com@evil.org/"]),
        (["spiffe://example.com/web"], ["example.com"], []),
        (["urn:x:a.example.com"], ["*.example.com"], ["urn:x:a.example.com"]),
        (["tag:a.example.com,2020:x"], ["*.example.com"], ["tag:a.example.com,2020:x"]),
        (["a.example.com"], [], ["a.example.com"]),
    ],
)
def test_every_name_lies_in_an_allowed_domain(names, allowed, outside):
    found = broken("AllowedDomains", {"allowed_domains": allowed}, subject(*names))
    verb = "lies" if len(outside) == 1 else "lie"
    assert found == (f"sans: {', '.join(outside)} {verb} outside of the allowed domains" if outside else "")


@pytest.mark.parametrize(
    ("name", "denied", "keeps"),
    [
        ("a.example.com", ["*.dev.example.com"], True),
        ("a.dev.example.com", ["*.dev.example.com"], False),
        ("*.dev.example.com", ["*.dev.example.com"], False),
        ("dev.example.com", ["*.dev.example.com"], True),
        ("*.example.com", ["secret.example.com"], False),
        ("*.example.com", ["a.secret.example.com"], True),
        ("192.0.2.1", ["192.0.2.1"], False),
    ],
)
def test_no_name_lies_in_a_denied_domain_nor_is_good_for_one(name, denied, keeps):
    found = broken("AllowedDomains", {"denied_domains": denied}, subject(name))
    assert found == ("" if keeps else f"sans: {name} lies in a denied domain")


def test_a_domain_may_be_allowed_and_denied_in_part():
    config = {"allowed_domains": ["*.example.com"], "denied_domains": ["*.dev.example.com"]}
    found = broken("AllowedDomains", config, subject("a.dev.example.com", "b.example.org"))
    assert "b.example.org lies outside" in found
    assert "a.dev.example.com lies in a denied" in found


def test_a_rule_that_says_nothing_of_domains_allows_none():
    assert broken("AllowedDomains", {}, subject()) != ""
    assert broken("AllowedDomains", {"allowed_domains": [], "denied_domains": ["x.org"]}, subject()) != ""


def test_of_many_names_a_few_are_told():
    found = broken("AllowedDomains", {}, subject(*(f"{n}.example.com" for n in range(250))))
    assert "4.example.com and 245 more lie outside" in found


@pytest.mark.parametrize(
    ("keys", "facts", "fields"),
    [
        (["owner_id", "team_id"], {}, []),
        (["owner_id"], {"owner_id": "o-unassigned"}, ["owner_id"]),
        (["team_id"], {"team_id": "t-unassigned"}, ["team_id"]),
        (["owner_id", "team_id"], {"owner_id": "", "team_id": ""}, ["owner_id", "team_id"]),
        (["environment"], {"environment": "production"}, []),
        (["environment"], {}, ["environment"]),
        (["cost-centre"], {"tags": {"cost-centre": "7"}}, []),
        (["cost-centre"], {"tags": {"cost-centre": ""}}, ["tags.cost-centre"]),
        (["cost-centre"], {"tags": {"other": "7"}}, ["tags.cost-centre"]),
    ],
)
def test_what_is_required_is_neither_empty_nor_a_placeholder(keys, facts, fields):
    found = broken("RequiredMetadata", {"required_keys": keys}, subject(**facts))
    assert [part.partition(":")[0] for part in found.split("; ") if part] == fields


@pytest.mark.parametrize(
    ("allowed", "environment", "keeps"),
    [
        (["production"], "production", True),
        (["production"], "Production", False),
        (["production"], "", False),
        ([], "production", False),
    ],
)
def test_an_environment_is_listed(allowed, environment, keeps):
    assert (broken("AllowedEnvironments", {"allowed": allowed}, subject(environment=environment)) == "") is keeps


@pytest.mark.parametrize(
    ("life", "left", "keeps"),
    [
        (90 * DAY, 14.5 * DAY, True),
        (90 * DAY, 13.5 * DAY, False),
        (9 * DAY, 3.5 * DAY, True),
        (9 * DAY, 2.5 * DAY, False),
        (None, 13.5 * DAY, False),
        (90 * DAY, -DAY, False),
    ],
)
def test_a_certificate_is_renewed_in_time(life, left, keeps):
    end = NOW + left
    certificate = subject(not_after=end, not_before=end - life if life else None)
    assert (broken("RenewalLeadTime", {"lead_time_days": 14}, certificate) == "") is keeps


def test_what_was_never_issued_is_not_late():
    assert broken("RenewalLeadTime", {"lead_time_days": 14}, subject()) == ""


@pytest.mark.parametrize(
    ("type_", "config", "faults"),
    [
        ("AllowedIssuers", {"allowed_issuer_ids": "iss", "x": 1}, {"allowed_issuer_ids", "x"}),
        ("AllowedIssuers", {"allowed_issuer_ids": [1, ""]}, {"allowed_issuer_ids[0]", "allowed_issuer_ids[1]"}),
        (
            "AllowedDomains",
            {"allowed_domains": ["*", "a..b", "*.*.x"], "denied_domains": ["ok.example", "a b"]},
            {"allowed_domains[0]", "allowed_domains[1]", "allowed_domains[2]", "denied_domains[1]"},
        ),
        ("AllowedDomains", {"allowed_domains": {}}, {"allowed_domains"}),
        ("RequiredMetadata", {}, {"required_keys"}),
        ("RequiredMetadata", {"required_keys": []}, {"required_keys"}),
        ("AllowedEnvironments", {"allowed": None}, {"allowed"}),
        ("AllowedEnvironments", {"allowed": ["x"] * 1001}, {"allowed"}),
        ("RenewalLeadTime", {}, {"lead_time_days"}),
        ("RenewalLeadTime", {"lead_time_days": "14"}, {"lead_time_days"}),
        ("RenewalLeadTime", {"lead_time_days": True}, {"lead_time_days"}),
        ("RenewalLeadTime", {"lead_time_days": 0}, {"lead_time_days"}),
        ("RenewalLeadTime", {"lead_time_days": 14.5}, {"lead_time_days"}),
        ("CertificateLifetime", {"max_days": 1}, {""}),
    ],
)
def test_what_cannot_be_read_is_refused_with_every_fault(type_, config, faults):
    with pytest.raises(TermsError) as caught:
        read_terms(type_, config)
    assert set(caught.value.faults) == faults


def test_a_fault_says_what_is_wrong():
    with pytest.raises(TermsError) as caught:
        read_terms("AllowedDomains", {"allowed_domains": ["*.a..b"], "more": 1})
    assert caught.value.faults["more"] == "is unknown"
    assert "empty label" in caught.value.faults["allowed_domains[0]"]


def test_keys_have_other_names():
    assert renamed("RequiredMetadata", {"required_fields": ["a"]}) == {"required_keys": ["a"]}
    assert renamed("AllowedEnvironments", {"allowed_environments": []}) == {"allowed": []}
    both = {"required_fields": ["a"], "required_keys": ["b"]}
    assert renamed("RequiredMetadata", both) == both
    assert renamed("AllowedIssuers", {"required_fields": []}) == {"required_fields": []}


CONFIGS = {
    RuleType.ALLOWED_ISSUERS: {},
    RuleType.ALLOWED_DOMAINS: {},
    RuleType.REQUIRED_METADATA: {"required_keys": ["owner_id"]},
    RuleType.ALLOWED_ENVIRONMENTS: {},
    RuleType.RENEWAL_LEAD_TIME: {"lead_time_days": 1},
}


@pytest.mark.parametrize("severity", Severity)
@pytest.mark.parametrize("type_", RuleType)
def test_severity_says_what_is_forbidden_but_never_the_renewal_of_what_is_late(type_, severity):
    rule = Rule(id="pr", name="rule", severity=severity, terms=read_terms(type_, CONFIGS[type_]))
    cures = type_ is RuleType.RENEWAL_LEAD_TIME
    assert rule.blocks(Act.ORDER) is (severity is not Severity.WARNING and not cures)
    assert rule.blocks(Act.DEPLOY) is (severity is Severity.CRITICAL and not cures)


@pytest.mark.parametrize("severity", Severity)
def test_a_rule_that_cannot_be_read_is_broken_by_everything_and_allows_no_order(severity):
    rule = Rule(id="pr", name="rule", severity=severity, terms=None, unreadable="no such type")
    [found] = evaluate([rule], subject(), NOW)
    assert "cannot be evaluated: no such type" in found.message
    assert rule.blocks(Act.ORDER)
    assert rule.blocks(Act.DEPLOY) is (severity is Severity.CRITICAL)
