"""Jobs, the lanes they wait in, and what was about to be signed."""

from piccolo.columns import BigInt, ForeignKey, OnDelete, Text, Timestamptz, Varchar
from piccolo.table import Table

from certctl_server.certificates.tables import Certificate


class Lane(Table):
    """One peer that must neither be overrun nor starve others (docs/lanes.md). ``rates`` and ``faulted`` are JSON.

    ``concurrency`` bounds what runs at once; NULL: as CERTCTL_RENEWAL_CONCURRENCY has it.
    ``room_at``: until then the whole budget is spent. ``circuit_until``: until then nothing is claimed. ``opened``
    counts how often in a row the circuit opened; while it is more than none, one job at a time is let through.
    ``fault`` is how the last orders failed, ``faulted`` whose they were.
    """

    name = Varchar(length=160, primary_key=True)
    concurrency = BigInt(null=True, default=None)
    circuit_until = Timestamptz(null=True, default=None)
    rates = Text(default="[]")
    room_at = Timestamptz(null=True, default=None)
    fault = Text(default="")
    faulted = Text(default="[]")
    opened = BigInt(default=0)


class Budget(Table):
    """Orders of a lane by what they count against. The real key is (lane, key, total), total the sum so far.

    Claimed ``at`` that moment, and at the CA by ``arrived_at``, NULL while one of them may still be on its way.
    """

    lane = Varchar(length=160, primary_key=True)
    key = Varchar(length=300)
    total = BigInt()
    orders = BigInt()
    at = Timestamptz()
    arrived_at = Timestamptz(null=True, default=None)
    until = Timestamptz()


class Job(Table):
    """One piece of work, done by one at a time.

    ``place`` is taken while the job is open and unique, so that no work is doubled. Statements ask for the open jobs of
    certificates by ``coalesce(place, '') <> ''``: for ``IS NOT NULL`` PostgreSQL, which knows of few open jobs where
    few were open at its last ANALYZE, walks through all of them once for each certificate.
    ``due_at`` is set while a worker may claim it, ``offer_at`` while its agent may have it; both are NULL for whoever
    may not.
    ``urgency`` is how soon it is wanted, ``urgent_at`` when that becomes as soon as can be; ``priority`` is where it
    stands in its lane now. ``waits_for`` names the budget that has no room for it.
    ``window_at`` is set while maintenance windows hold it to its time: it is started from ``opens_at`` on and
    before ``window_at``, and looked at again then.
    ``kept_since`` is set once it is over: retention counts from it.
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
    urgency = BigInt(default=5)
    urgent_at = Timestamptz(null=True, default=None)
    waits_for = Text(default="")
    due_at = Timestamptz(null=True, default=None)
    offer_at = Timestamptz(null=True, default=None)
    offered_until = Timestamptz(null=True, default=None)
    opens_at = Timestamptz(null=True, default=None)
    window_at = Timestamptz(null=True, default=None)
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
    kept_since = Timestamptz(null=True, default=None)
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
    """When each background loop last ran, and from when on it counts as late."""

    name = Varchar(length=64, primary_key=True)
    started_at = Timestamptz(null=True, default=None)
    finished_at = Timestamptz(null=True, default=None)
    last_error = Text(default="")
    late_at = Timestamptz(null=True, default=None)
