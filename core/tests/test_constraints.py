from ipaddress import ip_network

import pytest
from certctl_core.constraints import NameConstraints
from certctl_core.x509 import parse_san
from cryptography import x509

D, M, U, IP = x509.DNSName, x509.RFC822Name, x509.UniformResourceIdentifier, x509.IPAddress


def bounds(permitted, excluded=None):
    return NameConstraints((x509.NameConstraints(permitted, excluded),))


@pytest.mark.parametrize(
    ("permitted", "inside", "outside"),
    [
        pytest.param([D("in.example")], "in.example", "notin.example", id="host itself"),
        pytest.param([D("in.example")], "a.b.in.example", "example", id="hosts below"),
        pytest.param([D(".in.example")], "a.in.example", "in.example", id="leading dot"),
        pytest.param([D("IN.example")], "*.in.example", "*.example", id="wildcard"),
        pytest.param([D("")], "a.example", "", id="any host"),
        pytest.param([D("a.example"), D("b.example")], "b.example", "c.example", id="one of several"),
        pytest.param([IP(ip_network("10.0.0.0/8"))], "10.9.9.9", "11.0.0.1", id="address"),
        pytest.param([IP(ip_network("2001:db8::/32"))], "2001:db8::1", "10.0.0.1", id="family"),
        pytest.param([M("a@in.example")], "a@in.example", "b@in.example", id="mailbox"),
        pytest.param([M("in.example")], "a@in.example", "a@x.in.example", id="mail host"),
        pytest.param([M(".in.example")], "a@x.in.example", "a@in.example", id="mail domain"),
        pytest.param([U("in.example")], "https://u@in.example:8443/x", "https://x.in.example/", id="uri host"),
        pytest.param([U(".in.example")], "spiffe://x.in.example/y", "spiffe://in.example/y", id="uri domain"),
        pytest.param([U("in.example")], "https://in.example/", "urn:in.example", id="uri without host"),
        pytest.param([D("in.example")], "a@elsewhere.example", "", id="another kind"),
    ],
)
def test_permitted_names_are_those_inside(permitted, inside, outside):
    assert bounds(permitted).permit(parse_san(inside))
    assert not outside or not bounds(permitted).permit(parse_san(outside))


@pytest.mark.parametrize(
    ("excluded", "inside", "outside"),
    [
        pytest.param([D("secret.example")], "x.secret.example", "x.example", id="host"),
        pytest.param([D("secret.example")], "*.example", "*.other.example", id="wildcard good for an excluded host"),
        pytest.param([IP(ip_network("0.0.0.0/0"))], "10.0.0.1", "::1", id="every address"),
    ],
)
def test_excluded_names_are_refused(excluded, inside, outside):
    assert not bounds(None, excluded).permit(parse_san(inside))
    assert bounds(None, excluded).permit(parse_san(outside))


def test_every_certificate_of_the_path_has_its_say(make_cert):
    upper = make_cert(subject="x", extensions=[x509.NameConstraints([D("example")], None)])
    lower = make_cert(subject="y", extensions=[x509.NameConstraints(None, [D("secret.example")])])
    plain = make_cert(subject="z")
    path = NameConstraints.of(*(x509.load_pem_x509_certificate(pem.encode()) for pem in (plain, lower, upper)))
    assert [path.permit(parse_san(n)) for n in ("a.example", "secret.example", "a.test")] == [True, False, False]
