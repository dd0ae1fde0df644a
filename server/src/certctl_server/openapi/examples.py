"""What an object may look like: put together from an example for each key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FINGERPRINT = "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
TIME = "2030-01-31T12:00:00Z"
CERTIFICATE, JOB = "mc-web-prod", "job-0193f1c2"
#: By key, wherever it is found. A key that stands here is part of the example of a body even if it may be left out.
KEYS: Mapping[str, Any] = {
    "agent_id": "ag-web-prod",
    "actor": "ada",
    "api_key": "ck_4fTq",
    "architecture": "amd64",
    "certificate_id": CERTIFICATE,
    "certificate_ids": [CERTIFICATE],
    "certificate_pem": "-----BEGIN CERTIFICATE-----\n...",
    "cidrs": ["192.0.2.0/24"],
    "common_name": "www.example.com",
    "csr_pem": "-----BEGIN CERTIFICATE REQUEST-----\n...",
    "email": "web@example.com",
    "created_by": "ada",
    "end": "06:00",
    "environment": "production",
    "error": "nginx -t: exit status 1",
    "field": "name",
    "expected_fingerprint": FINGERPRINT,
    "actual_fingerprint": FINGERPRINT,
    "fingerprint": FINGERPRINT,
    "fingerprint_sha256": FINGERPRINT,
    "id": "web-prod",
    "hostname": "web-1.example.com",
    "issuer_id": "iss-local",
    "job_id": JOB,
    "job_ids": [JOB],
    "key": "cck_4fTq_9Wm2",
    "managed_certificate_id": CERTIFICATE,
    "match_version": ">=1.0, <2",
    "message": "required",
    "name": "web-prod",
    "os": "linux",
    "owner_id": "o-alice",
    "pem_chain": "-----BEGIN CERTIFICATE-----\n...",
    "reason": "superseded",
    "renewal_policy_id": "rp-default",
    "request_id": "0193f1c2-7d1e-7c2a-9a57-0242ac120002",
    "requested_by": "ada",
    "sans": ["www.example.com"],
    "serial_number": "0a1b2c3d",
    "start": "22:00",
    "tags": {"service": "shop"},
    "target_id": "tgt-nginx-prod",
    "target_ids": ["tgt-nginx-prod"],
    "team_id": "t-platform",
    "timezone": "Europe/Berlin",
    "type": "GenericCA",
    "version": "1.0.0",
}
FORMATS: Mapping[str, Any] = {"date-time": TIME}
NUMBERS: Mapping[str, Any] = {"number": 1.5, "boolean": True, "": {}}
JSON: Mapping[str, type] = {"string": str, "integer": int, "boolean": bool, "array": list, "object": dict}


def example(schema: Mapping[str, Any], components: Mapping[str, Any]) -> Any:
    """Return a value that ``schema`` admits; ``components`` are the schemas that it refers to by name."""
    while "$ref" in schema or "anyOf" in schema:
        schema = components[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema["anyOf"][0]
    for key in ("examples", "enum"):
        if key in schema:
            return schema[key][0]
    kind, given = _kind(schema), schema.get("default")
    if kind == "object" and given is None:
        return _object(schema, components)
    if kind == "array" and given is None:
        return [example(schema["items"], components)] if "items" in schema else []
    if kind == "string" and given is None:
        return FORMATS.get(schema.get("format", ""), "")
    return NUMBERS.get(kind, schema.get("minimum", 1)) if given is None else given


def _kind(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type", "")
    return str(kind[0] if isinstance(kind, list) else kind)


def _object(schema: Mapping[str, Any], components: Mapping[str, Any]) -> dict[str, Any]:
    required = schema.get("required", ())
    found = {}
    for name, each in schema.get("properties", {}).items():
        if "enum" not in each and isinstance(KEYS.get(name), JSON.get(_kind(each), ())):
            found[name] = KEYS[name]
        elif name in required:
            found[name] = example(each, components)
    return found
