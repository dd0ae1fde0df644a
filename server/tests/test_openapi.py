import ast
import importlib.util
import inspect
import json
import re
import sys
import textwrap
from pathlib import Path

import jsonschema_rs
import msgspec
import pytest
from api_table import CONTRACT, SERVED, UNBUILT, Route
from certctl_sdk.api import Call, Page, bodies, calls, objects, queries, replies, resources
from certctl_server.body import read
from certctl_server.openapi.document import document, operations
from litestar import Litestar, get

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "client_types.py"
NO_CLIENT = {
    *("GET /health", "GET /ready", "GET /api/v1/metrics/prometheus"),
    *("POST /api/v1/auth/login", "POST /api/v1/auth/logout", "GET /api/v1/digest/preview"),
    "GET /api/v1/audit/export",
}
"""Asked by monitors and by browsers, in their own ways; and a file, which is saved as it comes."""


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("client_types", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def doc(tool):
    return tool.described()


@pytest.fixture(scope="module")
def handlers(tool):
    app = Litestar(tool.ROUTES, openapi_config=None, dependencies={"ctx": tool.Provide(tool.nothing)})
    return {f"{method} {path}": handler for path, method, handler in operations(app)}


def described(doc):
    for path, methods in doc["paths"].items():
        for method, operation in methods.items():
            good = int(next(code for code in operation["responses"] if code[0] == "2"))
            yield Route(method.upper(), path, good, frozenset(operation["x-roles"]))


def test_the_document_has_exactly_the_routes_of_the_contract(doc):
    assert sorted(described(doc)) == SERVED
    assert {route.name for route in CONTRACT} >= UNBUILT
    assert len({route.name for route in CONTRACT}) == len(CONTRACT)


def test_operations_have_names_of_their_own(doc):
    names = [each["operationId"] for methods in doc["paths"].values() for each in methods.values()]
    assert len(set(names)) == len(names)


def test_every_schema_is_one(doc):
    for name, schema in doc["components"]["schemas"].items():
        whole = {"$ref": f"#/components/schemas/{name}", "components": doc["components"]}
        validator = jsonschema_rs.Draft202012Validator(whole, validate_formats=True)
        for example in schema.get("examples", ()):
            assert [str(error.message) for error in validator.iter_errors(example)] == [], name


def test_references_lead_somewhere(doc):
    for reference in set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(doc))):
        place = doc
        for step in reference.split("/"):
            place = place[step]


@pytest.mark.parametrize("key", ["body", "change"])
def test_examples_of_bodies_are_taken(handlers, doc, key):
    structs = {handler.opt[key] for handler in handlers.values() if key in handler.opt}
    assert len(structs) > 5
    for struct in structs:
        name = struct.__name__
        [example] = doc["components"]["schemas"][name]["examples"]
        values, ignored = read(msgspec.json.encode(example), struct, whole=key == "body")
        assert ignored == [], name
        assert values or not struct.__struct_fields__, name


READERS = {"new": "body", "changes": "change"}


def test_handlers_read_the_body_that_they_declare(handlers):
    """A form that is declared and another one that is read would be two truths."""
    for name, handler in handlers.items():
        tree = ast.parse(textwrap.dedent(inspect.getsource(handler.fn)))
        [function] = tree.body
        declared = {}
        for decorator in function.decorator_list:
            for node in ast.walk(decorator):
                if isinstance(node, ast.Dict):
                    keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
                    declared |= {key: ast.unparse(value) for key, value in zip(keys, node.values, strict=False)}
        done = [
            (READERS[node.func.id], ast.unparse(node.args[1]))
            for node in ast.walk(function)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in READERS
        ]
        assert done == [(key, declared[key]) for key in ("body", "change") if key in declared], name


async def test_the_document_is_served_to_everybody(connect):
    async with connect() as nobody:
        answer = await nobody.get("/api/v1/openapi.json")
        assert answer.json()["openapi"] == "3.1.0"
        assert sorted(described(answer.json())) == SERVED


async def test_the_viewer_is_here_and_asks_for_nothing_from_elsewhere(connect):
    async with connect() as nobody:
        page = await nobody.get("/api/v1/docs")
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        [script] = re.findall(r'src="([^"]+)"', page.text)
        assert not re.search(r"https?://", page.text)
        packed = await nobody.get(script)
        assert packed.headers["Content-Encoding"] == "gzip"
        plain = await nobody.get(script, headers={"Accept-Encoding": "identity"})
        assert "Content-Encoding" not in plain.headers
        assert plain.content == packed.content
        assert b"RapiDoc" in plain.content


def test_a_route_that_says_not_what_it_answers_is_refused(tool):
    @get("/api/v1/nothing", opt={"roles": frozenset({"admin"})})
    async def nothing() -> dict[str, str]:
        """Say nothing."""
        return {}

    with pytest.raises(TypeError, match="does not say what it answers"):
        document(Litestar([nothing], openapi_config=None))


def test_the_types_of_the_client_are_those_of_the_document(tool, doc):
    for name, text in tool.written(doc).items():
        # Not by their text: the formatter is no part of what tests need.
        here = ast.parse((tool.API / f"{name}.py").read_text())
        assert ast.dump(here) == ast.dump(ast.parse(text)), "run tools/client_types.py"


def made():
    """Every call that the sdk can make, with the type of its answer, by method and path."""
    for name, value in vars(resources).items():
        if inspect.isfunction(value) and value.__module__ == resources.__name__:
            yield value(), value.__annotations__["return"]
        if not isinstance(value, calls.Place) or name.startswith("_"):
            continue
        for method in (each for each in dir(value) if not each.startswith("_") and each not in {"at", "path"}):
            function = getattr(value, method)
            needed = [each for each in inspect.signature(function).parameters.values() if each.default is each.empty]
            arguments = ["{}" if each.name.endswith("id") else {} for each in needed]
            yield function(*arguments), _answer(name, value, function.__annotations__["return"])


def _answer(name, value, text):
    """The type of the object in place of the letter that stands for it."""
    stated = resources.__annotations__.get(name) or str(next(iter(getattr(type(value), "__orig_bases__", ("",)))))
    first = re.search(r"objects\.(\w+)", stated)
    return re.sub(r"\bT\b", f"objects.{first[1]}", text) if first else text


def test_the_client_can_call_every_route_and_no_other(doc):
    shape = {re.sub(r"{\w+}", "{}", route.name): route for route in described(doc) if route.name not in NO_CLIENT}
    found = {f"{call.method} {call.path.replace('%7B%7D', '{}')}": (call, text) for call, text in made()}
    assert found.keys() == shape.keys()
    for name, (call, text) in found.items():
        assert isinstance(call, Call)
        assert call.status == shape[name].status, name
        operation = doc["paths"][shape[name].path][shape[name].method.lower()]
        assert _told(operation["responses"]) == re.sub(r"(objects|replies)\.", "", text), name
        assert (call.rows, call.series) == ("Page[" in text, "list[" in text), name


def _told(responses):
    answers = [
        each.get("content", {}).get("application/json", {}) for code, each in responses.items() if code[0] == "2"
    ]
    return f"Call[{' | '.join(dict.fromkeys(_type(each.get('schema')) for each in answers))}]"


def _type(schema):
    if schema is None:
        return "None"
    if schema.get("type") == "array":
        return f"list[{schema['items']['$ref'].rpartition('/')[2]}]"
    row = schema.get("properties", {}).get("data", {}).get("items")
    name = (row or schema)["$ref"].rpartition("/")[2]
    return f"Page[{name}]" if row else name


def test_the_modules_of_types_can_be_imported():
    assert all(vars(each) for each in (bodies, objects, queries, replies))
    assert Page([1], 1).data == [1]
