"""Step 6 of the main flow (docs/main-flow.md): the one path on which anything is signed.

The intent is committed, the issuer signs, what it returned is checked against the order, the version is stored.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from certctl_core.csr import CheckedCsr, CsrError, match_names, read_csr
from certctl_core.errors import MisconfiguredError, RejectedError, TransientError
from certctl_core.issued import Issued, IssuedError, NotYetValid, check_issued
from certctl_core.issuer import (
    Finder,
    FindRequest,
    IssuedCertificate,
    Issuer,
    IssueRequest,
    PendingOrder,
    Poller,
    PollRequest,
)
from certctl_core.job import JobState
from certctl_core.names import San, normalise_sans
from certctl_core.policy import Act
from certctl_core.profile import DEFAULT, Profile, check_certificate, check_csr
from certctl_core.run import LeaseLost, Run

from certctl_server import db
from certctl_server.certificates.versions import store
from certctl_server.connectors.instances import Instances
from certctl_server.jobs import intents
from certctl_server.jobs.state import Claimed, end
from certctl_server.leader import TROUBLE
from certctl_server.policies.judge import Forbidden, forbidden, refusal
from certctl_server.rules.profiles import of_row
from certctl_server.whole import whole

log = logging.getLogger(__name__)
SUBJECT_LENGTH = 64
INSIST_SECONDS, INSIST_PAUSE_SECONDS = 60.0, 0.5
PENDING = "$pending"
"""Where a pending order's reference is kept in the job's saved state, beside what the connector saved."""
ORDER = db.Sql(
    """
    SELECT c.id, c.common_name, c.sans, c.archived_at, c.revoked_at, v.pem_chain AS previous, f.id AS profile_id,
        f.name, f.allowed_key_algorithms, f.max_ttl_seconds, f.allowed_ekus, f.required_san_patterns,
        f.spiffe_uri_pattern,
        f.allow_short_lived, f.no_rev_avail, f.include_common_name, f.requires_approval
    FROM certificate c LEFT JOIN certificate_profile f ON f.id = c.certificate_profile_id
        LEFT JOIN certificate_version v ON v.id = c.version_id
    WHERE c.id IN ({ids:$1})
    """
)
KEY_IN_USE = db.with_rows(
    {"key": "text", "certificate_id": "text"},
    """
    SELECT row.key, row.certificate_id, 'a key that was compromised' AS why
    FROM {row} JOIN blocked_key b ON b.public_key_sha256 = row.key
    UNION SELECT row.key, row.certificate_id,
        CASE WHEN v.certificate_id <> row.certificate_id THEN 'the key of another certificate'
        ELSE 'the key of what was revoked' END
    FROM {row} JOIN certificate_version v ON v.public_key_sha256 = row.key JOIN certificate c ON c.id = v.certificate_id
    WHERE v.certificate_id <> row.certificate_id OR v.revoked_at IS NOT NULL OR c.revoked_at IS NOT NULL
    UNION SELECT row.key, row.certificate_id, 'the key of another certificate'
    FROM {row} JOIN intent i ON i.public_key_sha256 = row.key AND i.certificate_id <> row.certificate_id
    WHERE i.status IN ('open', 'unresolved')
    """,
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One claimed order, with what running it takes."""

    job: Claimed
    run: Run
    instances: Instances
    orphaned: Callable[[Issued, str], Awaitable[None]]
    """Told what was signed, and its reference, when the job turned out not to be ours any more."""


@dataclass(frozen=True, slots=True)
class Ordered:
    """What the order says the certificate must be."""

    common_name: str
    sans: tuple[San, ...]
    profile: Profile
    previous_pem: str | None

    @property
    def subject(self) -> str:
        """The common name for the subject, empty where it is to be left out (RFC 5280 ub-common-name)."""
        wanted = self.profile.include_common_name and len(self.common_name) <= SUBJECT_LENGTH
        return self.common_name if wanted else ""


async def ordered(certificate_id: str, *, forced: bool) -> Ordered:
    """Return what a certificate is to be, as its row and profile say now.

    Raises:
        RejectedError: it was archived meanwhile, or revoked and the order is not ``forced``.
    """
    row = await _order(certificate_id)
    if row["archived_at"] is not None:
        raise RejectedError("the certificate was archived")
    if row["revoked_at"] is not None and not forced:
        raise RejectedError("the certificate was revoked")
    names = normalise_sans(
        [row["common_name"], *json.loads(row["sans"])] if row["common_name"] else json.loads(row["sans"])
    )
    profile = of_row(row) if row["profile_id"] else DEFAULT
    return Ordered(row["common_name"], names, profile, row["previous"])


async def _orders(ids: list[str]) -> list[db.Row]:
    found = {row["id"]: row for row in await db.fetch(ORDER, json.dumps(ids))}
    return [found[id] for id in ids]


_order = db.Together(_orders, apart=True)


async def key_in_use(key_sha256: str, certificate_id: str) -> list[str]:
    """Return what speaks against a certificate for this key; empty if nothing does."""
    return await _in_use((key_sha256, certificate_id))


async def _faults(asked: list[tuple[str, str]]) -> list[list[str]]:
    faults: dict[tuple[str, str], list[str]] = {each: [] for each in asked}
    rows = [{"key": key, "certificate_id": certificate_id} for key, certificate_id in faults]
    for row in await db.fetch(KEY_IN_USE, json.dumps(rows)):
        faults[row["key"], row["certificate_id"]].append(row["why"])
    return [faults[each] for each in asked]


_in_use = db.Together(_faults)


async def accept(csr_pem: str, certificate_id: str, order: Ordered) -> CheckedCsr:
    """Return the CSR if it fits the order (spec/api.md 9.4): names, proof of possession, key, profile.

    Raises:
        CsrError: it does not, with every reason.
    """
    csr = read_csr(csr_pem)
    match_names(csr, order.common_name, order.sans)
    faults = check_csr(order.profile, csr)
    faults += [f"the CSR carries {why}" for why in await key_in_use(csr.public_key_sha256, certificate_id)]
    if faults:
        raise CsrError("; ".join(faults))
    return csr


async def issue(attempt: Attempt) -> bool:
    """Do one Issuance or Renewal whose CSR is stored, from wherever an earlier attempt left it.

    Returns whether it is done, which it is not while the CA has yet to decide.

    Raises:
        ConnectorError: the attempt failed.
        LeaseLost: another worker has the job.
    """
    job = attempt.job
    order = await ordered(job.certificate_id, forced=bool(job.request.get("force")))
    # A rule may have come since it was ordered.
    for broken in (await forbidden(Act.ORDER, [job.certificate_id])).values():
        raise Forbidden(refusal(broken))
    try:
        csr = await accept(job.csr_pem, job.certificate_id, order)
    except CsrError as exc:
        raise RejectedError(f"the CSR was refused: {exc}") from exc
    issuer = await attempt.instances.issuer(job.issuer_id)
    left, found = await _taken_up(attempt, csr, order, issuer)
    outcome = found or await _outcome(attempt, csr, order, issuer)
    if isinstance(outcome, PendingOrder):
        await _wait(job, attempt.run.state, outcome)
    else:
        # What is signed is kept, or revoked if the job was called off meanwhile: no cancellation comes in between.
        await whole(_keep(attempt, csr, order, outcome))
    if left is not None:
        await intents.settle(left, "settled")
    return not isinstance(outcome, PendingOrder)


async def _taken_up(
    attempt: Attempt, csr: CheckedCsr, order: Ordered, issuer: Issuer
) -> tuple[db.Row | None, IssuedCertificate | PendingOrder | None]:
    """Find what orders of earlier jobs with this key came to that nobody knows of; return one that serves this job."""
    if not isinstance(issuer, Finder) or PENDING in attempt.job.run_state or await intents.last(attempt.job):
        return None, None
    while (left := await intents.former(attempt.job, csr)) is not None:
        found = await _find(attempt, issuer, issuer.find, left["csr_pem"], left)
        if isinstance(found, PendingOrder):
            return left, found
        if found is not None:
            with suppress(RejectedError, TransientError):
                _checked(found, csr, order)
                return left, found
        await intents.settle(left, "settled" if found else "failed")
    return None, None


async def _keep(attempt: Attempt, csr: CheckedCsr, order: Ordered, outcome: IssuedCertificate) -> None:
    try:
        issued = _checked(outcome, csr, order)
    except TransientError as exc:
        await intents.close(attempt.job, "failed", str(exc))
        raise
    told = {"job": attempt.job.id, "issuer": attempt.job.issuer_id, "serial_number": issued.leaf.serial_number}
    try:
        await _insist(lambda: store(attempt.job, csr, issued, outcome.reference), told)
    except LeaseLost:
        await _insist(lambda: attempt.orphaned(issued, outcome.reference), told)
        raise


async def _insist(work: Callable[[], Awaitable[Any]], told: Mapping[str, str]) -> None:
    """Try again while the database has trouble: what was signed is nowhere else. The job's fence keeps that safe."""
    until = time.monotonic() + INSIST_SECONDS
    while True:
        try:
            await work()
        except TROUBLE as exc:
            if time.monotonic() > until:
                log.error("what a CA signed could not be stored", extra=told, exc_info=exc)
                raise
            await asyncio.sleep(INSIST_PAUSE_SECONDS)
        else:
            return


async def _outcome(
    attempt: Attempt, csr: CheckedCsr, order: Ordered, issuer: Issuer
) -> IssuedCertificate | PendingOrder:
    job, run, instances = attempt.job, attempt.run, attempt.instances
    reference = job.run_state.get(PENDING)
    if reference is not None and isinstance(issuer, Poller):
        poller = issuer
        polled = PollRequest(reference=str(reference))
        return await _answered(job, instances.call(issuer, "poll", lambda: poller.poll(polled, run)))
    left = await intents.last(job)
    unknown = left is not None and left["status"] == "unresolved" and isinstance(issuer, Finder)
    if left is not None and (left["status"] == "open" or unknown):
        found = await _settle(attempt, csr, left, issuer)
        if found is not None:
            return found
    if left is None or left["status"] != "open":
        await intents.begin(job, csr, f"the last attempt {left['status']}" if left else "")
    request = IssueRequest(
        csr_pem=csr.pem,
        sans=order.sans,
        common_name=order.subject,
        lifetime=order.profile.max_ttl,
        profile=order.profile.name or None,
        ekus=order.profile.allowed_ekus,
        no_rev_avail=order.profile.no_rev_avail,
        previous_cert_pem=order.previous_pem,
    )
    return await _answered(job, instances.call(issuer, "issue", lambda: issuer.issue(request, run)))


async def _answered(
    job: Claimed, call: Awaitable[IssuedCertificate | PendingOrder]
) -> IssuedCertificate | PendingOrder:
    """Return what the CA answers. Only what it refuses itself has come to nothing for sure."""
    try:
        return await call
    except (RejectedError, MisconfiguredError) as exc:
        await intents.close(job, "failed", str(exc))
        raise


async def _find(
    attempt: Attempt,
    issuer: Issuer,
    find: Callable[[FindRequest, Run], Coroutine[Any, Any, IssuedCertificate | PendingOrder | None]],
    csr_pem: str,
    left: db.Row,
) -> IssuedCertificate | PendingOrder | None:
    asked = FindRequest(csr_pem=csr_pem, since=left["created_at"], reference=left["reference"] or None)
    return await attempt.instances.call(issuer, "find", lambda: find(asked, attempt.run))


async def _settle(
    attempt: Attempt, csr: CheckedCsr, left: db.Row, issuer: Issuer
) -> IssuedCertificate | PendingOrder | None:
    """Find out what became of an order that was interrupted; None: it is to be placed, or resumed, now."""
    job, run = attempt.job, attempt.run
    if isinstance(issuer, Finder):
        return await _find(attempt, issuer, issuer.find, csr.pem, left)
    forgotten = left["reason"] == intents.RESTORED
    if run.state or (issuer.saves_first and not forgotten):
        return None
    interrupted = "an attempt was interrupted after the order may have reached the CA, which cannot be asked"
    why = left["reason"] if forgotten else interrupted
    async with db.transaction():
        await intents.close(job, "unresolved", why)
        await intents.begin(job, csr, why)
    return None


async def _wait(job: Claimed, state: Mapping[str, Any], pending: PendingOrder) -> None:
    await end(
        job,
        JobState.PENDING,
        due_at=db.now() + max(pending.poll_after, timedelta(seconds=1)),
        run_state=json.dumps({**state, PENDING: pending.reference}),
    )


def _checked(outcome: IssuedCertificate, csr: CheckedCsr, order: Ordered) -> Issued:
    try:
        issued = check_issued(outcome.cert_pem, outcome.chain_pem, csr, sans=order.sans, now=db.now())
    except NotYetValid as exc:
        # A clock was set meanwhile: what is signed next is signed by the new time.
        raise TransientError(f"what the CA returned was refused: {exc}") from exc
    except IssuedError as exc:
        raise RejectedError(f"what the CA returned was refused: {exc}") from exc
    if faults := check_certificate(order.profile, issued.leaf):
        raise RejectedError(f"what the CA returned breaks the profile: {'; '.join(faults)}")
    return issued
