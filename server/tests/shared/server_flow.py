"""What tests of the server share: orders with a CSR of the caller's own, certificates of any age, every route."""

import asyncio
import re

from api_table import Route
from certctl_core.x509 import read_csr
from certctl_sdk.testing.fake_ca import csr_pem
from certctl_server import db
from certctl_server.app import ROUTES
from certctl_server.audit.record import SYSTEM, Event, record
from certctl_server.certificates.create import Wanted, create
from certctl_server.certificates.status import settle
from certctl_server.certificates.tables import Certificate, CertificateVersion
from certctl_server.jobs.tables import Job
from litestar import Litestar
from litestar.di import Provide

TRIGGERS = {
    "sqlite": [
        f"DROP TRIGGER IF EXISTS {name}"
        for name in (
            *("audit_event_kept", "audit_event_sealed_once", "audit_checkpoint_kept", "audit_checkpoint_fixed"),
            *("audit_archive_kept", "audit_archive_fixed"),
        )
    ],
    "postgres": [
        f"ALTER TABLE {table} DISABLE TRIGGER USER" for table in ("audit_event", "audit_checkpoint", "audit_archive")
    ],
}


async def until(look, seconds=15):
    """What ``look`` finds, as soon as it finds something."""
    async with asyncio.timeout(seconds):
        while not (found := await look()):
            await asyncio.sleep(0.02)
    return found


async def job_in(id, *states):
    """The job, if it is in one of these states."""
    row = await Job.select().where(Job.id == id).first()
    return row if row["status"] in states else None


def wanted(*sans, issuer="iss-local", **more):
    """An order on behalf of the owner and the team of ``grounds``."""
    return Wanted(common_name="", sans=sans, owner_id="o", team_id="t", issuer_id=issuer, **more)


async def ordered(*sans, issuer="iss-local", csr=None, **job):
    """A certificate whose order carries the caller's own CSR, and that nobody was told of; its id and its job's.

    ``job`` is what else the job is to have.
    """
    id, job_id = await create(wanted(*sans, issuer=issuer), SYSTEM)
    checked = read_csr(csr or csr_pem(*sans))
    facts = {"csr_pem": checked.pem, "csr_sha256": checked.sha256, "due_at": db.now(), **job}
    await Job.update(facts).where(Job.id == job_id)
    return id, job_id


async def aged(id, life, left):
    """Let a certificate, and what it has on targets, have so much of such a life left."""
    end = db.now() + left
    await Certificate.update(not_before=end - life, expires_at=end).where(Certificate.id == id)
    await CertificateVersion.update(not_before=end - life, not_after=end).where(CertificateVersion.certificate_id == id)
    text = (
        "UPDATE certificate_target SET not_before = $2, not_after = $3 WHERE certificate_id = $1 AND version_id <> ''"
    )
    await db.fetch(db.Sql(text), id, end - life, end)
    await settle([id])


def unlimited(settings):
    """These settings, with no bound on how fast one may call."""
    return settings.model_copy(update={"rate_limit": settings.rate_limit.model_copy(update={"enabled": False})})


def _handlers():
    """Every handler of the application, with its path."""
    app = Litestar(ROUTES, dependencies={"ctx": Provide(lambda: None, sync_to_thread=False)}, openapi_config=None)
    found = ((route, handler) for route in app.routes for handler in route.route_handlers)
    return [(re.sub(r":\w+\}", "}", route.path_format), handler) for route, handler in found]


def routes():
    """Every route of the application; HEAD goes with GET."""
    return [
        Route(method, path, handler.status_code, handler.opt.get("roles"))
        for path, handler in _handlers()
        for method in sorted(handler.http_methods - {"OPTIONS", "HEAD"})
    ]


def lists():
    """The ListSpec of every list, by path."""
    return {
        path: handler.opt["list"] for path, handler in _handlers() if "query" in handler.opt and "list" in handler.opt
    }


async def write_events(count, first=1):
    """So many audit rows, in one transaction."""
    await record(
        Event(SYSTEM, "certificate_created", "certificate", f"mc-{n}", {"n": n}) for n in range(first, first + count)
    )


async def behind_our_back(statement):
    """Change the audit trail as somebody would who owns the database."""
    for drop in TRIGGERS[db.dialect()]:
        await db.fetch(db.Sql(drop))
    await db.fetch(db.Sql(statement))
