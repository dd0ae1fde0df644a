import re
import time
from datetime import timedelta

import pytest
from certctl_core.profile import (
    DEFAULT,
    KeyRule,
    Profile,
    check_certificate,
    check_csr,
    check_key,
    check_names,
    check_profile,
)
from certctl_core.x509 import KeyKind, normalise_sans, read_certificate, read_csr
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

D, SECOND, HOUR = x509.DNSName, timedelta(seconds=1), timedelta(hours=1)
EC384 = Profile(allowed_key_algorithms=(KeyRule("ECDSA", 384),))
INSIDE = Profile(required_san_patterns=(r"^[a-z]+\.in\.example$", r"10\.[0-9.]+", "spiffe://.*"))


def test_the_default_makes_sense():
    assert check_profile(DEFAULT) == {}


@pytest.mark.parametrize(
    ("profile", "field", "told"),
    [
        pytest.param({"allowed_key_algorithms": ()}, "allowed_key_algorithms", "no key at all", id="no key"),
        pytest.param({"allowed_key_algorithms": (KeyRule("RSA", 2047),)}, "allowed_key_algorithms", "2048", id="rsa"),
        pytest.param(
            {"allowed_key_algorithms": (KeyRule("ECDSA", 255),)}, "allowed_key_algorithms", "256, 384", id="ec"
        ),
        pytest.param(
            {"allowed_key_algorithms": (KeyRule("DSA", 2048),)}, "allowed_key_algorithms", "none of", id="dsa"
        ),
        pytest.param({"max_ttl": -SECOND}, "max_ttl_seconds", "negative", id="life"),
        pytest.param({"allowed_ekus": ("serverAuth", "any")}, "allowed_ekus", "'any' is none of", id="purpose"),
        pytest.param({"required_san_patterns": ("ok", "(")}, "required_san_patterns", r"'\(' cannot", id="pattern"),
        pytest.param({"spiffe_uri_pattern": "(?=x)"}, "spiffe_uri_pattern", "cannot be used", id="uri pattern"),
        pytest.param({"allow_short_lived": True}, "allow_short_lived", "below 3600", id="short without life"),
        pytest.param({"allow_short_lived": True, "max_ttl": HOUR}, "allow_short_lived", "below 3600", id="an hour"),
        pytest.param({"allow_short_lived": True, "max_ttl": 0 * HOUR}, "allow_short_lived", "above 0", id="no life"),
    ],
)
def test_a_profile_that_makes_no_sense_is_told_by_field(profile, field, told):
    faults = check_profile(Profile(**profile))
    assert list(faults) == [field]
    assert re.search(told, faults[field])


@pytest.mark.parametrize(
    "profile",
    [
        pytest.param({"allow_short_lived": True, "max_ttl": HOUR - SECOND}, id="just under an hour"),
        pytest.param({"allow_short_lived": True, "max_ttl": SECOND}, id="a second"),
        pytest.param({"allowed_key_algorithms": (KeyRule("Ed25519", 0), KeyRule("ECDSA", 521))}, id="keys"),
        pytest.param({"max_ttl": None, "allowed_ekus": ()}, id="nothing asked"),
    ],
)
def test_a_profile_at_its_limits_is_fine(profile):
    assert check_profile(Profile(**profile)) == {}


@pytest.mark.parametrize(
    ("profile", "key", "allowed"),
    [
        pytest.param(DEFAULT, KeyKind("ECDSA", 256), True, id="smallest curve"),
        pytest.param(DEFAULT, KeyKind("RSA", 2048), True, id="smallest rsa"),
        pytest.param(DEFAULT, KeyKind("RSA", 2047), False, id="below"),
        pytest.param(DEFAULT, KeyKind("Ed25519", 256), False, id="not listed"),
        pytest.param(EC384, KeyKind("ECDSA", 256), False, id="curve below"),
        pytest.param(EC384, KeyKind("ECDSA", 521), True, id="curve above"),
        pytest.param(EC384, KeyKind("RSA", 4096), False, id="size of another algorithm"),
        pytest.param(
            Profile(allowed_key_algorithms=(KeyRule("Ed25519", 999),)), KeyKind("Ed25519", 256), True, id="ed"
        ),
    ],
)
def test_keys_pass_by_algorithm_and_size(profile, key, allowed):
    assert (check_key(profile, key) == []) is allowed


def test_a_refused_key_is_told_what_would_do():
    assert check_key(DEFAULT, KeyKind("Ed25519", 256)) == [
        "the profile allows no Ed25519 key, but ECDSA from 256, RSA from 2048"
    ]


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("web.in.example", True),
        ("10.1.2.3", True),
        ("11.1.2.3", False),
        ("web.in.example.evil", False),
        ("xweb.in.example2", False),
        ("a.web.in.example", False),
        ("spiffe://td/x", True),
        ("https://td/x", False),
    ],
)
def test_every_name_fits_one_pattern_as_a_whole(name, allowed):
    faults = check_names(INSIDE, normalise_sans([name]))
    assert faults == ([] if allowed else [f"{name} fits none of the profile's name patterns"])


def test_each_name_that_does_not_fit_is_told():
    assert len(check_names(INSIDE, normalise_sans(["web.in.example", "a.example", "b.example"]))) == 2


def test_every_uri_fits_the_uri_pattern_and_other_names_need_not():
    profile = Profile(spiffe_uri_pattern="^spiffe://prod/.+$")
    sans = normalise_sans(["spiffe://prod/web", "spiffe://test/web", "https://prod/", "a.example"])
    assert check_names(profile, sans) == [
        "spiffe://test/web does not fit the profile's URI pattern",
        "https://prod/ does not fit the profile's URI pattern",
    ]


def test_a_pattern_that_cannot_be_read_fits_nothing():
    assert len(check_names(Profile(required_san_patterns=("(",)), normalise_sans(["a.example"]))) == 1


def test_a_csr_is_held_against_keys_and_names(make_csr):
    csr = read_csr(make_csr(D("web.in.example"), common_names=["out.example"], key="ed25519"))
    assert [fault.split()[0] for fault in check_csr(INSIDE, csr)] == ["the", "out.example"]
    assert check_csr(INSIDE, read_csr(make_csr(D("web.in.example"), D("10.0.0.1")))) == []


@pytest.fixture
def certify(make_cert):
    """Return what makes a certificate that lives so long and is good for these purposes."""

    def certify(life=HOUR, ekus=(ExtendedKeyUsageOID.SERVER_AUTH,), key="p256"):
        purposes = [x509.ExtendedKeyUsage(ekus)] if ekus else []
        pem = make_cert(D("web.in.example"), key=key, by=("CA", "p384"), life=life - SECOND, extensions=purposes)
        return read_certificate(pem)

    return certify


@pytest.mark.parametrize(
    ("profile", "made", "told"),
    [
        pytest.param({"max_ttl": HOUR}, {"life": HOUR}, "", id="life to the second"),
        pytest.param(
            {"max_ttl": HOUR}, {"life": HOUR + SECOND}, "lives 3601 s; the profile allows 3600 s", id="longer"
        ),
        pytest.param({}, {"life": 9999 * HOUR}, "", id="any life"),
        pytest.param({"max_ttl": 0 * HOUR}, {"life": 9999 * HOUR}, "", id="zero leaves it to the issuer"),
        pytest.param({}, {"ekus": (ExtendedKeyUsageOID.CLIENT_AUTH,)}, "does not allow clientAuth", id="purpose"),
        pytest.param({}, {"ekus": ()}, "may be used for anything", id="any purpose"),
        pytest.param({"allowed_ekus": ()}, {"ekus": ()}, "", id="any purpose allowed"),
        pytest.param({"allowed_ekus": ("clientAuth", "serverAuth")}, {}, "", id="some of the purposes"),
        pytest.param({}, {"key": "ed25519"}, "no Ed25519 key", id="key"),
        pytest.param({"required_san_patterns": ("x",)}, {}, "web.in.example fits none", id="name"),
    ],
)
def test_a_certificate_is_held_against_every_rule(certify, profile, made, told):
    faults = check_certificate(Profile(**profile), certify(**made))
    assert [told in fault for fault in faults] == ([True] if told else [])


def test_names_that_would_take_long_to_match_are_not_allowed_and_say_so():
    profile = Profile(required_san_patterns=tuple(f"(.?){{{number}}}.*x" for number in range(200, 264)))
    assert check_profile(profile) == {}
    began = time.process_time()
    [fault] = check_names(profile, normalise_sans([f"spiffe://{number}/{'b' * 2000}" for number in range(4)]))
    assert "too long to match" in fault
    assert time.process_time() - began < 1.5


def test_many_names_under_usual_patterns_are_matched():
    patterns = (r"([a-z0-9-]{1,63}\.)+in\.example", r"[a-z0-9-]+\.b\.example", r"[a-z0-9-]+\.example")
    names = normalise_sans([f"web-{number}-with-a-name-like-that.example" for number in range(250)])
    assert check_names(Profile(required_san_patterns=patterns), names) == []


def test_a_profile_has_at_most_64_patterns():
    told = check_profile(Profile(required_san_patterns=("x",) * 65))
    assert told == {"required_san_patterns": "at most 64 patterns are possible"}
