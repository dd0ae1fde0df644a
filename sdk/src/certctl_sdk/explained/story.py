"""All that the API says of one certificate, asked for in few calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from certctl_sdk.api import Json
from certctl_sdk.client import Client

LONGEST = 100
"""Jobs and versions looked at, the newest of each."""
NEVER = "0001-01-01"
"""How the times begin that the API has where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What is known."""

    now: datetime
    certificate: Json
    policy: Json
    """Its renewal policy."""
    issuer: Json
    jobs: Sequence[Json] = ()
    """Newest first."""
    versions: Sequence[Json] = ()
    """Newest first."""
    deployments: Sequence[Json] = ()
    """Its targets, with what is there."""
    agents: Mapping[str, Json] = field(default_factory=dict)
    """Those of its targets and jobs, by id."""
    violations: Sequence[tuple[Json, Json]] = ()
    """Rules that it breaks, each with the breach."""

    @property
    def open_jobs(self) -> list[Json]:
        """Those that are not over, newest first."""
        return [job for job in self.jobs if is_open(job)]

    def last_order(self) -> Json | None:
        """The newest job that was to bring a certificate and was not called off."""
        orders = (job for job in self.jobs if is_order(job) and job["status"] != "Cancelled")
        return next(orders, None)


def is_order(job: Json) -> bool:
    """Whether a job is to bring a certificate."""
    return job["type"] in {"Issuance", "Renewal"}


def is_open(job: Json) -> bool:
    """Whether something is still to come of a job."""
    return job["status"] not in {"Completed", "Cancelled", "Failed"} or bool(job.get("next_retry_at"))


def moment(text: str | None) -> datetime | None:
    """Return a time of the API; None where it has none."""
    return datetime.fromisoformat(text).astimezone(UTC) if text and not text.startswith(NEVER) else None


def gather(client: Client, id: str) -> Story:
    """Return what a server says of a certificate.

    Raises:
        ClientError: as of ``Client``; with status 404 if there is no such certificate.
    """
    certificate = client.get("certificates", id)
    jobs = client.page("jobs", certificate_id=id, per_page=LONGEST).data
    deployments = list(client.page("certificates", id, "deployments", per_page=LONGEST).data)
    agents = {each["agent_id"] for each in (*jobs, *deployments) if each.get("agent_id")}
    return Story(
        now=datetime.now(UTC),
        certificate=certificate,
        policy=client.get("renewal-policies", certificate["renewal_policy_id"]),
        issuer=client.get("issuers", certificate["issuer_id"]),
        jobs=jobs,
        versions=client.page("certificates", id, "versions", per_page=LONGEST).data,
        deployments=deployments,
        agents={agent: client.get("agents", agent) for agent in sorted(agents)},
        violations=list(_violations(client, id)),
    )


def _violations(client: Client, id: str) -> Iterator[tuple[Json, Json]]:
    for rule in client.every("policies", enabled=True):
        open_ = client.page("policies", rule["id"], "violations", certificate_id=id, resolved=False)
        yield from ((rule, breach) for breach in open_.data)
