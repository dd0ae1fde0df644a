"""Jobs, the lanes they wait in, and what was about to be signed."""

from piccolo.columns import BigInt, ForeignKey, OnDelete, Text, Timestamptz, Varchar
from piccolo.table import Table

from certctl_server.certificates.tables import Certificate


class Lane(Table):
    """One peer that must neither be overrun nor starve others. ``tokens`` NULL: no rate is known."""

    name = Varchar(length=160, primary_key=True)
    concurrency = BigInt(default=25)
    tokens = BigInt(null=True, default=None)
    circuit_until = Timestamptz(null=True, default=None)


class Job(Table):
    """One piece of work, done by one at a time.

    ``place`` is taken while the job is open and unique, so that no work is doubled. ``due_at`` is set while a
    worker may claim it, ``offer_at`` while its agent may have it; both are NULL for whoever may not.
    ``status`` is written in ``state.py`` alone.
    """

    id = Varchar(length=128, primary_key=True)
    type = Varchar(length=16)
    certificate_id = ForeignKey(Certificate, null=True, default=None, on_delete=OnDelete.restrict)
    target_id = Varchar(length=128, null=True, default=None)
    agent_id = Varchar(length=128, null=True, default=None)
    issuer_id = Varchar(length=128, null=True, default=None)
    version_id = Varchar(length=128, null=True, default=None)
    lane = Varchar(length=160, default="")
    status = Varchar(length=20)
    place = Varchar(length=400, null=True, default=None)
    priority = BigInt(default=5)
    due_at = Timestamptz(null=True, default=None)
    offer_at = Timestamptz(null=True, default=None)
    owner = Varchar(length=160, default="")
    fence = BigInt(default=0)
    beat = BigInt(default=0)
    lease_until = Timestamptz(null=True, default=None)
    attempts = BigInt(default=0)
    failures = BigInt(default=0)
    crashes = BigInt(default=0)
    max_attempts = BigInt(default=3)
    last_error = Text(default="")
    next_retry_at = Timestamptz(null=True, default=None)
    requested_by = Varchar(length=255, default="")
    request = Text(default="{}")
    result = Text(default="{}")
    run_state = Text(default="{}")
    csr_pem = Text(default="")
    csr_sha256 = Varchar(length=64, default="")
    traceparent = Varchar(length=64, default="")
    scheduled_at = Timestamptz()
    started_at = Timestamptz(null=True, default=None)
    completed_at = Timestamptz(null=True, default=None)
    created_at = Timestamptz()
    verification_status = Varchar(length=16, default="pending")
    verified_at = Timestamptz(null=True, default=None)
    verification_error = Text(default="")
    verification_fingerprint = Varchar(length=64, default="")


class Intent(Table):
    """That a CSR is about to be sent to a CA. The real key is (job_id, number); a second one carries a reason."""

    job_id = ForeignKey(Job, null=False, on_delete=OnDelete.restrict, primary_key=True)
    number = BigInt()
    issuer_id = Varchar(length=128)
    certificate_id = Varchar(length=128)
    csr_sha256 = Varchar(length=64)
    public_key_sha256 = Varchar(length=64)
    status = Varchar(length=16)
    reason = Text(default="")
    reference = Text(default="")
    version_id = Varchar(length=128, null=True, default=None)
    created_at = Timestamptz()
    settled_at = Timestamptz(null=True, default=None)


class Lease(Table):
    """Who leads; ``epoch`` grows with every new leader."""

    name = Varchar(length=64, primary_key=True)
    owner = Varchar(length=160, default="")
    epoch = BigInt(default=0)
    beat = BigInt(default=0)
    lease_until = Timestamptz(null=True, default=None)


class LoopBeat(Table):
    """When each background loop last ran."""

    name = Varchar(length=64, primary_key=True)
    started_at = Timestamptz(null=True, default=None)
    finished_at = Timestamptz(null=True, default=None)
    last_error = Text(default="")
