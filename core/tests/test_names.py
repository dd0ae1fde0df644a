import pytest
from certctl_core.x509 import San, SanKind, normalise_sans, parse_san

DNS, IP, EMAIL, URI = SanKind.DNS, SanKind.IP, SanKind.EMAIL, SanKind.URI


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("www.Example.COM", DNS, "www.example.com"),
        (" example.com. ", DNS, "example.com"),
        ("*.example.com", DNS, "*.example.com"),
        ("_dmarc.example.com", DNS, "_dmarc.example.com"),
        ("localhost", DNS, "localhost"),
        ("Bücher.example", DNS, "xn--bcher-kva.example"),
        ("*.bücher.example", DNS, "*.xn--bcher-kva.example"),
        ("faß.example", DNS, "xn--fa-hia.example"),
        ("例え。テスト", DNS, "xn--r8jz45g.xn--zckzah"),
        ("XN--BCHER-KVA.example", DNS, "xn--bcher-kva.example"),
        ("a" * 63 + ".example", DNS, "a" * 63 + ".example"),
        ("192.0.2.1", IP, "192.0.2.1"),
        ("2001:DB8:0:0::1", IP, "2001:db8::1"),
        ("Some.One+tag@Example.COM", EMAIL, "Some.One+tag@example.com"),
        ("a@bücher.example", EMAIL, "a@xn--bcher-kva.example"),
        ("HTTPS://User@Example.com:8443/A?b=%20#C", URI, "https://User@example.com:8443/A?b=%20#C"),
        ("ldap://[2001:DB8::1]/dc=x", URI, "ldap://[2001:db8::1]/dc=x"),
        ("spiffe://Prod.Example/ns/Web", URI, "spiffe://prod.example/ns/Web"),
        ("urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6", URI, "urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6"),
    ],
)
def test_a_name_is_told_by_its_value_and_brought_to_one_form(text, kind, value):
    assert parse_san(text) == San(kind, value)


@pytest.mark.parametrize(
    "text",
    [
        "www.example.com",
        "*.xn--bcher-kva.example",
        "2001:db8::1",
        "A@example.com",
        "spiffe://td/x",
        "https://x.example/A",
    ],
)
def test_the_normal_form_is_its_own_normal_form(text):
    assert str(parse_san(text)) == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("", "a name is empty", id="empty"),
        pytest.param("a..example", "an empty label", id="empty label"),
        pytest.param(".example", "an empty label", id="leading dot"),
        pytest.param("-a.example", "does not begin or end with '-'", id="leading hyphen"),
        pytest.param("a-.example", "does not begin or end with '-'", id="trailing hyphen"),
        pytest.param("a b.example", "a label has 1 to 63", id="blank"),
        pytest.param("a" * 64 + ".example", "a label has 1 to 63", id="long label"),
        pytest.param(".".join(["a" * 49] * 6), "the limit is 253", id="long name"),
        pytest.param("x" * 3000, "the limit is 2048", id="absurd"),
        pytest.param("*", "leftmost of several", id="bare wildcard"),
        pytest.param("a.*.example", "leftmost of several", id="wildcard inside"),
        pytest.param("w*.example", "'\\*' stands alone", id="partial wildcard"),
        pytest.param("☃.example", "is not a host name", id="snowman"),
        pytest.param("xn--a.example", "is not a host name", id="false A-label"),
        pytest.param("256.1.1.1", "neither an IPv4 address nor a host name", id="almost an address"),
        pytest.param("fe80::1%eth0", "names a network interface", id="zone"),
        pytest.param("a\x00.example", "cannot be printed", id="nul"),
        pytest.param("a\n.example", "cannot be printed", id="newline"),
        pytest.param("jörg@example.com", "plain ASCII", id="mail in letters of its own"),
        pytest.param("@example.com", "plain ASCII", id="mail of nobody"),
        pytest.param("a@*.example.com", "its domain is a wildcard", id="mail to many"),
        pytest.param("l" * 250 + "@example.com", "at most 254", id="long mail"),
        pytest.param("https:///path", "names a host", id="no host"),
        pytest.param("https://a.example/ä", "written as %XX", id="iri"),
        pytest.param("https://*.example/", "not a wildcard", id="wildcard uri"),
        pytest.param("https://[::g]/", "is not an address", id="bad address"),
        pytest.param("1http://a.example", "not an absolute URI", id="scheme"),
        pytest.param("spiffe://td:8443/x", "not a SPIFFE ID", id="spiffe port"),
        pytest.param("spiffe://td/x/", "not a SPIFFE ID", id="spiffe slash"),
        pytest.param("spiffe:td", "not a SPIFFE ID", id="spiffe bare"),
    ],
)
def test_what_cannot_be_certified_is_refused_with_the_reason(text, told):
    with pytest.raises(ValueError, match=told):
        parse_san(text)


def test_duplicates_are_dropped_and_the_order_is_kept():
    sans = normalise_sans(["b.example", "A.example", "b.example.", "::1", "0::1"])
    assert [str(san) for san in sans] == ["b.example", "a.example", "::1"]


def test_one_bad_name_refuses_them_all():
    with pytest.raises(ValueError, match=r"a\.\.b"):
        normalise_sans(["a.example", "a..b"])
