"""What is written down is so, and what is so is written down."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest
from certctl_server import settings
from certctl_server.connectors.service import Family
from certctl_server.crud import Crud

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ("agent", "sdk", "server")
VARIABLE = re.compile(r"\bCERTCTL_[A-Z0-9]+(?:_[A-Z0-9]+)*\b")
SETTING = re.compile(r"^\| (CERTCTL_\w+) \| (.*?) \| (.+) \|$", re.MULTILINE)
DOCUMENTS = [
    path for path in ROOT.rglob("*.md") if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
]


def documented():
    """Each variable of docs/settings.md with its default."""
    rows = SETTING.findall((ROOT / "docs" / "settings.md").read_text())
    assert len(rows) == len({name for name, _, _ in rows}), "a variable is listed twice"
    return {name: default for name, default, _ in rows}


def understood(sources):
    """Every variable that a program asks for, those included that the server's settings derive from their fields."""
    texts = [
        node.value
        for path, tree in sources.items()
        if path.relative_to(ROOT).parts[0] in PROGRAMS and "testing" not in path.parts
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    known = settings.variables() | settings.ELSEWHERE | {name for text in texts for name in VARIABLE.findall(text)}
    return known - {f"{name}_FILE" for name in known}


def test_every_setting_is_documented(sources):
    assert understood(sources) - documented().keys() == set()


def test_every_documented_setting_is_read(sources):
    assert documented().keys() - understood(sources) == set()


def test_the_documented_defaults_are_the_real_ones():
    defaults = {name: text.strip("`") for name, text in documented().items() if re.fullmatch(r"`[^`]+`", text)}
    ours = {name: text for name, text in defaults.items() if name in settings.variables()}
    assert settings.read(ours) == settings.read({})
    assert len(ours) > len(settings.variables()) / 2


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_between_documents_lead_somewhere(document):
    targets = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_the_main_flow_names_modules_that_link_back_to_it():
    named = re.findall(
        r"`((?:core|sdk|server|agent|connectors)/\S+\.py)`", (ROOT / "docs" / "main-flow.md").read_text()
    )
    assert len(named) >= 10
    assert [path for path in named if not (ROOT / path).exists()] == []
    assert [path for path in named if "docs/main-flow.md" not in (ROOT / path).read_text()] == []


def test_ci_ends_with_the_test_command_of_the_readme():
    [command] = re.findall(r"^## Test it\n\n```\n(.+)\n```$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == command


#: An action of the audit trail in the table of docs/audit-actions.md.
ACTION = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)


def spelt(node, assigned, seen=frozenset()):
    """The actions that an expression may come to, as patterns."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(part.value if isinstance(part, ast.Constant) else r"\w+" for part in node.values)
    elif isinstance(node, ast.Name) and node.id not in seen:
        for value in assigned.get(node.id, ()):
            yield from spelt(value, assigned, seen | {node.id})
    else:
        for child in ast.iter_child_nodes(node):
            yield from spelt(child, assigned, seen)


def recorded(sources):
    """Every action that the server writes to its audit trail, as patterns."""
    found = set()
    for tree in (tree for path, tree in sources.items() if path.relative_to(ROOT).parts[0] == "server"):
        assigned = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    assigned.setdefault(getattr(target, "id", ""), []).append(node.value)
        for node in ast.walk(tree):
            name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
            if name in {"Event", "audited", "_event"} and len(node.args) > 1:
                found.update(spelt(node.args[1], assigned))
    importlib.import_module("certctl_server.app")  # and with it all that the API has
    for each in [each for module in list(sys.modules.values()) for each in getattr(module, "__dict__", {}).values()]:
        if isinstance(each, Crud):
            found.update(each.action(number) for number in range(3))
        elif isinstance(each, Family):
            found.update(f"{each.name}_{verb}" for verb in ("created", "updated", "deleted", "tested"))
    return {each for each in found if "_" in each}


def test_every_action_of_the_audit_trail_is_documented(sources):
    told = ACTION.findall((ROOT / "docs" / "audit-actions.md").read_text())
    assert len(told) == len(set(told)), "an action is listed twice"
    found = recorded(sources)
    assert {"rollout_halted", "renewal_job_failed", "create_profile", r"job_\w+", "issuer_tested"} <= found
    assert [each for each in sorted(found) if not any(re.fullmatch(each, action) for action in told)] == []
