"""The arrows between packages, and who alone may do what."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from dataclasses import dataclass

import pytest

#: What each may import of ours, besides itself. Connectors and the plugin template are all alike.
ARROWS = {
    "certctl_core": set(),
    "certctl_sdk": {"certctl_core"},
    "certctl_server": {"certctl_core", "certctl_sdk"},
    "certctl_agent": {"certctl_core", "certctl_sdk"},
}
PLUGIN = {"certctl_core", "certctl_sdk"}

#: What leads out of the process, and with what core would no longer be rules alone.
FRAMEWORKS = {
    "aiosqlite",
    "asyncpg",
    "click",
    "dramatiq",
    "httpx",
    "litestar",
    "msgspec",
    "piccolo",
    "redis",
    "structlog",
}
NETWORK = {"ftplib", "http", "requests", "selectors", "smtplib", "socket", "ssl", "urllib.request", "uvicorn"}
PROCESS = {"asyncio", "concurrent", "multiprocessing", "os", "signal", "subprocess", "threading"}
FILES = {"glob", "shutil", "sqlite3", "tempfile"}
OUTSIDE_CORE = FRAMEWORKS | NETWORK | PROCESS | FILES
FILE_CALLS = {"mkdir", "open", "read_bytes", "read_text", "rename", "symlink_to", "unlink", "write_bytes", "write_text"}

#: Who may open connections over HTTP: the guarded client, and the agent towards its own server.
HTTP_CLIENTS = {
    "aiohttp": None,
    "http.client": "agent/src/certctl_agent/api.py",
    "httpx": "sdk/src/certctl_sdk/http.py",
    "requests": None,
    "urllib.request": None,
}


def imports(tree):
    """Every module that is imported anywhere in ``tree``, also late, for types only, or by name."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), level=0, names=names):
                yield module
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                yield module


def within(module, names):
    """Whether ``module`` is one of ``names`` or lies in one."""
    return any(module == name or module.startswith(f"{name}.") for name in names)


def import_name(folder):
    """The import name of the distribution in ``folder``: the one module or package that it has."""
    if (folder / "src").is_dir():
        return next(path.name for path in (folder / "src").iterdir() if path.name.startswith("certctl_"))
    return next(path.stem for path in sorted(folder.glob("certctl_*")))


def wrong_arrows(folder, trees):
    own = import_name(folder)
    allowed = {own} | ARROWS.get(own, PLUGIN)
    return {
        f"{path.relative_to(folder)} imports {module}"
        for path, tree in trees.items()
        for module in imports(tree)
        if module.startswith("certctl_") and module.split(".")[0] not in allowed
    }


def test_packages_import_only_what_lies_below_them(packages, parse):
    assert not {fault for folder in packages for fault in wrong_arrows(folder, parse(folder))}


def test_core_neither_reads_nor_writes_nor_waits(root, parse):
    faults = []
    for path, tree in parse(root / "core" / "src").items():
        faults += [f"{path.name} imports {module}" for module in imports(tree) if within(module, OUTSIDE_CORE)]
        faults += [f"{path.name}:{node.lineno} calls {called(node)}" for node in calls(tree, FILE_CALLS)]
    assert not faults


def calls(tree, names):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and called(node) in names]


def called(call):
    match call.func:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def test_connections_over_http_are_opened_in_one_place(root, sources):
    faults = [
        f"{path.relative_to(root)} imports {module}"
        for path, tree in sources.items()
        for module in imports(tree)
        for client, home in HTTP_CLIENTS.items()
        if within(module, {client}) and path.relative_to(root).as_posix() != home
    ]
    assert not faults


def test_no_thread_is_borrowed_from_the_pool_that_resolves_names(root, sources):
    faults = [
        f"{path.relative_to(root)}:{node.lineno}"
        for path, tree in sources.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr == "to_thread")
        or (isinstance(node, ast.alias) and node.name == "to_thread")
    ]
    assert not faults


@dataclass(frozen=True)
class StateColumn:
    """A column that one module alone may write once a row exists."""

    model: str
    table: str
    writer: str


STATE_COLUMNS = [
    StateColumn("Job", "job", "jobs/state.py"),
    StateColumn("Certificate", "certificate", "certificates/status.py"),
]
#: Who updates a table or columns that only the running program knows, and why a state column is not among them.
KNOWN_LATE = {
    "certificates/create.py": "the columns are fields of a request's body, and its type has no status",
    "connectors/service.py": "the tables are those of connectors",
}
HOLE = "\ufffc"
NAMED, OPEN, NONE = "named", "open", ""


def state_writes(tree, column):
    """The lines of ``tree`` that write ``column`` of rows that exist already, by name or perhaps."""
    found = defaultdict(set)
    for node in ast.walk(tree):
        if kind := writes(node, column):
            found[node.lineno].add(kind)
    return {line: strongest(kinds) for line, kinds in found.items()}


def writes(node, column):
    match node:
        case ast.Dict(keys=keys) if any(is_column(key, column) for key in keys):
            return NAMED
        case ast.Call(func=ast.Attribute(attr="update") as method) if is_model(method.value, column):
            return strongest(sets_status(each) for each in [*node.args, *node.keywords])
        case ast.Call() if called(node) in {"insert_rows", "update_rows"}:
            return statement_writes(node, column)
        case ast.Assign(targets=targets):
            return strongest(is_row_status(target, column) for target in targets)
        case ast.AnnAssign(target=target) | ast.AugAssign(target=target):
            return is_row_status(target, column)
        case ast.Constant(value=str()) | ast.JoinedStr() | ast.BinOp(op=ast.Add()):
            return updates(text_of(node), column.table)
    return NONE


def strongest(kinds):
    found = set(kinds)
    return NAMED if NAMED in found else OPEN if OPEN in found else NONE


def sets_status(given):
    """Whether values name the column, or come in a form that leaves open which columns they name."""
    match given:
        case ast.keyword(arg=str(name)):
            return NAMED if name == "status" else NONE
        case ast.Dict(keys=keys):
            return strongest(OPEN if key is None else NAMED if text_of(key) == "status" else NONE for key in keys)
    return OPEN


def statement_writes(call, column):
    """Whether a statement made from a table's name and its columns writes the column of rows that exist already."""
    table, *rest = [text_of(each) for each in call.args]
    if table not in {column.table, HOLE}:
        return NONE
    if called(call) == "insert_rows":
        return updates(f"INSERT INTO {column.table} {' '.join(rest)}", column.table)
    kind = strongest(sets_status(each) for each in call.args[2:])
    return kind if table != HOLE else OPEN if kind == NAMED else NONE


def is_column(node, column):
    return isinstance(node, ast.Attribute) and node.attr == "status" and is_model(node.value, column)


def is_model(node, column):
    """Whether ``node`` is the table, also as ``tables.Job`` or ``Job.objects()``."""
    while True:
        match node:
            case ast.Name(id=name):
                return name == column.model
            case ast.Attribute(value=below, attr=name):
                if name == column.model:
                    return True
                node = below
            case ast.Call(func=below):
                node = below
            case _:
                return False


def is_row_status(target, column):
    match target:
        case ast.Attribute(attr="status", value=ast.Name(id=name)):
            return NAMED if name in {column.model, column.table} else NONE
    return NAMED if is_column(target, column) else NONE


def text_of(node):
    """The text that ``node`` stands for; what is only known when it runs is a hole."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(text_of(value) for value in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return text_of(left) + text_of(right)
    return HOLE


def updates(text, table):
    """Whether ``text`` holds SQL that sets ``status`` in ``table``, or perhaps: columns that cannot be read."""
    if re.search(rf'\breplace\s+into\s+"?{table}\b', text, re.IGNORECASE):
        return NAMED
    update = rf'\bupdate\s+(?:only\s+)?(?:"?{table}\b|{HOLE}(?!\w))"?[^;]*?\bset\b'
    upsert = rf'\binsert\s+into\s+"?{table}\b[^;]*?\bdo\s+update\s+set\b'
    settings = re.finditer(
        rf"(?:{update}|{upsert})(.*?)(?:\bwhere\b|\breturning\b|;|$)", text, re.IGNORECASE | re.DOTALL
    )
    named = r'(?:^|[,(])\s*"?status"?\s*(?:,[^=]*)?\)?\s*='
    unknown = rf"(?:^|,)\s*{HOLE}"
    kinds = set()
    for found in settings:
        table_is_known = HOLE not in found[0][: found.start(1) - found.start()]
        if re.search(named, found[1], re.IGNORECASE):
            kinds.add(NAMED if table_is_known else OPEN)
        elif table_is_known and re.search(unknown, found[1]):
            kinds.add(OPEN)
    return strongest(kinds)


@pytest.mark.parametrize("column", STATE_COLUMNS, ids=lambda column: column.table)
def test_a_state_column_has_one_writer(root, parse, column):
    server = root / "server" / "src" / "certctl_server"
    found = {path.relative_to(server).as_posix(): state_writes(tree, column) for path, tree in parse(server).items()}
    writers = {
        path for path, lines in found.items() if lines and not (path in KNOWN_LATE and NAMED not in lines.values())
    }
    assert writers == {column.writer}


@pytest.mark.parametrize(
    "planted",
    [
        pytest.param("await Job.update({Job.status: new}).where(Job.id == id)", id="by-column"),
        pytest.param("changes = {Job.lane: lane, Job.status: new}", id="changes-made-earlier"),
        pytest.param("await tables.Job.update({'status': new})", id="by-name"),
        pytest.param("await Job.update(status=new)", id="by-keyword"),
        pytest.param("await Job.update(changes).where(Job.id == id)", id="changes-from-elsewhere"),
        pytest.param("await Job.update({Job.beat: 1, **changes})", id="changes-mixed-in"),
        pytest.param("q = db.update_rows('job', 'id', {'beat': 'bigint', 'status': 'text'})", id="made-statement"),
        pytest.param("q = update_rows('job', 'id', columns)", id="made-statement-of-any-column"),
        pytest.param("q = insert_rows('job', columns, 'ON CONFLICT DO UPDATE SET status = 1')", id="made-upsert"),
        pytest.param("job.status = new", id="on-a-row"),
        pytest.param("q = 'UPDATE job SET beat = $1, status = $2 WHERE id = $3'", id="sql"),
        pytest.param("q = 'with due as (select 1) update \"job\" set status = $1 from due'", id="sql-below-a-with"),
        pytest.param("q = 'UPDATE job AS j SET (status, owner) = ($1, $2)'", id="sql-as-a-row"),
        pytest.param("q = f'UPDATE {table} SET status = $1'", id="sql-of-any-table"),
        pytest.param("q = f'UPDATE job SET {changes} WHERE id = $1'", id="sql-of-any-column"),
        pytest.param("q = 'UPDATE job ' + 'SET status = $1'", id="sql-in-parts"),
        pytest.param("q = 'INSERT INTO job (id) VALUES ($1) ON CONFLICT (id) DO UPDATE SET status = $2'", id="upsert"),
        pytest.param("q = 'REPLACE INTO job (id, status) VALUES ($1, $2)'", id="replace"),
    ],
)
def test_a_second_writer_of_a_state_column_is_found(tmp_path, parse, planted):
    (tmp_path / "planted.py").write_text(f"async def planted(job, new):\n    {planted}\n")
    [tree] = parse(tmp_path).values()
    assert list(state_writes(tree, STATE_COLUMNS[0])) == [2]


@pytest.mark.parametrize(
    "innocent",
    [
        pytest.param("await Job.select(Job.status).where(Job.status == new)", id="reading"),
        pytest.param("await Job.update({Job.beat: 1}).where(Job.status == new)", id="another-column"),
        pytest.param("await Intent.update({Intent.status: new})", id="another-table"),
        pytest.param("row = Job(id=id, status=new)", id="creation"),
        pytest.param("q = insert_rows('job', {'status': 'text'}, 'ON CONFLICT DO NOTHING')", id="made-insert"),
        pytest.param("q = update_rows('job', 'id', {'beat': 'bigint'})", id="made-statement-of-another-column"),
        pytest.param("q = update_rows('intent', 'id', {'status': 'text'})", id="made-statement-of-another-table"),
        pytest.param("response.status = 200", id="another-status"),
        pytest.param("q = 'INSERT INTO job (id, status) VALUES ($1, $2)'", id="sql-of-creation"),
        pytest.param("q = 'UPDATE job SET beat = $1 WHERE status = $2'", id="sql-with-a-condition"),
        pytest.param("q = 'UPDATE job_kind SET status = $1'", id="sql-of-another-table"),
        pytest.param("q = f'UPDATE job SET beat = {beat} WHERE id = $1'", id="sql-with-a-value"),
    ],
)
def test_reading_and_creating_are_not_taken_for_writing(tmp_path, parse, innocent):
    (tmp_path / "innocent.py").write_text(f"async def innocent(job, new):\n    {innocent}\n")
    [tree] = parse(tmp_path).values()
    assert state_writes(tree, STATE_COLUMNS[0]) == {}


@pytest.mark.parametrize(
    ("package", "planted"),
    [
        pytest.param("certctl_core", "import certctl_sdk.files", id="core-sdk"),
        pytest.param("certctl_sdk", "from certctl_server import app", id="sdk-server"),
        pytest.param("certctl_sdk", "importlib.import_module('certctl_server.main')", id="sdk-server-by-name"),
        pytest.param("certctl_server", "def late():\n    import certctl_agent", id="server-agent-late"),
        pytest.param("certctl_agent", "if TYPE_CHECKING:\n    from certctl_server.app import App", id="agent-server"),
        pytest.param("certctl_issuer_one", "import certctl_issuer_two", id="connector-connector"),
        pytest.param("certctl_target_one", "import certctl_server", id="connector-server"),
    ],
)
def test_an_arrow_that_points_up_is_found(tmp_path, parse, package, planted):
    source = tmp_path / "src" / package
    source.mkdir(parents=True)
    (source / "planted.py").write_text(f"import {package}\nimport pluggy\n{planted}\n")
    assert len(wrong_arrows(tmp_path, parse(tmp_path))) > 0
