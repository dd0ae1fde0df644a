"""Every action that the code writes into the audit trail is in docs/audit.md, and no other."""

from __future__ import annotations

import ast
import importlib
import itertools
import re
from collections import defaultdict

import pytest
from certctl_core.job import JobState
from certctl_server.agents.health import AgentStatus

#: Nothing comes to wait for approval later, and what waits for a CSR is an order, which has a name of its own.
MOVED = set(JobState) - {JobState.AWAITING_APPROVAL, JobState.AWAITING_CSR}
#: What the parts of a name can be that are computed.
COMPUTED = {
    "agent_*": {f"agent_{status.lower()}" for status in AgentStatus},
    "api_*": {f"api_{method}" for method in ("get", "post", "put", "delete")},
    "job_*": {f"job_{state.lower()}" for state in MOVED},
    "job_verification_*": {"job_verification_success", "job_verification_failed"},
    "*_circuit_*": {
        f"{kind}_circuit_{became}" for kind, became in itertools.product(("issuer", "notifier"), ("opened", "closed"))
    },
    "*_created": {"team_created", "owner_created", "renewal_policy_created", "issuer_created", "policy_created"},
}
FAMILY = {f"*_{done}": done for done in ("created", "updated", "deleted", "tested")}


def called(node):
    """The name of the function that is called."""
    return getattr(node.func, "id", getattr(node.func, "attr", ""))


def bindings(tree):
    """Each name with every expression that is bound to it, parameters by the calls in the same module."""
    bound = defaultdict(list)
    functions = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                bound[getattr(target, "id", "")].append(node.value)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions[node.name] = [each.arg for each in node.args.args]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            for name, value in zip(functions.get(called(node), ()), node.args, strict=False):
                bound[name].append(value)
    return bound


def spelled(node, bound):
    """Every text that an expression can be; what is computed in it is an asterisk."""
    match node:
        case ast.Constant(value=text):
            return {text}
        case ast.JoinedStr(values=values):
            return {"".join(value.value if isinstance(value, ast.Constant) else "*" for value in values)}
        case ast.Name(id=name):
            parts = bound.pop(name, ())
        case ast.IfExp(body=one, orelse=other) | ast.BinOp(left=one, right=other):
            parts = one, other
        case ast.BoolOp(values=parts) | ast.Dict(values=parts):
            pass
        case ast.DictComp(value=value) | ast.Call(func=ast.Attribute(attr="fromkeys"), args=[_, value]):
            parts = (value,)
        case ast.Call(func=ast.Attribute(attr="get", value=table), args=[_, default]):
            parts = table, default
        case _:
            pytest.fail(f"which actions can this be? {ast.unparse(node)}")
    return {text for part in parts for text in spelled(part, bound)}


def of_tables(module, tree):
    """What those parts record that make, change and delete rows of one table by its description."""
    made = [node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)]
    for node in made:
        if called(node.value) in {"Crud", "Family"}:
            part = getattr(importlib.import_module(module), node.targets[0].id)
            if called(node.value) == "Crud":
                yield from (part.action(number) for number in range(3))
            else:
                yield from (f"{part.name}_{done}" for done in FAMILY.values())


def asked(tree):
    """The action of each call that records one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and called(node) in {"Event", "audited"} and len(node.args) > 1:
            action = node.args[1]
            if ast.unparse(action) != "crud.action(action)":
                yield action


def recorded(sources, home):
    """Every action of the server; what is computed in one is an asterisk."""
    for path, tree in sources.items():
        if path.is_relative_to(home) and path.stem != "record":
            yield from of_tables(".".join(path.relative_to(home).with_suffix("").parts), tree)
            for action in asked(tree):
                yield from spelled(action, bindings(tree))


def test_every_action_of_the_audit_trail_is_documented(sources, root):
    found = set(recorded(sources, root / "server" / "src"))
    computed = {text for text in found if "*" in text}
    assert computed <= COMPUTED.keys() | FAMILY.keys(), "what can this be? say it in COMPUTED"
    actions = (found - computed).union(*(COMPUTED.get(text, ()) for text in computed))
    written = (root / "docs" / "audit.md").read_text().partition("\n## Actions\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.+?) \|", written, re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert len(listed) == len(set(listed)), "an action is listed twice"
    assert set(listed) == actions
