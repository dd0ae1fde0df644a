"""What every distribution carries, declares and exports, and what no file may say."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import entry_points, packages_distributions
from pathlib import Path

import pytest
from certctl_core.plugins import load
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = sorted(path.parent for path in [*ROOT.glob("*/pyproject.toml"), *ROOT.glob("connectors/*/pyproject.toml")])
each_package = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
META = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONNECTORS = [
    (toml["project"]["name"], name)
    for toml in (tomllib.loads((folder / "pyproject.toml").read_text()) for folder in FOLDERS)
    for name in toml["project"].get("entry-points", {}).get("certctl", {})
]


def described(folder):
    return tomllib.loads((folder / "pyproject.toml").read_text())


def group(toml, name):
    """The requirements of a dependency group, without the groups that it includes."""
    return [need for need in toml.get("dependency-groups", {}).get(name, []) if isinstance(need, str)]


def names(needs):
    return {canonicalize_name(Requirement(need).name) for need in needs}


@each_package
def test_a_package_brings_its_papers(folder):
    assert (folder / "README.md").read_text().startswith(f"# {described(folder)['project']['name']}\n")
    assert "<!-- towncrier release notes start -->" in (folder / "CHANGELOG.md").read_text()
    assert (folder / "changes").is_dir()
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@each_package
def test_a_package_is_named_after_its_folder_and_imported_by_its_name(folder):
    name = described(folder)["project"]["name"]
    module = name.replace("-", "_")
    assert folder.name in {name.removeprefix("certctl-"), "plugin-template"}
    assert any((folder / place).exists() for place in (f"src/{module}", f"{module}.py", module))


@pytest.mark.parametrize("folder", [ROOT, *FOLDERS], ids=lambda folder: folder.name)
def test_siblings_ask_for_a_range_of_each_other(folder):
    siblings = [
        Requirement(need) for need in described(folder)["project"]["dependencies"] if need.startswith("certctl")
    ]
    assert [str(need) for need in siblings if {each.operator for each in need.specifier} != {">=", "<"}] == []


def test_the_meta_package_brings_only_packages_of_this_repository():
    ours = {described(folder)["project"]["name"] for folder in FOLDERS}
    assert names(META["project"]["dependencies"]) <= ours


@pytest.mark.parametrize(("dist", "name"), CONNECTORS, ids=[name for _, name in CONNECTORS])
def test_a_connector_loads_alone(dist, name):
    found = [entry for entry in entry_points(group="certctl", name=name) if entry.dist.name == dist]
    assert len(found) == 1
    assert load(found).failed == []


@each_package
def test_a_package_declares_what_it_imports(folder, parse):
    toml = described(folder)
    project = toml["project"]
    extras = [need for needs in project.get("optional-dependencies", {}).values() for need in needs]
    shipped = names([project["name"], *project["dependencies"], *extras])
    shared = [path.stem for path in folder.glob("tests/shared/*.py")]
    tested = shipped | names([*group(toml, "test"), *group(META, "test"), *shared])
    owners = packages_distributions()
    missing = set()
    for path, tree in parse(folder).items():
        allowed = tested if "tests" in path.relative_to(folder).parts else shipped
        for module in top_level_imports(tree) - sys.stdlib_module_names:
            if not {canonicalize_name(owner) for owner in owners.get(module, [module])} & allowed:
                missing.add(f"{path.relative_to(ROOT)} imports {module}")
    assert missing == set()


def top_level_imports(tree):
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases):
                found |= {alias.name.split(".")[0] for alias in aliases}
            case ast.ImportFrom(module=str(module), level=0):
                found.add(module.split(".")[0])
    return found


def test_what_a_module_says_it_exports_is_there_and_sorted(root, sources):
    faults = []
    for path, tree in sources.items():
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                exported = ast.literal_eval(node.value)
                if list(exported) != sorted(set(exported)) or set(exported) - bound(tree):
                    faults.append(path.relative_to(root).as_posix())
    assert faults == []


def bound(tree):
    """The names that a module binds at its top."""
    found = set()
    for node in tree.body:
        match node:
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                found |= {(alias.asname or alias.name).split(".")[0] for alias in aliases}
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
    return found


def locked(name):
    """The versions of a lock, and the text of each entry."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    return {
        match[1]: (match[2], match[0])
        for match in re.finditer(r"^([\w.-]+)==([^\s;]+)(?:.*\\\n)*.*$", text, re.MULTILINE)
    }


def wanted(name):
    """Everything that a lock has to satisfy."""
    tomls = [META, *map(described, FOLDERS)]
    needs = [need for toml in tomls for need in toml["project"]["dependencies"]] + group(META, "build")
    if name != "run":
        needs += [need for toml in tomls for need in group(toml, "test")]
    if name == "dev":
        needs += group(META, "dev")
    return [need for need in map(Requirement, needs) if not need.name.startswith("certctl")]


@pytest.mark.parametrize("name", ["run", "test", "dev"])
def test_a_lock_holds_what_the_packages_declare(name):
    pins = {package: version for package, (version, _) in locked(name).items()}
    stale = [
        str(need)
        for need in wanted(name)
        if not need.specifier.contains(pins.get(canonicalize_name(need.name), "0"), prereleases=True)
    ]
    assert stale == [], "run tools/lock"


@pytest.mark.parametrize("name", ["run", "test", "dev"])
def test_a_lock_has_a_hash_for_every_package(name):
    assert [package for package, (_, entry) in locked(name).items() if "--hash=sha256:" not in entry] == []


def test_the_locks_agree_on_every_version():
    widest = locked("dev")
    assert {
        package
        for name in ("run", "test")
        for package, (version, _) in locked(name).items()
        if widest[package][0] != version
    } == set()


# Spelt in parts, for this file is searched as well.
HOSTS = [
    "".join(parts) for parts in (("pypi", ".org"), ("python", "hosted"), ("registry", ".npmjs"), ("proxy", ".golang"))
]
PLACES = [
    "/".join(("", *parts)) for parts in (("work", "main"), ("work", "shared"), ("tmp", "probe"), ("root", ".pyenv"))
]
#: What git does not keep; uv writes the address of every file into its own lock.
BUILT = {"__pycache__", "build", "dist", "node_modules", "uv.lock"}


def test_no_file_names_a_registry_or_a_place_on_somebodys_machine():
    searched, found = 0, []
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        hidden = any(part in BUILT or (part.startswith(".") and part not in {".ci", ".gitignore"}) for part in parts)
        if hidden or not path.is_file():
            continue
        searched += 1
        text = path.read_bytes().decode("utf-8", "replace")
        found += [f"{path.relative_to(ROOT)}: {word}" for word in HOSTS + PLACES if word in text]
    assert found == []
    assert searched > len(FOLDERS)
