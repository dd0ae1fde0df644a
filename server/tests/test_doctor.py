"""The doctor finds what is wrong, says what to do, and goes on whatever state the installation is in."""

import json
import os
from datetime import UTC, datetime, timedelta

import pytest
from certctl_core.job import JobState, JobType
from certctl_sdk.testing.redis import Redis
from certctl_server import db, doctor_database, sealing, start
from certctl_server.agents.tables import Agent
from certctl_server.audit.chain import HEAD_FILE
from certctl_server.audit.record import SYSTEM
from certctl_server.certificates.create import create
from certctl_server.certificates.tables import Certificate, CertificateTarget, CertificateVersion
from certctl_server.db import clock, session
from certctl_server.doctor import examine
from certctl_server.doctor_findings import State
from certctl_server.issuers.tables import Issuer
from certctl_server.jobs.create import NewJob
from certctl_server.jobs.create import create as create_jobs
from certctl_server.jobs.state import move
from certctl_server.jobs.tables import Job, LoopBeat
from certctl_server.leader import Leadership
from certctl_server.main import main
from certctl_server.settings import Settings
from certctl_server.targets.tables import Target
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import SecretStr
from server_flow import wanted

DAY = timedelta(days=1)


@pytest.fixture
def look(ctx):
    """What the doctor sees in the open database, by check."""

    async def looked():
        found = {}
        async for finding in doctor_database.looks(ctx.settings):
            found.setdefault(finding.check, []).append(finding)
        return found

    return looked


@pytest.fixture
async def sound(ctx, grounds):
    """An installation of which nothing bad can be said."""
    ctx.settings = ctx.settings.model_copy(update={"config_encryption_key": SecretStr("ab" * 32)})
    await sealing.load(ctx.settings)
    assert await Leadership("leads", timedelta(minutes=5), alone=True).campaign()
    await LoopBeat.insert(LoopBeat(name="jobs", late_at=db.now() + DAY))


async def ordered(name="a.example"):
    return await create(wanted(name), SYSTEM)


def authority(end):
    """The certificate of a CA that ends then."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, end - 9999 * DAY, end)
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


async def agent(id, **more):
    times = {"created_at": db.now(), "updated_at": db.now(), "registered_at": db.now()}
    await Agent.insert(Agent(id=id, name=id, **times, **more))


async def test_of_a_sound_installation_all_is_well(sound, look):
    found = await look()
    assert {finding.state for findings in found.values() for finding in findings} == {State.OK}
    assert {finding.advice for findings in found.values() for finding in findings} == {""}


async def stale_lease():
    await create_jobs([NewJob(type=JobType.SCAN, place="p", lane="l", due=True)], SYSTEM)
    await move(Job.place == "p", JobState.PENDING, JobState.RUNNING, lease_until=db.now() - DAY, due_at=None)


async def due_for_long():
    await create_jobs([NewJob(type=JobType.SCAN, place="p", lane="l", due=True)], SYSTEM)
    await Job.update(due_at=db.now() - DAY).where(Job.place == "p")


async def offered_to_nobody():
    await agent("gone", status="Offline")
    await create_jobs([NewJob(type=JobType.DEPLOYMENT, place="p", agent_id="gone", offered=True)], SYSTEM)
    await Job.update(offer_at=db.now() - DAY).where(Job.place == "p")


async def failed_for_good():
    await create_jobs([NewJob(type=JobType.SCAN, place="p")], SYSTEM)
    await move(Job.place == "p", JobState.PENDING, JobState.RUNNING)
    await move(Job.place == "p", JobState.RUNNING, JobState.FAILED, last_error="in vain")


async def interrupted():
    _, job_id = await ordered()
    text = """
        INSERT INTO intent (
            job_id, number, issuer_id, certificate_id, csr_sha256, public_key_sha256, status, created_at)
        SELECT id, 1, issuer_id, certificate_id, '', '', 'open', $2 FROM job WHERE id = $1
        """
    await db.fetch(db.Sql(text), job_id, db.now() - 2 * DAY)


async def overdue():
    id, _ = await ordered()
    await Certificate.update(renew_due_at=db.now() - DAY).where(Certificate.id == id)


async def expired():
    id, _ = await ordered()
    await Certificate.update(expires_at=db.now() - DAY).where(Certificate.id == id)


async def expired_on_a_target():
    id, _ = await ordered()
    times = {"created_at": db.now(), "updated_at": db.now()}
    for target, enabled in (("on", True), ("off", False)):
        await Target.insert(Target(id=target, name=target, type="NGINX", enabled=enabled, status="ready", **times))
    # Of two certificates one is there on a target that nobody looks at.
    for each, target in ((id, "on"), ((await ordered("b.example"))[0], "off")):
        await Certificate.update(expires_at=db.now() + DAY).where(Certificate.id == each)
        place = CertificateTarget(certificate_id=each, target_id=target, not_after=db.now() - DAY)
        await CertificateTarget.insert(place)


async def incomplete():
    await Issuer.update(status="incomplete").where(Issuer.id == "iss-local")


async def failing():
    await Issuer.update(status="failing").where(Issuer.id == "iss-local")


async def late_loop():
    await LoopBeat.insert(LoopBeat(name="retention", late_at=db.now() - DAY))


async def failed_loop():
    await LoopBeat.insert(LoopBeat(name="retention", last_error="OSError: no", late_at=db.now() + DAY))


async def miscounted():
    await db.fetch(db.Sql("INSERT INTO tally (dimension, value, detail, n) VALUES ('agent', 'Online', '', 7)"))


async def nobody_leads():
    await db.fetch(db.Sql("UPDATE lease SET lease_until = {after:-60}"))


ILLS = {
    "leases": (stale_lease, State.FAIL, "1 jobs are Running"),
    "due jobs": (due_for_long, State.WARN, "1 jobs have been due"),
    "offers": (offered_to_nobody, State.WARN, "1 jobs wait for agents"),
    "orders without agent": (ordered, State.WARN, "1 orders wait"),
    "failed jobs": (failed_for_good, State.WARN, "1 jobs failed for good"),
    "interrupted orders": (interrupted, State.WARN, "1 orders were interrupted"),
    "agents": (lambda: agent("gone", status="Offline"), State.WARN, "1 agents are offline"),
    "clocks of agents": (lambda: agent("fast", status="Online", clock_offset_ms=-400_000), State.WARN, "1 agents"),
    "renewals": (overdue, State.WARN, "1 certificates have been due"),
    "expired": (expired, State.WARN, "1 certificates have expired"),
    "expired, on a target": (expired_on_a_target, State.WARN, "1 certificates have expired"),
    "issuers": (incomplete, State.WARN, "iss-local is not configured whole"),
    "issuers, failing": (failing, State.FAIL, "iss-local fails"),
    "loops": (late_loop, State.WARN, "late: retention"),
    "loops, failed": (failed_loop, State.FAIL, "retention failed: OSError: no"),
    "totals": (miscounted, State.FAIL, "1 totals are off, such as agent Online by +7"),
    "leader": (nobody_leads, State.WARN, "no server leads"),
}


@pytest.mark.parametrize("ill", ILLS)
async def test_each_ill_is_found_with_what_to_do(sound, look, ill):
    cause, state, words = ILLS[ill]
    await cause()
    [finding] = [each for each in (await look())[ill.split(",")[0]] if each.state is not State.OK]
    assert (finding.state, words in finding.found, bool(finding.advice)) == (state, True, True), finding


async def test_a_ca_that_ends_soon_is_told(sound, fleet, look, monkeypatch):
    await fleet.served(await fleet.machine("a"))
    [finding] = (await look())["CA certificates"]
    assert (finding.state, "iss-local ends on" in finding.found) == (State.OK, True)
    monkeypatch.setattr(doctor_database, "CA_SOON", 9999 * DAY)
    [finding] = (await look())["CA certificates"]
    assert finding.state is State.WARN


async def test_the_ca_of_the_newest_version_that_is_not_archived_is_looked_at(sound, fleet, look):
    machine = await fleet.machine("a")
    first = await fleet.served(machine)
    second = await fleet.certificate("b.example", targets=["tgt-a"])
    await machine.answer_orders()
    assert (await fleet.post(f"certificates/{first}/renew", force=True)).status_code == 202
    await machine.answer_orders()
    ends = [db.now() + years * 365 * DAY for years in (1, 2, 3)]
    rows = await CertificateVersion.select().order_by(CertificateVersion.created_at)
    for row, end in zip(rows, ends, strict=True):
        [leaf, *_] = x509.load_pem_x509_certificates(row["pem_chain"].encode())
        pem = leaf.public_bytes(serialization.Encoding.PEM).decode() + authority(end)
        await CertificateVersion.update(pem_chain=pem).where(CertificateVersion.id == row["id"])
    [finding] = (await look())["CA certificates"]
    assert f"{ends[2]:%Y-%m-%d}" in finding.found, "renewed last, made first"
    assert (await fleet.people.delete(f"/api/v1/certificates/{first}")).is_success
    [finding] = (await look())["CA certificates"]
    assert f"{ends[1]:%Y-%m-%d}" in finding.found
    assert second == rows[1]["certificate_id"]


async def test_a_clock_that_the_process_follows_is_compared_with_this_machines(sound, look, monkeypatch):
    assert (await look())["clock"][0].state is State.OK
    monkeypatch.setattr(session, "CLOCK", db.Sql("SELECT {after:600} AS now"))
    clock.follow(datetime.now(UTC) + timedelta(seconds=600))
    try:
        [finding] = (await look())["clock"]
    finally:
        clock.forget()
    assert finding.state is State.FAIL, finding


async def test_another_key_is_told(sound, ctx, look):
    ctx.settings = ctx.settings.model_copy(update={"config_encryption_key": SecretStr("cd" * 32)})
    [finding] = (await look())["encryption key"]
    assert (finding.state, "not the one of this database" in finding.found) == (State.FAIL, True)


async def test_looking_makes_no_key(ctx, look):
    [finding] = (await look())["encryption key"]
    assert finding.state is State.WARN
    assert not (ctx.settings.data_dir / "encryption-key").exists()
    assert await sealing.recall(sealing.CHECK) == ""


async def test_a_trail_that_was_seen_longer_is_told(sound, ctx, look):
    seen = {"sequence": 10, "hash": "ab", "signature": "", "epoch": 1}
    (ctx.settings.data_dir / HEAD_FILE).write_text(json.dumps(seen))
    [finding] = (await look())["restores"]
    assert finding.state is State.FAIL


async def test_a_schema_that_is_half_there_is_told_and_the_rest_goes_on(sound, look):
    await db.fetch(db.Sql("DELETE FROM migration WHERE name = 'm0005_retention'"))
    await db.fetch(db.Sql("DROP TABLE loop_beat"))
    found = await look()
    assert [each.found for each in found["migrations"]] == ["lacks m0005_retention"]
    [loops] = found["loops"]
    assert (loops.state, loops.found.startswith("cannot be looked at")) == (State.FAIL, True)
    assert found["issuers"][0].state is State.OK


async def test_a_newer_schema_is_told(sound, look):
    await db.fetch(db.Sql("INSERT INTO migration (name, ran_on) VALUES ('m9999_later', {now})"))
    assert [each.found for each in (await look())["migrations"]] == ["a newer version added m9999_later"]


async def findings(settings):
    found = {}
    for finding in await examine(settings):
        found.setdefault(finding.check, finding)
    return found


@pytest.mark.parametrize("url", ["postgres://nobody@127.0.0.1:1/none"])
async def test_a_database_that_is_away_is_told_and_the_rest_goes_on(tmp_path, url):
    found = await findings(Settings(data_dir=tmp_path, database={"url": url}, config_encryption_key="ab" * 32))
    assert found["database"].state is State.FAIL
    assert found["disk"].state is State.OK


@pytest.fixture
def private():
    """As every command of ours begins: what is made is its owner's alone."""
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("private")
async def test_beside_a_running_server_and_without_one(tmp_path):
    settings = Settings(data_dir=tmp_path / "data")
    assert (await findings(settings))["database"].found.startswith("there is no")
    assert not (tmp_path / "data").exists()
    async with start.ground(settings):
        await start.hand_over(settings, "", terminal=False)
    before = {path.name for path in settings.data_dir.iterdir()}
    found = await findings(settings)
    assert (found["server"].found, found["integrity"].state) == ("none runs here", State.OK)
    assert (found["permissions"].state, found["first keys"].state) == (State.OK, State.WARN)
    assert {path.name for path in settings.data_dir.iterdir()} == before
    with start.alone(settings):
        assert (await findings(settings))["server"].found == f"process {os.getpid()}"


async def test_files_that_others_may_read_are_told(tmp_path):
    settings = Settings(data_dir=tmp_path / "data")
    async with start.ground(settings):
        pass
    (settings.data_dir / "encryption-key").chmod(0o644)
    found = (await findings(settings))["permissions"]
    assert (found.state, found.advice) == (State.FAIL, f"chmod 600 {settings.data_dir / 'encryption-key'}")


async def test_a_damaged_file_is_told(tmp_path):
    settings = Settings(data_dir=tmp_path / "data")
    async with start.ground(settings):
        pass
    (settings.data_dir / "certctl.db").write_bytes(b"no database" * 1000)
    found = await findings(settings)
    assert (found["integrity"].state, found["database"].state) == (State.FAIL, State.FAIL)


async def test_a_listener_in_the_clear_is_told(tmp_path):
    found = await findings(
        Settings(data_dir=tmp_path, server={"host": "0.0.0.0", "tls_mode": "off"}, auth={"type": "none"})
    )
    assert (found["listener"].state, found["keys of callers"].state) == (State.WARN, State.WARN)


async def test_a_broker_is_asked(tmp_path):
    settings = {"database": {"url": "postgres://nobody@127.0.0.1:1/none"}, "config_encryption_key": "ab" * 32}
    with Redis() as redis:
        found = await findings(Settings(data_dir=tmp_path, broker_url=redis.url, **settings))
        assert found["broker"].state is State.OK
    found = await findings(Settings(data_dir=tmp_path, broker_url=redis.url, **settings))
    assert (found["broker"].state, redis.url not in found["broker"].found) == (State.FAIL, True)


def test_the_command_answers_in_two_forms_and_fails_when_something_is_broken(tmp_path, monkeypatch):
    monkeypatch.setenv("CERTCTL_DATA_DIR", str(tmp_path))
    broken = CliRunner().invoke(main, ["doctor"])
    assert (broken.exit_code, "there is no" in broken.output) == (1, True), broken.output
    assert CliRunner().invoke(main, ["audit", "verify"]).exit_code == 0
    told = CliRunner().invoke(main, ["doctor", "--format", "json"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.output)
    assert found["state"] == "warn"
    assert {"check", "state", "found", "what_to_do"} == set(found["findings"][0])
