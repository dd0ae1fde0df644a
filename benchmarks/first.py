"""The first figures: what a small installation costs and how fast it is, against stated goals.

``python benchmarks/first.py [--quick]``. Prints a table and, last, ``N of M goals met``. Ends with 0 if all are
met, 1 if one is missed, 2 if a program that is needed is not installed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import signing
from certctl_sdk.client import Client
from certctl_sdk.testing.fake_ca import FakeCA
from certctl_sdk.testing.nginx import Nginx
from goals import Goal, tell
from programs import BIN, Agent, Server, environment, fill, resident_mib

CONNECTIONS = 16
PLACES = 5
REST_SECONDS = 3.0
PATIENCE_SECONDS = 30.0
COMMANDS = {"validate_command": "nginx-check", "reload_command": "nginx-reload"}


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured, not what is asked for."""

    certificates: int
    orders: int
    signatures: int
    helps: int


FULL = Size(certificates=100_000, orders=2_000, signatures=7_000, helps=21)
QUICK = Size(certificates=10_000, orders=400, signatures=1_400, helps=7)


def sign(size: Size) -> Goal:
    """Our CA against the bare library."""
    ours, bare, ratio = signing.measure(size.signatures)
    note = f"{ours:.0f}/s against {bare:.0f}/s, {size.signatures} each, one core"
    return Goal("local CA: speed against bare cryptography", ratio, 0.5, "", most=False, note=note)


def help_(size: Size, root: Path) -> Goal:
    """How long a person waits for ``certctl --help``."""
    took = []
    for _ in range(size.helps):
        began = time.perf_counter()
        subprocess.run([BIN / "certctl", "--help"], check=True, capture_output=True, env=environment(root))
        took.append((time.perf_counter() - began) * 1000)
    note = f"median of {size.helps}, slowest {max(took):.0f}"
    return Goal("certctl --help", median(took), 150, "ms", most=True, note=note)


def order(size: Size, server: Server) -> Goal:
    """Orders over the API until they are stored, from a client in another process."""
    arguments = [server.url, str(server.data_dir / "admin-key"), str(size.orders), str(CONNECTIONS)]
    command = [sys.executable, str(Path(__file__).with_name("load.py")), *arguments]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment(server.data_dir))
    found = json.loads(told.stdout)
    note = f"{found['stored']} of {size.orders} in {found['seconds']:.1f} s, {CONNECTIONS} connections"
    rate = found["stored"] / found["seconds"]
    return Goal("orders to stored certificates, SQLite", rate, 100, "/s", most=False, note=note)


def rest(what: str, pid: int, limit: float) -> Goal:
    """The memory of a program that has nothing to do."""
    time.sleep(REST_SECONDS)
    return Goal(f"memory at rest: {what}", resident_mib(pid), limit, "MiB", most=True, note="RSS")


@contextlib.contextmanager
def nginx(root: Path) -> Iterator[Nginx]:
    """An NGINX that serves ``PLACES`` names, each from files of its own."""
    old = FakeCA()
    place = Nginx(root / "nginx")
    sites = [(f"place-{n}.example.com", root / "nginx" / "tls" / f"{n}.crt") for n in range(PLACES)]
    for name, cert in [("localhost", place.cert), *sites]:
        bundle = old.bundle(name)
        cert.write_text(bundle.cert_pem)
        cert.with_suffix(".key").write_text(bundle.key_pem)
        cert.with_suffix(".key").chmod(0o600)
        if cert != place.cert:
            place.site(name, cert, cert.with_suffix(".key"))
    with place:
        yield place


def target(client: Client, agent_id: str, number: int, place: Nginx) -> str:
    """Make the target of one site and return its id."""
    cert = place.cert.with_name(f"{number}.crt")
    files = {"cert_path": str(cert), "key_path": str(cert.with_suffix(".key"))}
    config = {**files, **COMMANDS, "host": "127.0.0.1", "port": place.port}
    made: dict[str, Any] = client.post(
        "targets", body={"name": f"place-{number}", "type": "NGINX", "agent_id": agent_id, "config": config}
    )
    return str(made["id"])


def serve(client: Client, state_dir: Path, place: Nginx) -> Goal:
    """From the order to the new certificate in a handshake."""
    agent_id = json.loads((state_dir / "agent.json").read_text())["id"]
    targets = [target(client, agent_id, number, place) for number in range(PLACES)]
    owners = {"owner_id": "o-unassigned", "team_id": "t-unassigned", "issuer_id": "iss-local"}
    took = []
    for number, target_id in enumerate(targets):
        name = f"place-{number}.example.com"
        before = place.served(name)
        began = time.perf_counter()
        made = client.post("certificates", body={**owners, "common_name": name, "target_ids": [target_id]})
        while (der := place.served(name)) == before and time.perf_counter() - began < PATIENCE_SECONDS:
            time.sleep(0.02)
        took.append(time.perf_counter() - began)
        chain = client.get("certificates", str(made["id"]), "versions")["data"][0]["pem_chain"]
        if ssl.PEM_cert_to_DER_cert(chain[: chain.index("-----END") + 25]) != der:
            raise RuntimeError(f"{name} serves another certificate than the one that was ordered")
    note = f"median of {PLACES}, slowest {max(took):.2f}"
    return Goal("POST /certificates to served by NGINX", median(took), 3, "s", most=True, note=note)


def goals(size: Size, root: Path) -> Iterator[Goal]:
    """Measure one after the other; nothing else of ours runs meanwhile."""
    yield sign(size)
    yield help_(size, root)
    server = Server(root)
    fill(server.data_dir, size.certificates)
    with server() as client:
        yield rest("server with embedded workers", server.pid, 150)
        yield order(size, server)
        agent = Agent(root, server)
        with nginx(root) as place:
            commands = {"nginx-check": place.check_command, "nginx-reload": place.reload_command}
            with agent(place.cert.parent, commands) as pid:
                yield rest("agent", pid, 60)
                yield serve(client, agent.state_dir, place)


def main(arguments: list[str], say: Callable[[str], None] = print) -> int:
    """Measure, tell, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the inventory, within 45 seconds")
    quick = parser.parse_args(arguments).quick
    if shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
        say("nginx is not installed")
        return 2
    size = QUICK if quick else FULL
    kind = f"quick: {QUICK.certificates / FULL.certificates:.0%} of the full inventory" if quick else "full"
    say(f"{size.certificates} certificates, {2 * size.certificates} jobs, {10 * size.certificates} audit rows ({kind})")
    with tempfile.TemporaryDirectory(prefix="certctl-bench-") as directory:
        return tell(goals(size, Path(directory)), say)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
