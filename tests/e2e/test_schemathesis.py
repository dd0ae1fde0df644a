"""Calls that nobody would think of, made from the OpenAPI document: nothing the server says is at odds with it.

By default 50 examples for each operation. CERTCTL_SCHEMATHESIS_EXAMPLES asks for more of them.
"""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

KEY = "an-admin-key-of-the-environment-0123456789"
EXAMPLES = os.environ.get("CERTCTL_SCHEMATHESIS_EXAMPLES", "50")
ENVIRON = {
    "CERTCTL_AUTH_SECRET": KEY,  # cannot be deleted or rotated
    "CERTCTL_AGENT_KEYS": "optional",  # the admin acts as any agent
    "CERTCTL_RATE_LIMIT_ENABLED": "false",
    "CERTCTL_LOG_LEVEL": "warn",
}
#: The checks that are not made, each with its reason; whatever is not here has none.
EXCEPTIONS = """
# A well-formed body may still be refused: ids that lead nowhere, names that are taken, CSRs that are none.
[checks]
positive_data_acceptance.enabled = false

# Nothing sends mail here, and the contract has 503 for that.
[[operations]]
include-name = "POST /api/v1/digest/send"
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", 503]

# Whoever guesses links takes the id of a new group for that of an agent, which is not there.
[[operations]]
include-path = "/api/v1/agent-groups/{id}/members/{agent_id}"
checks.ensure_resource_availability.enabled = false
"""
#: Of what ``fields`` leaves no schema is fulfilled, and ``wait`` takes up to 25 s: other tests look at them.
ELSEWHERE = {"fields", "wait"}
#: What the document's examples refer to.
THINGS = {
    "teams": {"id": "t-platform"},
    "owners": {"id": "o-alice", "team_id": "t-platform"},
    "agents": {"id": "ag-web-prod", "hostname": "web-1.example.com"},
    "targets": {"id": "tgt-nginx-prod", "type": "NGINX", "agent_id": "ag-web-prod"},
}
PLACE = "#/components/schemas/"
REPORT = re.compile(r"(\d+) generated")


def tolerated(document):
    """What the document says in words: where null is possible, an empty text is as well, in queries everywhere."""
    found = copy.deepcopy(document)
    for schema in found["components"]["schemas"].values():
        schema["properties"] = {name: _or_empty(each) for name, each in schema.get("properties", {}).items()}
    for operation in _operations(found):
        parameters = [each for each in operation.get("parameters", ()) if each["name"] not in ELSEWHERE]
        for each in parameters:
            schema = each["schema"]
            if schema.get("format") == "date-time" or ("enum" in schema and each["name"] != "sort_desc"):
                each["schema"] = {"anyOf": [schema, {"const": ""}]}
        operation["parameters"] = parameters
    return found


def closed(document):
    """The document whose answers have no keys but those that it names."""
    schemas = document["components"]["schemas"]
    sent = _closure({ref for each in _operations(document) for ref in _refs(each.get("requestBody"))}, schemas)
    for name in schemas.keys() - sent:
        if schemas[name]["properties"]:
            schemas[name]["additionalProperties"] = False
    return document


def _operations(document):
    return [each for methods in document["paths"].values() for each in methods.values()]


def _refs(value):
    return re.findall(rf"{PLACE}(\w+)", json.dumps(value))


def _closure(names, schemas):
    more = {ref for name in names for ref in _refs(schemas[name])} - names
    return _closure(names | more, schemas) if more else names


def _or_empty(schema):
    if "null" in schema.get("type", ()):
        return {"anyOf": [schema, {"const": ""}]}
    if {"type": "null"} in schema.get("anyOf", ()):
        return {**schema, "anyOf": [*schema["anyOf"], {"const": ""}]}
    return schema


@pytest.mark.timeout(3600)
def test_no_call_is_answered_otherwise_than_the_document_says(stage, tmp_path):
    server = stage.server(**ENVIRON).start(key=KEY)
    for path, body in THINGS.items():
        server.post(path, {"name": body["id"], **body})
    document = tmp_path / "openapi.json"
    document.write_text(json.dumps(closed(tolerated(server.get("openapi.json")))))
    exceptions = tmp_path / "schemathesis.toml"
    exceptions.write_text(EXCEPTIONS)
    command = [str(Path(sys.executable).with_name("st")), "--config-file", str(exceptions), "run", str(document)]
    command += ["--url", server.url, "--no-color", "--continue-on-failure", "--generation-deterministic"]
    command += ["--header", f"Authorization: Bearer {KEY}", "--max-examples", EXAMPLES]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    assert int(REPORT.search(done.stdout)[1]) > 1000
    assert '"internal error"' not in server.said
