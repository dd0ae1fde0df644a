import pytest
from certctl_sdk.testing.fake_ca import csr_pem
from certctl_server import db
from certctl_server.certificates.orders import give_csr
from cryptography.hazmat.primitives.asymmetric import ec

KEPT = db.Sql("SELECT agent_id FROM kept_csr")


@pytest.mark.parametrize(
    "pem",
    ["", "no PEM", csr_pem("b.example"), csr_pem("a.example", "b.example"), csr_pem("a.example") * 2],
    ids=["empty", "no PEM", "another name", "one name more", "two"],
)
async def test_a_csr_that_does_not_fit_is_refused_and_the_order_waits_on(fleet, machine, pem):
    id = await fleet.certificate("a.example", targets=["tgt"])
    assert (await machine.csr(id, pem=pem or "-")).status_code == 400
    [job] = await fleet.jobs(id)
    assert (job["status"], job["csr_sha256"]) == ("AwaitingCSR", "")
    assert (await machine.csr(id, "a.example")).json() == {"status": "csr_signed"}


async def test_the_job_says_why_the_agents_csr_was_refused(fleet, machine):
    id = await fleet.certificate("a.example", targets=["tgt"])
    await machine.csr(id, "b.example")
    [job] = await fleet.jobs(id)
    assert "b.example" in job["last_error"]


async def test_the_same_csr_again_gets_the_same_answer_and_makes_no_second_version(fleet, machine):
    id = await fleet.certificate("a.example", targets=["tgt"])
    pem = csr_pem("a.example")
    answers = [await machine.csr(id, pem=pem) for _ in range(3)]
    assert [(each.status_code, each.json()) for each in answers] == [(202, {"status": "csr_signed"})] * 3
    assert (await fleet.get(f"certificates/{id}/versions"))["total"] == 1
    assert len(await fleet.jobs(id, type="Issuance")) == 1


async def test_a_csr_that_was_signed_answers_no_newer_order(fleet, machine):
    id = await fleet.certificate("a.example", targets=["tgt"])
    pem = csr_pem("a.example")
    await machine.csr(id, pem=pem)
    await fleet.post(f"certificates/{id}/renew")
    assert (await machine.csr(id, pem=pem)).json() == {"status": "csr_signed"}
    [renewal] = await fleet.jobs(id, type="Renewal")
    assert (renewal["status"], renewal["csr_sha256"]) == ("AwaitingCSR", "")
    assert (await fleet.get(f"certificates/{id}/versions"))["total"] == 1


async def test_a_second_csr_for_an_order_that_has_one_is_refused(fleet, machine, runner):
    id = await fleet.certificate("a.example", targets=["tgt"])
    await db.fetch(db.Sql("UPDATE lane SET concurrency = 0"))
    [job] = await fleet.jobs(id)
    assert await give_csr([job["id"]], csr_pem("a.example"), "00" * 32) == [job["id"]]
    assert await give_csr([job["id"]], csr_pem("a.example"), "11" * 32) == []
    assert (await machine.csr(id, "a.example")).status_code == 409
    # The lease is not the agent's any more, so its report of a failure comes too late.
    assert (await machine.report(job["id"], "Failed")).status_code == 409
    assert await machine.work() == []


async def test_a_key_of_another_certificate_is_refused(fleet, machine):
    key = ec.generate_private_key(ec.SECP256R1())
    one = await fleet.certificate("a.example", targets=["tgt"])
    two = await fleet.certificate("b.example", targets=["tgt"])
    assert (await machine.csr(one, "a.example", key=key)).status_code == 202
    refused = await machine.csr(two, "b.example", key=key)
    assert (refused.status_code, "another certificate" in refused.text) == (400, True)
    await fleet.post(f"certificates/{one}/renew")
    assert (await machine.csr(one, "a.example", key=key)).status_code == 202


async def test_a_csr_without_certificate_joins_the_only_order_with_its_names(fleet, machine):
    id = await fleet.certificate("b.example", "a.example", targets=["tgt"])
    await fleet.certificate("c.example", targets=["tgt"])
    pem = csr_pem("a.example", "b.example")
    assert (await machine.csr("", pem=pem)).json() == {"status": "csr_signed"}
    assert (await machine.csr("", pem=pem)).json() == {"status": "csr_signed"}
    assert (await fleet.get(f"certificates/{id}/versions"))["total"] == 1


@pytest.mark.parametrize("waiting", [0, 2])
async def test_a_csr_that_fits_no_order_or_several_is_kept_for_a_day(fleet, machine, waiting):
    for n in range(waiting):
        await fleet.certificate("a.example", name=f"n{n}", targets=["tgt"])
    assert (await machine.csr("", "a.example")).json() == {"status": "csr_accepted"}
    assert await db.fetch(KEPT) == [{"agent_id": "ag-1"}]


@pytest.mark.parametrize("old", [False, True], ids=["in time", "a day later"])
async def test_a_kept_csr_answers_the_order_that_comes(fleet, machine, old):
    await machine.csr("", "a.example")
    if old:
        await db.fetch(db.Sql("UPDATE kept_csr SET until = {now}"))
    other = await fleet.machine("ag-2")
    not_his = await fleet.certificate("a.example", name="other", targets=[await fleet.target("tgt-2", other)])
    id = await fleet.certificate("a.example", targets=["tgt"])
    assert len(await fleet.jobs(not_his, csr_sha256="")) == 1
    assert len(await fleet.jobs(id, csr_sha256="")) == int(old)
    assert len(await db.fetch(KEPT)) == int(old)


async def test_an_agent_has_at_most_twenty_kept_csrs(fleet, machine):
    pems = [csr_pem(f"n{number}.example") for number in range(21)]
    answers = [await machine.csr("", pem=pem) for pem in pems]
    assert [each.status_code for each in answers] == [*[202] * 20, 429]
    assert int(answers[-1].headers["Retry-After"]) > 0
    assert (await machine.csr("", pem=pems[0])).status_code == 202
    other = await fleet.machine("ag-2")
    assert (await other.csr("", pem=pems[20])).status_code == 202
    await db.fetch(db.Sql("UPDATE kept_csr SET until = {now}"))
    assert (await machine.csr("", pem=pems[20])).status_code == 202


async def test_a_kept_csr_with_the_key_of_another_certificate_answers_no_order(fleet, machine):
    key = ec.generate_private_key(ec.SECP256R1())
    one = await fleet.certificate("a.example", targets=["tgt"])
    await machine.csr(one, "a.example", key=key)
    await machine.csr("", "b.example", key=key)
    two = await fleet.certificate("b.example", targets=["tgt"])
    assert len(await fleet.jobs(two, csr_sha256="")) == 1
    assert len(await db.fetch(KEPT)) == 1


async def test_an_agent_may_order_for_what_it_serves_and_leaves_nothing_behind_if_the_csr_is_wrong(fleet, machine):
    id = await fleet.served(machine)
    assert (await machine.csr(id, "b.example")).status_code == 400
    assert len(await fleet.jobs(id)) == 2
    assert (await machine.csr(id, "a.example")).json() == {"status": "csr_signed"}
    assert [job["type"] for job in await fleet.jobs(id)] == ["Issuance", "Deployment", "Issuance", "Deployment"]
    await machine.deploy_all()
    assert (await fleet.get(f"certificates/{id}/versions"))["total"] == 2
    assert await fleet.status(id) == ("Active", "served")


@pytest.mark.parametrize("act", ["revoke", "archive"])
async def test_no_agent_orders_what_people_have_ended(fleet, machine, act):
    id = await fleet.served(machine)
    answer = await (
        fleet.people.delete(f"/api/v1/certificates/{id}")
        if act == "archive"
        else fleet.post(f"certificates/{id}/revoke")
    )
    assert answer.is_success
    assert (await machine.csr(id, "a.example")).status_code == 409
    assert [job["status"] for job in await fleet.jobs(id)] == ["Completed", "Completed"]
