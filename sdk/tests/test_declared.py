"""What files of declared state may look like; how a server becomes so is in tests/e2e/test_declared.py."""

from __future__ import annotations

import pytest
from certctl_sdk.declared.file import read_files
from certctl_sdk.declared.masking import Options
from certctl_sdk.declared.shape import Shapes
from certctl_sdk.declared.text import Reading, Value


def read(text, **environ):
    """The documents of a text as plain values, and what is wrong with it."""
    reading = Reading("f", environ)
    return [each.plain for each in reading.documents(text)], [str(each) for each in reading.faults]


def test_only_what_json_can_say_is_read_and_only_what_looks_like_it():
    text = """
      words: [no, off, 22:00, 0x1f, 1_000, 007, 2030-01-01, '1', "true", 1.2.3, inf, ., 111111111111111111111111111111]
      null: [~, null, ]
      bool: [true, False]
      numbers: [-1, 0, 443, 1.5, -2e3]
      folded: >
        a
        b
    """
    [found], faults = read(text)
    words = ["no", "off", "22:00", "0x1f", "1_000", "007", "2030-01-01", "1", "true", "1.2.3", "inf", ".", "1" * 30]
    assert faults == []
    assert found == {
        "words": words,
        "null": [None, None],
        "bool": [True, False],
        "numbers": [-1, 0, 443, 1.5, -2000.0],
        "folded": "a b\n",
    }


def test_every_value_knows_its_line():
    [found] = Reading("f", {}).documents("a:\n  - b\n  -\n    c: d\n")
    assert (found.line, found.it["a"].line, found.it["a"].it[1].line, found.it["a"].it[1].it["c"].line) == (1, 2, 4, 4)


def test_the_environment_is_asked_where_the_file_says_so():
    assert read("a: !env SECRET", SECRET="x: y") == ([{"a": "x: y"}], [])
    assert read("a: !env NOTHING")[1] == ["f:1: the environment has no variable 'NOTHING'"]


FAULTS = {
    "object": (
        "a: !!python/object/apply:os.system [ls]",
        "f:1: the tag tag:yaml.org,2002:python/object/apply:os.system",
    ),
    "scalar object": ("a: !!python/name:os.system ''", "means nothing here"),
    "binary": ("a: !!binary aGk=", "f:1: the tag tag:yaml.org,2002:binary means nothing here"),
    "no number": ("a: !!int x", "f:1: the tag tag:yaml.org,2002:int means nothing here"),
    "set": ("a: !!set {b}", "f:1: the tag tag:yaml.org,2002:set means nothing here"),
    "key twice": ("a: 1\nb: 2\na: 3", "f:3: the key 'a' stands here twice"),
    "key that is a list": ("? [a]\n: b", "f:1: a key is text"),
    "syntax": ("a: 1\nb: [", "f:3: did not find"),
    "tab": ("a:\n\tb: 1", "f:2: "),
    "unknown alias": ("a: *b", "f:1: found undefined alias"),
    "control character": ("a: \x07", "f:1: is no YAML"),
    "bytes of no text": (b"a: \xff\xfe\xff", "f:1: is no YAML"),
}


@pytest.mark.parametrize(("text", "words"), FAULTS.values(), ids=FAULTS)
def test_what_is_no_plain_yaml_is_a_fault_with_its_line(text, words):
    _, faults = read(text)
    assert words in faults[0]


def test_aliases_stand_for_what_they_name_and_are_counted():
    assert read("a: &x {b: 1}\nc: *x") == ([{"a": {"b": 1}, "c": {"b": 1}}], [])
    laughs = "\n".join(["l0: &l0 [a]", *(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 12))])
    assert "more than" in read(laughs)[1][0]
    assert read("a: &a [*a]")[1] == ["f:1: lies too deep"]
    assert "f:1: " in read("[" * 5000 + "]" * 5000)[1][0]


def declared(tmp_path, text):
    (tmp_path / "f.yaml").write_text(text)
    found = read_files([str(tmp_path)], {})
    return [(each.kind.path, each.id, each.name) for each in found.declared], [each.message for each in found.faults]


SHAPES = {
    "a map by id": ("teams: {t: {name: A}}", [("teams", "t", "A")]),
    "a list": ("teams: [{id: t}, {name: B}]", [("teams", "t", ""), ("teams", "", "B")]),
    "an object alone": ("kind: Renewal_Policy\nid: rp", [("renewal-policies", "rp", "")]),
    "several documents": ("kind: team\nid: a\n---\n---\nteams:\n  b:\n", [("teams", "a", ""), ("teams", "b", "")]),
    "kinds in any order": ("owners: {o: {}}\nteams: {t: {}}", [("owners", "o", ""), ("teams", "t", "")]),
    "nothing": ("", []),
    "an empty kind": ("teams:\nowners: []", []),
}


@pytest.mark.parametrize(("text", "expected"), SHAPES.values(), ids=SHAPES)
def test_objects_are_written_in_any_of_these_ways(tmp_path, text, expected):
    assert declared(tmp_path, text) == (expected, [])


WRONG = {
    "- teams": "is a map of kinds, or of one object with its kind",
    "things: []": "'things' is none of teams, owners,",
    "kind: thing": "'thing' is none of teams, owners,",
    "teams: 3": "teams is a list, or a map by id",
    "teams: [3]": "teams: each is a map of its fields",
    "teams: [{}]": "teams: each needs an id or a name",
    "teams: [{id: 3}]": "teams: an id is text",
    "teams: {a: {id: b}}": "teams: an id is text, and the key where there is one",
}


@pytest.mark.parametrize(("text", "words"), WRONG.items(), ids=WRONG)
def test_what_is_no_object_is_told(tmp_path, text, words):
    found, [message] = declared(tmp_path, text)
    assert found == []
    assert words in message


DOCUMENT = {
    "components": {
        "schemas": {"Rate": {"type": "object", "properties": {"count": {"type": "integer"}}, "required": ["count"]}}
    }
}


@pytest.mark.parametrize(
    ("schema", "good", "bad", "words"),
    [
        ({"type": "string", "maxLength": 2}, "ab", "abc", "has at most 2 characters"),
        ({"type": "string", "pattern": "^a$"}, "a", "a\n", "does not fit ^a$"),
        ({"type": ["string", "null"], "pattern": "^a$", "minLength": 1}, "", 3, "must be text"),
        ({"type": "integer", "minimum": 1}, 1, 0, "is at least 1"),
        ({"type": "integer"}, 1, True, "must be a whole number"),
        ({"type": "integer"}, 1, 1.5, "must be a whole number"),
        ({"type": "boolean"}, False, "no", "must be true or false"),
        ({"enum": ["Low", "High"]}, "low", "middle", "must be one of Low, High"),
        ({"anyOf": [{"enum": ["a"]}, {"type": "null"}]}, None, "b", "must be one of a"),
        ({"anyOf": [{"type": "integer", "maximum": 3}, {"type": "null"}]}, "", 4, "is at most 3"),
        ({"$ref": "#/components/schemas/Rate"}, {"count": Value(1, 1)}, {"cuont": Value(1, 1)}, "count may be meant"),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 1}, [Value(1, 1)], [], "has at least 1 entries"),
        ({"type": "object", "additionalProperties": {"type": "string"}}, {"a": Value("b", 1)}, [], "must be a map"),
    ],
)
def test_values_are_held_against_the_servers_schemas(schema, good, bad, words):
    shapes, none, some = Shapes(DOCUMENT), [], []
    shapes.read(Value(good, 1), schema, "x", none)
    shapes.read(Value(bad, 1), schema, "x", some)
    assert none == []
    assert any(words in each.message for each in some), some


def test_options_are_hidden_unless_the_connector_says_that_they_are_no_secrets():
    schema = {
        "properties": {
            "url": {"type": "string"},
            "token": {"anyOf": [{"type": "string", "writeOnly": True}, {"type": "null"}]},
            "headers": {"type": "array", "secret": True, "items": {"type": "string"}},
            "ports": {"type": "array", "items": {"type": "integer"}},
            "login": {"anyOf": [{"$ref": "#/$defs/Login"}, {"type": "null"}]},
        },
        "$defs": {"Login": {"properties": {"user": {"type": "string"}, "password": {"writeOnly": True}}}},
    }
    options = Options.of([{"kind_of": "issuer", "kind": "Vault", "schema": schema}])
    config = {
        "url": "u",
        "token": "t",
        "headers": ["h"],
        "ports": [1],
        "login": {"user": "a", "password": "p"},
        "tokne": "misspelt",
        "deep": {"x": ["y"]},
        "empty": "",
    }
    stars = "********"
    assert options.shown("issuers", "vault", config) == {
        "url": "u",
        "token": stars,
        "headers": [stars],
        "ports": [1],
        "login": {"user": "a", "password": stars},
        "tokne": stars,
        "deep": {"x": [stars]},
        "empty": "",
    }
    assert options.shown("issuers", "nobody's", {"url": "u", "n": 1}) == {"url": stars, "n": 1}
