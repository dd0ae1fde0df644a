from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import itertools
import socket
import stat
import threading
from ipaddress import ip_address
from urllib.parse import urlsplit

import pytest
from certctl_agent import allowed, cli, identity
from certctl_agent.proposal import Proposal
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID


class Authority:
    """A CA and the files of a server under it."""

    def __init__(self, name: str) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.cert = self.build(self.name, self.key.public_key(), ca=True)

    def build(self, subject, public_key, *, ca):
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
            .sign(self.key, hashes.SHA256())
        )

    @property
    def pin(self):
        spki = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(spki).hexdigest()

    @property
    def pem(self):
        return self.cert.public_bytes(Encoding.PEM)

    def server_files(self, root, *above):
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = self.build(x509.Name([]), key.public_key(), ca=False)
        chain_file, key_file = root / "server.crt", root / "server.key"
        chain_file.write_bytes(b"".join([leaf.public_bytes(Encoding.PEM), *above]))
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return chain_file, key_file


@pytest.fixture
def plane(plane):
    plane.agents.clear()
    plane.tokens.add("secret-1")
    return plane


@pytest.fixture
def authority():
    return Authority("certctl CA")


@pytest.fixture
def secure(serve, plane, authority, tmp_path):
    """The control plane again, behind TLS, its CA in the chain it presents."""
    return serve(plane, *authority.server_files(tmp_path, authority.pem))


def enroll(state, *arguments, stdin=""):
    found = Proposal(("nginx",), (state / "tls",), {"nginx-check": ("nginx", "-t")}, ())
    given = {"CERTCTL_DATA_DIR": str(state)}
    result = CliRunner(env=given).invoke(cli.cli, ["enroll", *arguments], input=stdin, obj=found)
    return result.exit_code, result.output


def test_a_token_pins_the_ca_of_the_server_and_keeps_it(plane, secure, authority, tmp_path):
    state = tmp_path / "state"
    code, said = enroll(state, "--server", secure, "--token", f"secret-1.{authority.pin}", "--name", "box", "--yes")
    assert code == 0, said
    found = identity.load(state)
    assert (found.id, found.api_key, found.server) == ("ag-1", "own-key", secure)
    assert (state / "agent-server-ca.pem").read_bytes() == authority.pem
    assert found.ca_file == str(state / "agent-server-ca.pem")
    assert stat.S_IMODE((state / "agent.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert b'"name": "box"' in plane.seen[0][2]


def test_an_enrolled_agent_runs_and_is_known(plane, secure, authority, tmp_path, agent):
    enroll(agent.state, "--server", secure, "--token", f"secret-1.{authority.pin}", "--yes")
    for name in ("CERTCTL_SERVER_URL", "CERTCTL_API_KEY", "CERTCTL_AGENT_ID"):
        del agent.environ[name]
    agent.start()
    plane.until(lambda: plane.beats)
    result = CliRunner(env={"CERTCTL_DATA_DIR": str(agent.state)}).invoke(cli.cli, ["check"])
    assert result.exit_code == 0, result.output
    assert f"{secure} knows this agent (role agent)" in result.output


def test_another_servers_pin_is_refused_before_anything_is_sent(plane, secure, tmp_path):
    state = tmp_path / "state"
    code, said = enroll(state, "--server", secure, "--token", f"secret-1.{Authority('other').pin}", "--yes")
    assert code == 1
    assert "Nothing was sent" in said
    assert plane.seen == []
    assert not (state / "agent.json").exists()


def test_a_pinned_ca_that_did_not_sign_the_server_is_refused(serve, plane, authority, tmp_path):
    impostor = Authority("certctl CA")
    url = serve(plane, *impostor.server_files(tmp_path, authority.pem))
    code, said = enroll(tmp_path / "state", "--server", url, "--token", f"secret-1.{authority.pin}", "--yes")
    assert (code, plane.seen) == (1, [])
    assert "leads up to the CA" in said


def test_a_wrong_ca_file_is_refused(plane, secure, tmp_path):
    wrong = tmp_path / "wrong.pem"
    wrong.write_bytes(Authority("other").pem)
    arguments = ("--server", secure, "--token", "secret-1", "--ca-file", str(wrong), "--yes")
    code, said = enroll(tmp_path / "state", *arguments)
    assert (code, plane.seen) == (1, [])
    assert "certificate verify failed" in said


def test_a_ca_file_lets_a_bare_secret_through(plane, secure, authority, tmp_path):
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(authority.pem)
    code, said = enroll(
        tmp_path / "state", "--server", secure, "--token", "secret-1", "--ca-file", str(ca_file), "--yes"
    )
    assert code == 0, said
    assert identity.load(tmp_path / "state").ca_file == str(ca_file)


REFUSED = {
    "plain http off loopback": ("http://192.0.2.1:8080", "secret-1", "use https"),
    "bare secret over TLS": ("https://127.0.0.1:1", "secret-1", "--ca-file"),
    "pin over plain http": ("http://127.0.0.1:1", "secret-1." + "0" * 64, "https address"),
    "damaged pin": ("https://127.0.0.1:1", "secret-1.abc", "damaged"),
    "empty token": ("https://127.0.0.1:1", " ", "no enrolment token"),
    "no address": ("ftp://x", "secret-1", "not an address"),
}


@pytest.mark.parametrize(("url", "token", "words"), REFUSED.values(), ids=REFUSED)
def test_what_would_give_the_secret_away_is_refused(tmp_path, url, token, words):
    code, said = enroll(tmp_path / "state", "--server", url, "--token", token, "--yes")
    assert code == 1
    assert words in said


def test_beside_a_local_server_nothing_has_to_be_said(plane, tmp_path):
    (tmp_path / "client.toml").write_text(f'url = "{plane.url}"\napi_key = "admin"\n')
    (tmp_path / "enrol-token").write_text("secret-1\n")
    code, said = enroll(tmp_path, "--yes")
    assert code == 0, said
    assert identity.load(tmp_path).server == ""


@pytest.mark.parametrize("way", ["file", "stdin"])
def test_a_token_may_come_from_a_file_or_a_pipe(plane, tmp_path, way):
    file = tmp_path / "token"
    file.write_text("secret-1\n")
    arguments = ["--token-file", str(file)] if way == "file" else []
    code, said = enroll(tmp_path / "state", "--server", plane.url, "--yes", *arguments, stdin="secret-1\n")
    assert code == 0, said


def test_a_used_token_is_refused_in_the_words_of_the_server(plane, tmp_path):
    plane.tokens.clear()
    code, said = enroll(tmp_path / "state", "--server", plane.url, "--token", "secret-1", "--yes")
    assert code == 1
    assert "Invalid API key" in said
    assert "secret-1" not in said


def test_who_is_enrolled_is_not_enrolled_twice(plane, tmp_path):
    plane.tokens.add("secret-2")
    enroll(tmp_path / "state", "--server", plane.url, "--token", "secret-1", "--yes")
    code, said = enroll(tmp_path / "state", "--server", plane.url, "--token", "secret-2", "--yes")
    assert code == 1
    assert "enrolled already" in said
    assert plane.tokens == {"secret-2"}


def test_agent_toml_is_shown_and_not_written_over(plane, tmp_path):
    config = tmp_path / "agent.toml"
    config.write_text("directories = []\n")
    code, said = enroll(tmp_path / "s", "--server", plane.url, "--token", "secret-1", "--config", str(config), "--yes")
    assert code == 0, said
    assert "stays as it is" in said
    assert config.read_text() == "directories = []\n"
    assert identity.load(tmp_path / "s").config == str(config)


def test_the_agent_toml_that_was_shown_is_written_and_its_directories_made(plane, tmp_path):
    state = tmp_path / "state"
    code, said = enroll(state, "--server", plane.url, "--token", "secret-1", "--yes")
    assert code == 0, said
    assert (state / "agent.toml").read_text() in said
    assert f"{state / 'tls'} made." in said
    found = allowed.read(state / "agent.toml").allowed
    assert (found.directories, found.commands) == ((state / "tls",), {"nginx-check": ("nginx", "-t")})
    assert (state / "tls").is_dir()


def test_without_anybody_to_agree_the_token_is_not_used_up(plane, tmp_path):
    code, said = enroll(tmp_path / "state", "--server", plane.url, "--token", "secret-1")
    assert code == 1
    assert "--yes" in said
    assert plane.tokens == {"secret-1"}


@pytest.fixture
def turning():
    """Relay the first connection to one address and every later one to another."""
    with contextlib.ExitStack() as closing, socket.create_server(("127.0.0.1", 0)) as listener:

        def pump(source, sink):
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    sink.sendall(data)
                sink.shutdown(socket.SHUT_WR)

        def relay(ports):
            with contextlib.suppress(OSError):
                for port in ports:
                    inner = closing.enter_context(listener.accept()[0])
                    outer = closing.enter_context(socket.create_connection(("127.0.0.1", port)))
                    for pair in ((inner, outer), (outer, inner)):
                        threading.Thread(target=pump, args=pair, daemon=True).start()

        def start(first, later):
            ports = itertools.chain([urlsplit(first).port], itertools.repeat(urlsplit(later).port))
            threading.Thread(target=relay, args=(ports,), daemon=True).start()
            return f"https://127.0.0.1:{listener.getsockname()[1]}"

        yield start
        listener.shutdown(socket.SHUT_RDWR)


def test_a_man_in_the_middle_with_a_certificate_of_the_ca_file_gets_no_token(
    serve, plane, secure, authority, turning, tmp_path
):
    other = Authority("another CA that the file names")
    (tmp_path / "other").mkdir()
    impostor = serve(plane, *other.server_files(tmp_path / "other", other.pem))
    roots = tmp_path / "roots.pem"
    roots.write_bytes(authority.pem + other.pem)
    url = turning(secure, impostor)
    arguments = ("--server", url, "--token", f"secret-1.{authority.pin}", "--ca-file", str(roots), "--yes")
    code, said = enroll(tmp_path / "state", *arguments)
    assert (code, plane.seen, plane.tokens) == (1, [], {"secret-1"})
    assert "certificate verify failed" in said


def test_beside_a_pin_the_ca_file_is_what_is_trusted_afterwards(plane, secure, authority, tmp_path):
    roots = tmp_path / "roots.pem"
    roots.write_bytes(Authority("another CA").pem + authority.pem)
    arguments = ("--server", secure, "--token", f"secret-1.{authority.pin}", "--ca-file", str(roots), "--yes")
    code, said = enroll(tmp_path / "state", *arguments)
    assert code == 0, said
    assert identity.load(tmp_path / "state").ca_file == str(roots)
