"""The contract's list of routes: who may call each, what it answers when all is well, its method and its path.

``NOT_YET`` are those of the contract that are not built. A route leaves it with the change that builds it.
"""

import re
from dataclasses import dataclass

ANONYMOUS, VIEWER, OPERATOR, ADMIN, AGENT, ENROLMENT = ROLES = (
    "anonymous", "viewer", "operator", "admin", "agent", "enrolment",
)  # fmt: skip
WHO = {
    "open": frozenset(ROLES),
    "any": frozenset({VIEWER, OPERATOR, ADMIN, AGENT}),
    "read": frozenset({VIEWER, OPERATOR, ADMIN}),
    "write": frozenset({OPERATOR, ADMIN}),
    "admin": frozenset({ADMIN}),
    "own": frozenset({OPERATOR, ADMIN, AGENT}),
    "own-read": frozenset({VIEWER, OPERATOR, ADMIN, AGENT}),
    "enrol": frozenset({OPERATOR, ADMIN, AGENT, ENROLMENT}),
}
CRUD = (
    *("teams", "owners", "profiles", "policies", "renewal-policies", "agent-groups", "issuers", "targets", "notifiers"),
    *("network-scan-targets", "health-checks"),
)
TABLE = """
open 200 GET /health
open 200 GET /ready
open 200 GET /api/v1/health
open 200 GET /api/v1/version
open 200 GET /api/v1/auth/info
any 200 GET /api/v1/auth/check
any 200 GET /api/v1/auth/me
open 200 POST /api/v1/auth/login
read 204 POST /api/v1/auth/logout
admin 200 GET /api/v1/auth/keys
admin 201 POST /api/v1/auth/keys
read 200 POST /api/v1/auth/keys/{id}/rotate
admin 204 DELETE /api/v1/auth/keys/{id}
read 200 GET /api/v1/connectors
read 200 GET /api/v1/certificates
write 201 POST /api/v1/certificates
read 200 GET /api/v1/certificates/{id}
write 200 PUT /api/v1/certificates/{id}
write 204 DELETE /api/v1/certificates/{id}
read 200 GET /api/v1/certificates/{id}/versions
read 200 GET /api/v1/certificates/{id}/deployments
write 202 POST /api/v1/certificates/{id}/renew
write 202 POST /api/v1/certificates/{id}/deploy
write 200 POST /api/v1/certificates/{id}/revoke
write 200 GET /api/v1/certificates/{id}/export/pem
write 200 GET /api/v1/certificates/{id}/export/pkcs12
write 200 POST /api/v1/certificates/{id}/export/pkcs12
write 200 GET /api/v1/certificates/{id}/export/der
write 200 GET /api/v1/certificates/{id}/export/chain
write 200 POST /api/v1/certificates/{id}/export/truststore
write 200 POST /api/v1/certificates/bulk-renew
admin 200 POST /api/v1/certificates/bulk-revoke
write 200 POST /api/v1/certificates/bulk-reassign
write 200 POST /api/v1/jobs/bulk-retry
open 200 GET /api/v1/crl
open 200 GET /api/v1/crl/{issuer_id}
open 200 GET /.well-known/pki/crl/{issuer_id}
open 200 GET /.well-known/pki/crl/{issuer_id}/{shard}
open 200 GET /.well-known/pki/ca/{issuer_id}
open 200 GET /api/v1/ocsp/{issuer_id}/{serial}
open 200 POST /api/v1/ocsp/{issuer_id}
open 200 POST /.well-known/pki/ocsp/{issuer_id}
open 200 GET /.well-known/pki/ocsp/{issuer_id}/{request}
write 200 POST /api/v1/issuers/{id}/test
admin 200 GET /api/v1/issuers/{id}/intermediates
admin 201 POST /api/v1/issuers/{id}/intermediates
admin 200 GET /api/v1/intermediates/{id}
admin 200 POST /api/v1/intermediates/{id}/retire
write 200 POST /api/v1/targets/{id}/test
read 200 GET /api/v1/agents
enrol 201 POST /api/v1/agents
write 201 POST /api/v1/agents/tokens
write 200 GET /api/v1/agents/tokens
write 204 DELETE /api/v1/agents/tokens/{id}
own-read 200 GET /api/v1/agents/{id}
write 200 DELETE /api/v1/agents/{id}
read 200 GET /api/v1/agents/retired
own 200 POST /api/v1/agents/{id}/rotate-key
own 200 POST /api/v1/agents/{id}/heartbeat
own 200 GET /api/v1/agents/{id}/work
own 202 POST /api/v1/agents/{id}/csr
own 200 GET /api/v1/agents/{id}/certificates/{certificate_id}
own 200 POST /api/v1/agents/{id}/jobs/{job_id}/status
own 202 POST /api/v1/agents/{id}/discoveries
read 200 GET /api/v1/policies/{id}/violations
read 200 GET /api/v1/agent-groups/{id}/members
write 200 PUT /api/v1/agent-groups/{id}/members/{agent_id}
write 204 DELETE /api/v1/agent-groups/{id}/members/{agent_id}
read 200 GET /api/v1/jobs
read 200 GET /api/v1/jobs/{id}
write 200 POST /api/v1/jobs/{id}/cancel
write 200 POST /api/v1/jobs/{id}/approve
write 200 POST /api/v1/jobs/{id}/reject
write 200 POST /api/v1/jobs/{id}/retry
own 200 POST /api/v1/jobs/{id}/verify
read 200 GET /api/v1/jobs/{id}/verification
read 200 GET /api/v1/audit
write 200 GET /api/v1/audit/export
read 200 GET /api/v1/audit/{id}
read 200 GET /api/v1/notifications
read 200 GET /api/v1/notifications/{id}
write 200 POST /api/v1/notifications/{id}/read
write 200 POST /api/v1/notifications/{id}/requeue
write 200 POST /api/v1/notifiers/{id}/test
read 200 GET /api/v1/stats/summary
read 200 GET /api/v1/stats/certificates-by-status
read 200 GET /api/v1/stats/expiration-timeline
read 200 GET /api/v1/stats/job-trends
read 200 GET /api/v1/stats/issuance-rate
read 200 GET /api/v1/metrics
read 200 GET /api/v1/metrics/prometheus
read 200 GET /api/v1/discovered-certificates
read 200 GET /api/v1/discovered-certificates/{id}
write 200 POST /api/v1/discovered-certificates/{id}/claim
write 200 POST /api/v1/discovered-certificates/{id}/dismiss
read 200 GET /api/v1/discovery-scans
read 200 GET /api/v1/discovery-summary
write 202 POST /api/v1/network-scan-targets/{id}/scan
read 200 GET /api/v1/digest/preview
write 200 POST /api/v1/digest/send
open 200 GET /.well-known/est/cacerts
open 200 GET /.well-known/est/csrattrs
write 200 POST /.well-known/est/simpleenroll
write 200 POST /.well-known/est/simplereenroll
read 200 GET /api/v1/approvals
read 200 GET /api/v1/approvals/{id}
write 200 POST /api/v1/approvals/{id}/approve
write 200 POST /api/v1/approvals/{id}/reject
read 200 GET /api/v1/health-checks/summary
read 200 GET /api/v1/health-checks/{id}/history
write 200 POST /api/v1/health-checks/{id}/acknowledge
"""
NOT_YET = """
GET /api/v1/certificates/{id}/export/pem
GET /api/v1/certificates/{id}/export/pkcs12
POST /api/v1/certificates/{id}/export/pkcs12
GET /api/v1/certificates/{id}/export/der
GET /api/v1/certificates/{id}/export/chain
POST /api/v1/certificates/{id}/export/truststore
GET /api/v1/crl
GET /api/v1/crl/{issuer_id}
GET /.well-known/pki/crl/{issuer_id}
GET /.well-known/pki/crl/{issuer_id}/{shard}
GET /.well-known/pki/ca/{issuer_id}
GET /api/v1/ocsp/{issuer_id}/{serial}
POST /api/v1/ocsp/{issuer_id}
POST /.well-known/pki/ocsp/{issuer_id}
GET /.well-known/pki/ocsp/{issuer_id}/{request}
GET /api/v1/issuers/{id}/intermediates
POST /api/v1/issuers/{id}/intermediates
GET /api/v1/intermediates/{id}
POST /api/v1/intermediates/{id}/retire
DELETE /api/v1/agents/{id}
GET /api/v1/agents/retired
POST /api/v1/notifications/{id}/requeue
GET /.well-known/est/cacerts
GET /.well-known/est/csrattrs
POST /.well-known/est/simpleenroll
POST /.well-known/est/simplereenroll
GET /api/v1/approvals
GET /api/v1/approvals/{id}
POST /api/v1/approvals/{id}/approve
POST /api/v1/approvals/{id}/reject
GET /api/v1/health-checks
POST /api/v1/health-checks
GET /api/v1/health-checks/{id}
PUT /api/v1/health-checks/{id}
DELETE /api/v1/health-checks/{id}
GET /api/v1/health-checks/summary
GET /api/v1/health-checks/{id}/history
POST /api/v1/health-checks/{id}/acknowledge
"""


@dataclass(frozen=True, order=True)
class Route:
    """One line of the list."""

    method: str
    path: str
    status: int = 0
    roles: frozenset = frozenset()

    @property
    def name(self):
        return f"{self.method} {self.path}"

    def at(self, **ids):
        """The path with these ids in it, "no-such" for others."""
        return re.sub(r"\{(\w+)\}", lambda found: ids.get(found[1], "no-such"), self.path)


def _crud(name):
    path = f"/api/v1/{name}"
    return [
        *(Route("GET", each, 200, WHO["read"]) for each in (path, f"{path}/{{id}}")),
        Route("POST", path, 201, WHO["write"]),
        Route("PUT", f"{path}/{{id}}", 200, WHO["write"]),
        Route("DELETE", f"{path}/{{id}}", 204, WHO["write"]),
    ]


def _line(text):
    who, status, method, path = text.split()
    return Route(method, path, int(status), WHO[who])


CONTRACT = [
    *map(_line, TABLE.strip().splitlines()),
    *(route for name in CRUD for route in _crud(name)),
]
"""All that the contract names."""
UNBUILT = frozenset(NOT_YET.split("\n")) - {""}
SERVED = sorted(route for route in CONTRACT if route.name not in UNBUILT)
"""What the server answers now."""
