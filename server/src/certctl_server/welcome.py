"""What ``certctl up`` says once it answers: where, with which keys, and what to type next."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import click
from certctl_sdk import profile_file

from certctl_server.start import Handed, Running

#: What to type next, and why. The page at ``/`` and the README show the same.
NEXT = (
    ("what is running", "{certctl} status"),
    ("make this machine an agent, and start it", "{agent} enroll --yes{token}"),
    ("", "{agent} run"),
    (
        "in another terminal: where the certificate goes",
        (
            "{certctl} targets create nginx-1 --type NGINX"
            " --set cert_path=/etc/nginx/ssl/web.crt --set key_path=/etc/nginx/ssl/web.key"
        ),
    ),
    ("order one; watch it being made and put in place", "{certctl} certs create web.example.com --target nginx-1"),
    ("", "{certctl} certs list"),
)


def program(name: str, argv0: str) -> str:
    """Return how to call ``name``, installed beside the program that runs, from the present directory."""
    beside = Path(argv0).absolute().with_name(name)
    if os.sep not in argv0 or not beside.exists():
        return name
    here = Path.cwd()
    return shlex.quote(str(beside.relative_to(here) if beside.is_relative_to(here) else beside))


def commands(running: Running, argv0: str) -> list[tuple[str, str]]:
    """Return what to type next and why, as it works from the present directory."""
    settings, handed = running.settings, running.handed
    there = settings.data_dir.absolute()
    elsewhere = there != profile_file.data_dir(os.environ)
    prefix = f"CERTCTL_DATA_DIR={shlex.quote(str(there))} " if elsewhere else ""
    words = {
        "certctl": prefix + program("certctl", argv0),
        "agent": prefix + program("certctl-agent", argv0),
        "token": f" --token {handed.token}" if handed and handed.token else "",
    }
    found = [(why, line.format(**words)) for why, line in NEXT]
    if handed is None:
        found.insert(1, ("a token for the next agent", f"{words['certctl']} agents tokens create"))
    return found


def told(running: Running, argv0: str) -> list[tuple[str, str]]:
    """Return everything to say, as lines with their kind: title, text, secret or command."""
    settings, handed = running.settings, running.handed or Handed()
    lines = [("title", f"certctl is running at {running.url}"), ("text", f"data in {settings.data_dir}")]
    if handed.admin_key:
        lines += [("text", "admin key, shown this once:"), ("secret", handed.admin_key)]
    if handed.admin_key_file:
        lines.append(("text", f"admin key in {handed.admin_key_file}: keep it, then delete the file"))
    if handed.token:
        lines += [("text", "enrolment token for one agent, within 24 hours:"), ("secret", handed.token)]
    if handed.token_file:
        lines.append(("text", f"enrolment token for one agent, within 24 hours, in {handed.token_file}"))
    lines.append(("title", "Next, in another terminal:"))
    for why, line in commands(running, argv0):
        lines += [("text", f"# {why}")] if why else []
        lines.append(("command", line))
    return lines


def welcome(running: Running, *, terminal: bool) -> None:
    """Say it on standard output."""
    lines = told(running, sys.argv[0])
    if not terminal:
        for _, text in lines:
            click.echo(text)
        return
    from rich.console import Console  # noqa: PLC0415  # for people only
    from rich.text import Text  # noqa: PLC0415

    console = Console(highlight=False, soft_wrap=True)
    styles = {"title": "bold", "text": "dim", "secret": "bold yellow", "command": "cyan"}
    console.print()
    for kind, text in lines:
        console.print(Text(("" if kind == "title" else "  ") + text, style=styles[kind]))
    console.print()
