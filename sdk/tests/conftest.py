import json
import os
import subprocess
import sys
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from urllib.parse import parse_qsl, urlsplit
from xml.etree import ElementTree as ET

import pytest

RUN = """
import importlib.util
import sys

spec = importlib.util.spec_from_file_location("subject", {path!r})
subject = sys.modules["subject"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(subject)
for bad in subject.BAD:
    name = f"Test{{bad.__name__}}"
    globals()[name] = type(name, (subject.Suite,), {{"connector": bad, "__module__": __name__}})
del bad
"""


@pytest.fixture(scope="module")
def rejections(request, tmp_path_factory):
    """By the name of each connector in the module's ``BAD``: the tests of its ``Suite`` that fail."""
    folder = tmp_path_factory.mktemp("bad")
    suite, report = folder / "test_bad.py", folder / "report.xml"
    suite.write_text(RUN.format(path=request.module.__file__))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-W", "error"]
    options = [
        # CPython 3.11 may take a warning that is raised by the collector during ast.parse for broken bookkeeping
        # (python/cpython#106905) and pytest then ends in the middle: nothing here parses once tests have run.
        "--tb=native",
        *("-p", "no:hypothesispytest", "-p", "no:randomly"),
        *("-o", "asyncio_default_fixture_loop_scope=function"),
        "-c",
        os.devnull,
        "--rootdir",
        str(folder),
        f"--junitxml={report}",
        str(suite),
    ]
    ran = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300, check=False)
    assert report.exists(), ran.stdout + ran.stderr
    assert "INTERNALERROR" not in ran.stdout, ran.stdout
    failed = defaultdict(set)
    for case in ET.parse(report).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed[case.get("classname").rpartition(".Test")[2]].add(case.get("name").partition("[")[0])
    return failed


class Server(ThreadingHTTPServer):
    """Answers from a table as a certctl server would; remembers what it was asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Ask)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.answers = {}
        self.asked = []

    def server_bind(self):
        # Without the name that HTTPServer would look up: some machines wait for seconds.
        TCPServer.server_bind(self)


class Ask(BaseHTTPRequestHandler):
    def answer(self):
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = (self.command, parts.path, dict(parse_qsl(parts.query, keep_blank_values=True)), body.decode())
        self.server.asked.append((asked, dict(self.headers)))
        status, said = self.server.answers.get((self.command, parts.path), (404, {"message": "no"}))
        said = said(asked) if callable(said) else said
        text = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815  # http.server's names

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
