"""The scripts that people run first say what is missing, in words that can be followed."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest


@pytest.fixture
def checkout(tmp_path, root):
    """What ``tools/venv`` looks at before it looks for Python."""
    (tmp_path / "connectors" / "one").mkdir(parents=True)
    (tmp_path / "core").mkdir()
    for folder in (tmp_path, tmp_path / "core", tmp_path / "connectors" / "one"):
        (folder / "pyproject.toml").touch()
    shutil.copytree(root / "tools", tmp_path / "tools")
    shutil.copytree(root / "requirements", tmp_path / "requirements")
    return tmp_path


def python_that(tmp_path, answer):
    python = tmp_path / "python-to-try"
    python.write_text(f"#!/bin/sh\n{answer}\n")
    python.chmod(0o755)
    return str(python)


def make_venv(checkout, python, *arguments):
    return subprocess.run(
        ["sh", "tools/venv", *arguments],
        cwd=checkout,
        env={**os.environ, "PYTHON": python},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        pytest.param("exit 1", "needs Python 3.11 or newer", id="too-old"),
        pytest.param('case "$2" in *ensurepip*) exit 1 ;; esac', "apt install python3-venv", id="without-venv"),
    ],
)
def test_a_python_that_will_not_do_is_named_with_what_to_install(checkout, answer, advice):
    python = python_that(checkout, answer)
    tried = make_venv(checkout, python)
    assert tried.returncode == 1
    assert python in tried.stderr
    assert advice in tried.stderr
    assert not (checkout / ".venv").exists()


def test_an_environment_that_is_not_known_is_refused(checkout):
    tried = make_venv(checkout, "python3", "production")
    assert tried.returncode == 2
    assert "run | test | dev" in tried.stderr


def test_an_installation_that_failed_is_not_taken_for_done(checkout):
    python = python_that(
        checkout, 'case "$2" in venv) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;; pip) exit 3 ;; esac'
    )
    assert [make_venv(checkout, python).returncode for _ in range(2)] == [3, 3]
