from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest
from certctl_agent.connectors import Connectors

BRINGS = """
from certctl_core import hookimpl
from certctl_core.config import ConnectorConfig
from certctl_core.target import Receipt, Target

class Any(Target):
    kind = "{kind}"
    Config = ConnectorConfig

    async def deploy(self, request, run):
        return Receipt({{}})

@hookimpl
def certctl_targets():
    return [Any]
"""


@pytest.fixture
def connectors(tmp_path, monkeypatch):
    """Four packages: one named after its kind, a stranger's, one that breaks, one for servers."""
    monkeypatch.syspath_prepend(tmp_path)
    texts = {
        "target-door": BRINGS.format(kind="Door"),
        "acme-things": BRINGS.format(kind="Gate"),
        "target-broken": "raise SystemExit(3)",
        "issuer-x": "raise AssertionError",
    }
    entries = []
    for name, text in texts.items():
        module = f"connectors_{name.replace('-', '_')}"
        (tmp_path / f"{module}.py").write_text(text)
        entries.append(EntryPoint(name, module, "certctl"))
    yield Connectors(entries)
    for name in [name for name in sys.modules if name.startswith("connectors_")]:
        del sys.modules[name]


def test_only_the_package_of_the_kind_asked_for_is_loaded(connectors):
    assert "Door" in connectors.having("target", "door").targets
    assert [name for name in sys.modules if name.startswith("connectors_")] == ["connectors_target_door"]


def test_a_package_of_another_name_is_found_and_a_broken_one_hurts_nobody(connectors):
    found = connectors.having("target", "Gate")
    assert set(found.targets) == {"Door", "Gate"}
    assert [failed.name for failed in found.failed] == ["target-broken"]


def test_connectors_for_servers_are_never_loaded(connectors):
    connectors.all()
    assert "connectors_issuer_x" not in sys.modules
