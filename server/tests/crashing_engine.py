"""The engine without its API, as a process that dies where it is told to. Started by test_crash_engine.py."""

import asyncio
import hashlib
import os
from datetime import UTC, datetime

from certctl_core import der, plugins, signing
from certctl_sdk.testing.crash import Steps
from certctl_server import engine, sealing, start
from certctl_server.certificates import versions
from certctl_server.connectors import run
from certctl_server.context import Context
from certctl_server.jobs import bell, intents, issue, runner, sweeper
from certctl_server.leader import Leadership
from certctl_server.settings import read

LANE = "issuer:iss-local"
STEPS = {
    "claim": (runner, "claim"),
    "intent": (intents, "begin"),
    "save": (run, "save"),
    "sign": (signing, "signature"),
    "store": (issue, "store"),
    "end in the transaction": (versions, "complete"),
    "deploy in the transaction": (versions, "deploy"),
    "take over": (sweeper, "release"),
    "lead": (Leadership, "campaign"),
    "seal": (engine, "seal"),
}


def watch(journal):
    """Note when each order is worked on, and whatever is signed."""
    work, sign = issue.issue, signing.signature

    async def noted_work(attempt):
        told = {"job": attempt.job.id, "fence": attempt.job.fence}
        journal.note("began", **told)
        try:
            return await work(attempt)
        finally:
            journal.note("left", **told)

    def noted_sign(ca_key, tbs_der):
        key = hashlib.sha256(der.children(tbs_der)[6].whole).hexdigest()
        journal.note("signed", key=key, tbs=hashlib.sha256(tbs_der).hexdigest())
        return sign(ca_key, tbs_der)

    issue.issue, signing.signature = noted_work, noted_sign


async def main():
    steps = Steps(os.environ)
    watch(steps.journal)
    for step, (owner, name) in STEPS.items():
        steps.wrap(owner, name, step)
    settings = read(os.environ)
    async with start.connected(settings):
        ctx = Context(
            settings=settings,
            plugins=plugins.load(),
            cipher=await sealing.load(settings),
            clock=lambda: datetime.now(UTC),
            bell=bell,
            started_at=datetime.now(UTC),
        )
        started = await engine.start(ctx)
        steps.journal.note("started")
        while True:
            # In place of the route that took a CSR and rang.
            started.runner.look(LANE)
            await asyncio.sleep(0.05)


if __name__ == "__main__":
    asyncio.run(main())
