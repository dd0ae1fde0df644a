"""Where ``certctl up`` may die."""

import hashlib
import os

# ruff: noqa: PLC0415  # loaded at the start of every Python of the environment, whatever it may import then


def install():
    from certctl_core import der
    from certctl_issuer_local.authority import Authority
    from certctl_sdk.testing.crash import Steps
    from certctl_server.agents import csr, routes
    from certctl_server.certificates import versions
    from certctl_server.connectors import run
    from certctl_server.jobs import intents, issue, runner, sweeper

    steps, sign = Steps(os.environ), Authority.sign

    def noted(self, tbs_der):
        key = hashlib.sha256(der.children(tbs_der)[6].whole).hexdigest()
        steps.journal.note("signed", key=key, tbs=hashlib.sha256(tbs_der).hexdigest())
        return sign(self, tbs_der)

    Authority.sign = noted
    for step, (owner, name) in {
        "accept the csr": (csr, "give_csr"),
        "claim": (runner, "claim"),
        "intent": (intents, "begin"),
        "save": (run, "save"),
        "sign": (Authority, "sign"),
        "store": (issue, "store"),
        "end in the transaction": (versions, "complete"),
        "deploy in the transaction": (versions, "deploy"),
        "offer": (routes, "offers"),
        "hear a report": (routes, "report"),
        "hand out the certificate": (routes, "retrieved"),
        "take over": (sweeper, "release"),
    }.items():
        steps.wrap(owner, name, step)
