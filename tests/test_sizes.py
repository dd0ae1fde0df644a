"""Functions, modules and repetition stay small."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from statistics import quantiles

import pytest

LONGEST_FUNCTION = 60
NINE_FUNCTIONS_OF_TEN = 30
LONGEST_MODULE = 600


def functions(sources):
    """Each function with its length in lines, its docstring counted and its decorators not."""
    for path, tree in sources.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.name}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1


def test_no_function_is_too_long_to_read_at_once(sources):
    assert [(name, lines) for name, lines in functions(sources) if lines > LONGEST_FUNCTION] == []


def test_nine_functions_of_ten_are_short(sources):
    lengths = [lines for _, lines in functions(sources)]
    assert quantiles(lengths, n=10)[-1] <= NINE_FUNCTIONS_OF_TEN


def test_no_module_is_too_long(root, sources):
    lengths = {path.relative_to(root).as_posix(): len(path.read_text("utf-8").splitlines()) for path in sources}
    assert {path: lines for path, lines in lengths.items() if lines > LONGEST_MODULE} == {}


def repetition(tool_root, folder, globs):
    """What the tool says about ``folder``, and the share in percent that it found."""
    command = [sys.executable, tool_root / "tools" / "repetition.py", "-v", "8", folder, globs]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    copied, total = map(int, re.search(r"(\d+)/(\d+) lines", told).groups())
    return told, 100 * copied / total


@pytest.mark.parametrize(
    ("globs", "limit"),
    [
        pytest.param("core/src/**/*.py,sdk/src/**/*.py,server/src/**/*.py,agent/src/**/*.py", 4, id="packages"),
        pytest.param("connectors/*/*.py,connectors/*/certctl_*/**/*.py", 10, id="connectors"),
    ],
)
def test_little_is_written_twice(root, globs, limit):
    told, share = repetition(root, root, globs)
    assert share <= limit, told


def test_a_copy_is_found_whatever_its_names_are(tmp_path, root):
    original = "\n".join(f"left_{n} = right_{n} + {n}  # why {n}" for n in range(20))
    (tmp_path / "one.py").write_text(original)
    (tmp_path / "two.py").write_text(original.replace("left", "up").replace("right", "down").replace("why", "who"))
    (tmp_path / "three.py").write_text("\n".join(f"say({n}, {n + 1})[{n}]" for n in range(40)))
    told, share = repetition(root, tmp_path, "*.py")
    assert share == 50, told
