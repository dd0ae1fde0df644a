"""What holds for every background loop, later ones included: only the leader writes, and what is due is done once."""

import json
from contextlib import suppress
from datetime import timedelta

import pytest
from certctl_core.job import JobState, JobType
from certctl_server import db
from certctl_server.audit.record import SYSTEM
from certctl_server.engine import loops_of
from certctl_server.jobs import bell
from certctl_server.jobs.create import NewJob, create
from certctl_server.jobs.state import claim
from certctl_server.jobs.sweeper import Sweeper
from certctl_server.jobs.tables import Job
from certctl_server.leader import Leadership, NotLeading
from certctl_server.policies.tables import PolicyRule
from certctl_server.settings import Settings
from certctl_server.tables import TABLES

LEASE = timedelta(seconds=30)
#: Of the engine's own keeping, or written down a moment after a call.
KEPT = {"lease", "loop_beat", "setting", "api_key"}
#: Loops for which ``everything_due`` has nothing, and where their work is tested.
ELSEWHERE = {
    "maintenance windows": "test_windows.py",
    "rollouts": "test_rollout.py",
    "restores": "test_restored.py",
}
LATE = (
    "UPDATE certificate_version SET not_after = {after:400000}, not_before = {after:-7376000}",
    "UPDATE certificate SET expires_at = {after:400000}, not_before = {after:-7376000} WHERE version_id IS NOT NULL",
    "UPDATE certificate_target SET not_after = {after:400000} WHERE not_after IS NOT NULL",
    """UPDATE certificate SET renew_due_at = {after:-60}, flip_at = {after:-60}, alert_due_at = {after:-60}
        WHERE version_id IS NOT NULL""",
    "UPDATE job SET verification_status = 'pending', completed_at = {after:-3600} WHERE type = 'Deployment'",
    "UPDATE agent SET last_heartbeat_at = {after:-3600}",
    "UPDATE job SET scheduled_at = {after:-172800} WHERE status = 'AwaitingCSR'",
    "UPDATE job SET lease_until = {after:-60} WHERE owner = 'agent:a' AND status = 'Running'",
    "UPDATE job SET kept_since = {after:-31536000} WHERE place = 'old' OR lane = 'old'",
    "INSERT INTO follow_up (reference, row_id, reached) VALUES ('issuer_id', 'iss-local', '')",
)


class _Ctx:
    settings = Settings()


NAMES = [loop.name for loop in loops_of(_Ctx(), Sweeper(lambda _: False, LEASE, alone=False))]


@pytest.fixture
async def everything_due(fleet, ctx):
    """Something for every loop."""
    machine = await fleet.machine("a")
    await fleet.served(machine)
    await fleet.certificate("b.example", targets=["tgt-a"])
    bell.connect(None, None)
    lanes = {"agents": "agent:a", "failed": "worker", "old": "worker"}
    new = [NewJob(type=JobType.SCAN, place=lane, lane=lane, due=True) for lane in lanes]
    await create(new, SYSTEM)
    for lane, owner in lanes.items():
        await claim(owner, lane, limit=1, lease=LEASE)
    await Job.update(status=JobState.FAILED, next_retry_at=db.now() - LEASE, lease_until=None).where(
        Job.lane == "failed"
    )
    await Job.update(status=JobState.COMPLETED, completed_at=db.now(), place=None, lease_until=None).where(
        Job.lane == "old"
    )
    times = {"created_at": db.now(), "updated_at": db.now()}
    await PolicyRule.insert(PolicyRule(id="pr", name="none", type="AllowedEnvironments", **times))
    for statement in LATE:
        await db.fetch(db.Sql(statement))


@pytest.fixture
async def leaders(database):
    """Who led, and who does now."""
    former, present = (Leadership(name, LEASE, alone=True) for name in ("former", "present"))
    await former.campaign()
    await present.campaign()
    return former, present


async def everything():
    """Every row there is."""
    names = sorted(table._meta.tablename for table in TABLES if table._meta.tablename not in KEPT)
    rows = {name: await db.fetch(db.Sql(f"SELECT * FROM {name}")) for name in names}
    rows["audit_event"] = [row for row in rows["audit_event"] if row["resource_type"] != "api"]
    return {name: sorted(json.dumps(row, default=str, sort_keys=True) for row in found) for name, found in rows.items()}


@pytest.mark.parametrize("name", NAMES)
async def test_every_loop_writes_for_the_leader_only_and_what_is_due_once(name, ctx, everything_due, leaders):
    former, present = leaders
    [loop] = [each for each in loops_of(ctx, Sweeper(lambda _: False, LEASE, alone=False)) if each.name == name]
    before = await everything()
    with suppress(NotLeading):
        await loop.work(former)
    assert await everything() == before
    await loop.work(present)
    after = await everything()
    assert (after != before) is (name not in ELSEWHERE)
    with suppress(NotLeading):
        await loop.work(former)
    await loop.work(present)
    again = await everything()
    assert [table for table in again if again[table] != after[table]] == []
