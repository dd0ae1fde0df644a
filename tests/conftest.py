"""What the guards share: where the packages are, and what is in their modules."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def package_folders(root: Path) -> list[Path]:
    """Return the folder of every distribution except the meta package's."""
    return sorted(path.parent for path in [*root.glob("*/pyproject.toml"), *root.glob("connectors/*/pyproject.toml")])


def modules(folder: Path) -> dict[Path, ast.Module]:
    """Return every Python file below ``folder``, parsed."""
    return {
        path: ast.parse(path.read_text("utf-8"), str(path))
        for path in sorted(folder.rglob("*.py"))
        if not any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts)
    }


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture(scope="session")
def packages():
    return package_folders(ROOT)


@pytest.fixture(scope="session")
def parse():
    return modules


@pytest.fixture(scope="session")
def sources(packages):
    """Every module that is shipped: tests are not."""
    return {
        path: tree
        for folder in packages
        for path, tree in modules(folder).items()
        if "tests" not in path.relative_to(folder).parts
    }
