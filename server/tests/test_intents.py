"""What is committed before a CA is asked: one key is never on its way to two certificates."""

import asyncio
import contextvars
from datetime import timedelta

import pytest
from certctl_core.csr import read_csr
from certctl_core.errors import RejectedError
from certctl_sdk.testing.fake_ca import csr_pem
from certctl_server import db
from certctl_server.audit.record import SYSTEM
from certctl_server.certificates.create import create
from certctl_server.jobs import intents
from certctl_server.jobs.issue import key_in_use
from certctl_server.jobs.state import claim
from certctl_server.jobs.tables import Job
from cryptography.hazmat.primitives.asymmetric import ec
from server_flow import wanted

pytestmark = pytest.mark.usefixtures("grounds")
OPEN = db.Sql("SELECT job_id FROM intent WHERE status = 'open'")


@pytest.fixture
def csr():
    return read_csr(csr_pem("a.example", key=ec.generate_private_key(ec.SECP256R1())))


@pytest.fixture
async def two():
    """The running orders of two certificates."""
    for _ in range(2):
        _, job_id = await create(wanted("a.example"), SYSTEM)
        await Job.update(csr_pem="given", csr_sha256=job_id, due_at=db.now()).where(Job.id == job_id)
    jobs = await claim("worker", "issuer:iss-local", limit=2, lease=timedelta(minutes=1))
    assert len(jobs) == 2
    return jobs


async def test_of_two_orders_with_one_key_at_the_same_moment_one_is_placed(two, csr):
    answers = await asyncio.gather(*(intents.begin(job, csr) for job in two), return_exceptions=True)
    assert [type(answer) for answer in answers if answer] == [RejectedError]
    assert len(await db.fetch(OPEN)) == 1


async def test_an_order_waits_for_the_one_with_its_key_that_is_being_written(two, csr):
    first, second = two
    async with db.transaction():
        await intents.begin(first, csr)
        later = asyncio.create_task(intents.begin(second, csr), context=contextvars.Context())
        await asyncio.sleep(0.2)
        assert not later.done()
    with pytest.raises(RejectedError, match="another certificate"):
        await later
    assert await db.fetch(OPEN) == [{"job_id": first.id}]


async def test_a_key_is_free_again_when_the_ca_refused_it(two, csr):
    first, second = two
    await intents.begin(first, csr)
    assert await key_in_use(csr.public_key_sha256, second.certificate_id) == ["the key of another certificate"]
    assert await key_in_use(csr.public_key_sha256, first.certificate_id) == []
    await intents.close(first, "failed", "no")
    assert await key_in_use(csr.public_key_sha256, second.certificate_id) == []
    await intents.begin(second, csr)
    assert await db.fetch(OPEN) == [{"job_id": second.id}]
