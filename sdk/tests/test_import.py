"""``certctl import``: every certificate in every file has its line, whatever happens."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from certctl_sdk import cli
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

KEY = ec.generate_private_key(ec.SECP256R1())
NOW = datetime.now(UTC).replace(microsecond=0)
CERTIFICATES = "/api/v1/certificates"
NOBODY = (200, {"data": [], "total": 0})


def made(cn, *sans, days=30, ca=False, serial=0xABC):
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, cn)] if cn else [])
    end = NOW + timedelta(days=days)
    builder = x509.CertificateBuilder(name, name, KEY.public_key(), serial, end - timedelta(days=90), end)
    if sans:
        builder = builder.add_extension(x509.SubjectAlternativeName(map(x509.DNSName, sans)), critical=False)
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(KEY, hashes.SHA256())


def pem(*certs):
    return b"".join(cert.public_bytes(Encoding.PEM) for cert in certs)


def id_of(cert):
    return f"mc-{cert.fingerprint(hashes.SHA256()).hex()[:40]}"


@pytest.fixture
def imported(server, tmp_path):
    """Import; how it ended and what became of each certificate, by file and name."""
    server.answers["GET", CERTIFICATES] = NOBODY
    server.answers["POST", CERTIFICATES] = (201, lambda asked: json.loads(asked[3]))

    def call(*arguments, code=0):
        where = ("--server", server.url, "--format", "json")
        done = CliRunner().invoke(cli.main, [*where, "import", *map(str, arguments)], env={"HOME": str(tmp_path)})
        assert done.exit_code == code, done.output
        found = json.loads(done.stdout)
        assert sum(found["counts"].values()) == len(found["certificates"])
        return {(Path(each["file"]).name, each["certificate"]): each for each in found["certificates"]}

    return call


def sent(server):
    return [json.loads(body) for (method, *_, body), _ in server.asked if method == "POST"]


def test_one_certificate_is_recorded_as_the_original_does(imported, server, tmp_path):
    cert = made("old.example", "old.example", "www.old.example")
    (tmp_path / "old.pem").write_bytes(pem(cert))
    [found] = imported(tmp_path / "old.pem").values()
    assert (found["outcome"], found["id"]) == ("imported", id_of(cert))
    assert sent(server) == [
        {
            "id": id_of(cert),
            "common_name": "old.example",
            "sans": ["old.example", "www.old.example"],
            "issuer_id": "iss-local",
            "environment": "imported",
            "status": "Active",
            "serial_number": "0abc",
            "expires_at": (NOW + timedelta(days=30)).isoformat(),
        }
    ]


def test_a_directory_full_of_things_has_a_line_for_each(imported, server, tmp_path):
    key = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    one, root = made("one.example"), made("Root", ca=True, serial=3)
    two = made("", "two.example", serial=2, ca=True)  # as openssl req -x509 makes it for a server
    (below := tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "a-chain.pem").write_bytes(
        key + pem(one, root) + b"-----BEGIN CERTIFICATE-----\nbroken\n-----END CERTIFICATE-----\n"
    )
    (tmp_path / "in" / "b-again.crt").write_bytes(pem(one, one))
    (below / "der.cer").write_bytes(two.public_bytes(Encoding.DER))
    (below / "gone.pem").write_bytes(pem(made("gone.example", days=-1)))
    (below / "key.pem").write_bytes(key)
    (below / "notes.txt").write_text("0 is no DER")
    (below / "loop").symlink_to(tmp_path / "in")
    (below / "away").symlink_to(tmp_path / "nowhere")
    found = imported(tmp_path / "in", code=1)
    assert {place: each["outcome"] for place, each in found.items()} == {
        ("a-chain.pem", "one.example"): "imported",
        ("a-chain.pem", "Root"): "CA certificate",
        ("a-chain.pem", ""): "unreadable",
        ("b-again.crt", "one.example"): "known",
        ("der.cer", "two.example"): "imported",
        ("gone.pem", "gone.example"): "expired",
        ("key.pem", ""): "not a certificate",
        ("notes.txt", ""): "not a certificate",
        ("away", ""): "unreadable",
    }
    assert sorted(body["id"] for body in sent(server)) == sorted([id_of(one), id_of(two)])
    assert not any("PRIVATE" in body for (*_, body), _ in server.asked)


def test_a_directory_without_faults_is_a_success_and_a_named_file_without_a_certificate_is_none(imported, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "readme").write_text("nothing")
    assert imported(tmp_path / "d")["readme", ""]["outcome"] == "not a certificate"
    assert imported(tmp_path / "d" / "readme", code=1)["readme", ""]["outcome"] == "not a certificate"


def test_what_the_server_has_is_known_by_fingerprint_serial_or_id(imported, server, tmp_path):
    ours, early, again = made("ours.example"), made("early.example", serial=0xFF), made("again.example", serial=9)
    rows = [
        {"id": "mc-ours", "fingerprint": ours.fingerprint(hashes.SHA256()).hex(), "expires_at": NOW.isoformat()},
        {"id": "mc-early", "serial_number": "FF", "expires_at": early.not_valid_after_utc.isoformat()},
        {"id": "mc-other", "serial_number": "0abc", "expires_at": NOW.isoformat()},
    ]
    server.answers["GET", CERTIFICATES] = (200, {"data": rows, "total": 3})
    server.answers["POST", CERTIFICATES] = (409, {"message": "exists"})
    (tmp_path / "all.pem").write_bytes(pem(ours, early, again))
    found = imported(tmp_path / "all.pem")
    assert {name: (each["outcome"], each["id"]) for (_, name), each in found.items()} == {
        "ours.example": ("known", "mc-ours"),
        "early.example": ("known", "mc-early"),
        "again.example": ("known", id_of(again)),
    }
    assert [body["common_name"] for body in sent(server)] == ["again.example"]
    assert server.asked[0][0][2]["common_name"] == "again.example,early.example,ours.example"


def test_what_is_refused_says_why_and_the_rest_goes_on(imported, server, tmp_path):
    def answer(asked):
        return {"details": [{"field": "sans", "message": "not here"}]}

    server.answers["POST", CERTIFICATES] = (400, answer)
    (tmp_path / "two.pem").write_bytes(pem(made("Ada Lovelace", "a.example"), made("b.example", serial=5)))
    found = imported(tmp_path / "two.pem", code=1)
    assert {each["detail"] for each in found.values()} == {"sans: not here"}
    assert {each["outcome"] for each in found.values()} == {"refused"}
    assert {body["common_name"] for body in sent(server)} == {"", "b.example"}


def test_a_server_that_goes_away_leaves_nothing_unsaid(imported, server, tmp_path):
    server.answers["POST", CERTIFICATES] = (201, b"no JSON")
    (tmp_path / "many.pem").write_bytes(pem(*(made(f"n{n}.example", serial=n + 1) for n in range(30))))
    outcomes = [each["outcome"] for each in imported(tmp_path / "many.pem", code=1).values()]
    assert set(outcomes) == {"unsure", "not tried"}
    assert outcomes.count("unsure") <= 8


def test_expired_ones_and_a_dry_run_are_by_choice(imported, server, tmp_path):
    (tmp_path / "gone.pem").write_bytes(pem(made("gone.example", days=-1)))
    assert imported(tmp_path / "gone.pem", "--expired", "--dry-run")["gone.pem", "gone.example"]["outcome"] == "found"
    assert server.asked == []
    assert (
        imported(tmp_path / "gone.pem", "--expired", "--owner", "o")["gone.pem", "gone.example"]["outcome"]
        == "imported"
    )
    assert sent(server)[0]["owner_id"] == "o"


def test_the_report_is_a_table_for_people(server, tmp_path):
    server.answers["GET", CERTIFICATES] = NOBODY
    server.answers["POST", CERTIFICATES] = (201, {})
    (tmp_path / "a.pem").write_bytes(pem(made("a\x1b[31m.example", "a.example")))
    done = CliRunner().invoke(cli.main, ["--server", server.url, "import", str(tmp_path / "a.pem")])
    head, row, total = done.stdout.splitlines()
    assert head.split() == ["FILE", "CERTIFICATE", "OUTCOME", "ID", "DETAIL"]
    assert "\x1b" not in row
    assert total == "1 imported"
