"""Where ``certctl-agent run`` may die."""

import os

# ruff: noqa: PLC0415  # loaded at the start of every Python of the environment, whatever it may import then


def install():
    from certctl_agent import keys, unfinished
    from certctl_agent.api import AgentApi
    from certctl_agent.verify import Proof
    from certctl_sdk import pem_target
    from certctl_sdk.generations import Place
    from certctl_sdk.testing.crash import Steps

    steps = Steps(os.environ)
    for step, (owner, name) in {
        "make the key": (keys, "_new_key_pem"),
        "make the csr": (keys, "sign"),
        "send the csr": (AgentApi, "send_csr"),
        "begin": (AgentApi, "report"),
        "fetch": (AgentApi, "certificate"),
        "flip": (Place, "switch"),
        "check and reload": (pem_target, "run_command"),
        "verify": (Proof, "__call__"),
        "commit": (Place, "commit"),
        "promote the key": (keys.KeyRing, "promote"),
        "say what is served": (AgentApi, "verified"),
        "recover": (unfinished, "recover_files"),
    }.items():
        steps.wrap(owner, name, step)
