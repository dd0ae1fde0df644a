"""A client in a process of its own: orders certificates over HTTP and says how long it took until all were stored.

``python load.py URL KEY_FILE COUNT CONNECTIONS`` prints one JSON object.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from certctl_sdk.testing.fake_ca import csr_pem

PATIENCE_SECONDS = 60.0
ORDER = {"owner_id": "o-unassigned", "team_id": "t-unassigned", "issuer_id": "iss-local", "environment": "benchmark"}

BROKEN = ("pr-require-owner", "pr-allowed-environments")
"""Rules of a new installation that these orders break: each would be noted and told, which is not what is measured."""


class Connection:
    """One kept connection."""

    def __init__(self, url: str, key: str) -> None:
        self._http = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE_SECONDS)
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Return the decoded answer; raise RuntimeError for one that is not a success."""
        content = None if body is None else json.dumps(body)
        self._http.request(method, f"/api/v1/{path}", content, self._headers)
        answer = self._http.getresponse()
        text = answer.read().decode()
        if answer.status >= 300:  # noqa: PLR2004  # RFC 9110 section 15
            raise RuntimeError(f"{method} {path} was answered {answer.status}: {text}")
        found: dict[str, Any] = json.loads(text)
        return found

    def stored(self) -> int:
        """Return how many of our certificates have a version."""
        return int(self.ask("GET", "certificates?environment=benchmark&status=Active&per_page=1")["total"])


def order_all(connection: Connection, names: Iterator[tuple[str, str]], lock: threading.Lock) -> None:
    """Take orders from ``names`` until there are none: the certificate, then the CSR for it."""
    while True:
        with lock:
            name, csr = next(names, ("", ""))
        if not name:
            return
        made = connection.ask("POST", "certificates", {**ORDER, "common_name": name})
        connection.ask("POST", f"certificates/{made['id']}/renew", {"csr_pem": csr})


def main(url: str, key_file: str, count: int, connections: int) -> None:
    """Order, wait, tell."""
    key = Path(key_file).read_text().strip()
    names = [f"bench-{number}.example.com" for number in range(count)]
    orders, lock = iter([(name, csr_pem(name)) for name in names]), threading.Lock()
    clients = [
        threading.Thread(target=order_all, args=(Connection(url, key), orders, lock)) for _ in range(connections)
    ]
    watcher = Connection(url, key)
    for rule in BROKEN:
        watcher.ask("PUT", f"policies/{rule}", {"enabled": False})
    began = time.perf_counter()
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    while (stored := watcher.stored()) < count and time.perf_counter() - began < PATIENCE_SECONDS:
        time.sleep(0.02)
    print(json.dumps({"stored": stored, "seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
