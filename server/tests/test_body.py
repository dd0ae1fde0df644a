import json
from datetime import UTC, datetime
from enum import StrEnum
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
import pytest
from certctl_server.body import ID, Name, Time, ignored_header, read
from certctl_server.errors import Refused, envelope


class Colour(StrEnum):
    RED = "Red"
    DEEP_BLUE = "DeepBlue"


class Part(msgspec.Struct):
    colour: Colour
    size: Annotated[int, msgspec.Meta(ge=1)] = 1


class Thing(msgspec.Struct):
    name: Name
    count: int = 3
    owner: ID | None = None
    colour: Colour | None = None
    colours: list[Colour] = []
    parts: list[Part] = []
    sizes: list[Annotated[int, msgspec.Meta(ge=1)]] = []
    tags: dict[str, str] = {}
    config: dict[str, Any] = {}
    until: Time | None = None
    text: str = ""
    few: Annotated[list[str], msgspec.Meta(max_length=3)] | None = None


def create(**body):
    return read(msgspec.json.encode({"name": "x", **body}), Thing, whole=True)[0]


def change(**body):
    return read(msgspec.json.encode(body), Thing, whole=False)[0]


def faults(raw, *, whole=True):
    with pytest.raises(Refused) as refused:
        read(raw if isinstance(raw, bytes) else msgspec.json.encode(raw), Thing, whole=whole)
    assert refused.value.status is HTTPStatus.BAD_REQUEST
    return refused.value.faults


def test_every_fault_is_named_at_once_by_its_path():
    found = faults(
        {"count": "many", "owner": "../etc", "sizes": [1, 0, "x"], "parts": [{"colour": "red"}, {"colour": "pink"}]}
    )
    assert sorted(found) == ["count", "name", "owner", "parts[1].colour", "sizes[1]", "sizes[2]"]
    assert found["name"] == "required"


@pytest.mark.parametrize("value", [None, ""], ids=["null", "empty"])
@pytest.mark.parametrize("key", ["count", "owner", "colour", "colours", "tags", "until"])
def test_null_and_empty_text_count_as_absent_in_a_new_object(key, value):
    assert create(**{key: value}) == create()


def test_the_zero_time_is_no_time_but_may_be_a_text():
    zero = "0001-01-01T00:00:00Z"
    assert create(until=zero, text=zero) == {**create(), "text": zero}
    assert change(until=zero) == {"until": None}


def test_null_clears_an_optional_scalar_in_a_change():
    assert change(owner=None, count=None, until=None, text=None) == {
        "owner": None,
        "count": 3,
        "until": None,
        "text": "",
    }
    assert change(owner="", text="", colour="") == {"owner": None, "text": "", "colour": None}


def test_null_is_ignored_for_lists_and_maps_in_a_change():
    assert change(colours=None, tags=None, config=None, parts=None) == {}
    assert change(colours=[], tags={}) == {"colours": [], "tags": {}}


def test_null_for_what_is_required_is_a_fault_in_a_change():
    assert faults({"name": None}, whole=False) == {"name": "required"}
    assert list(faults({"name": ""}, whole=False)) == ["name"]


def test_a_change_holds_what_was_sent_and_nothing_else():
    assert change(count=0) == {"count": 0}


def test_enum_values_are_read_in_any_case_wherever_they_are():
    found = create(colour="RED", colours=["deepblue", "red"], parts=[{"colour": "DEEPblue"}])
    assert found["colour"] is Colour.RED
    assert found["colours"] == [Colour.DEEP_BLUE, Colour.RED]
    assert found["parts"] == [Part(Colour.DEEP_BLUE)]


def test_times_are_read_with_any_offset_and_become_utc():
    assert create(until="2030-01-01T02:00:00.5+02:00")["until"] == datetime(2030, 1, 1, 0, 0, 0, 500_000, UTC)
    assert create(until="2030-01-01T02:00:00.5+02:00")["until"].tzinfo is UTC


@pytest.mark.parametrize("text", ["2030-01-01T00:00:00", "tomorrow", "9999-12-31T23:59:59-10:00", 7])
def test_what_is_no_moment_is_a_fault(text):
    assert list(faults({"name": "x", "until": text})) == ["until"]


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"[]", id="list"),
        pytest.param(b'"x"', id="text"),
        pytest.param(b"{", id="cut short"),
        pytest.param(b'{"name": "\xff"}', id="not UTF-8"),
        pytest.param(b'{"name": "\\ud800"}', id="half a surrogate pair"),
        pytest.param(b'{"config": ' + b"[" * 100_000, id="bottomless"),
        pytest.param(b'{"name": "x"} {}', id="two objects"),
    ],
)
def test_what_is_no_json_object_is_refused(raw):
    assert faults(raw) == {}


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"name": "a\0b"}, "name"),
        ({"config": {"a": [1, {"b": "\0"}]}}, "config.a[1].b"),
        ({"config": {"a\0": 1}}, "config"),
        ({"unknown": "\0"}, "unknown"),
        ({"\0": 1}, "body"),
    ],
    ids=["text", "nested", "nested key", "unknown key", "key"],
)
def test_nul_is_refused_wherever_it_is(body, path):
    assert list(faults({"name": "x", **body})) == [path]


def test_a_text_that_only_speaks_of_nul_is_fine():
    assert create(text="\\u0000")["text"] == "\\u0000"


def test_what_lies_too_deep_is_refused():
    deep: Any = 1
    for _ in range(40):
        deep = {"a": deep}
    assert len(faults({"name": "x", "config": deep})) == 1
    assert create(config={"a": [[[{"b": {}}]]] * 20})


def test_unknown_keys_are_named_and_server_managed_ones_are_not():
    body = {"name": "x", "zeta": 1, "alpha": 2, "id": "a", "status": "b", "created_at": 1, "flown_at": 2}
    assert read(msgspec.json.encode(body), Thing, whole=True)[1] == ["alpha", "zeta"]


def test_strangers_keys_are_harmless_in_a_header():
    assert ignored_header(["a,b", "x\r\nSet-Cookie: a", "grün", "ok"]) == "a%2Cb,x%0D%0ASet-Cookie%3A%20a,gr%C3%BCn,ok"


def test_an_alias_stands_for_the_key_unless_that_is_there():
    aliases = {"amount": "count"}
    assert read(b'{"amount": 7}', Thing, whole=False, aliases=aliases) == ({"count": 7}, [])
    assert read(b'{"amount": 7, "count": 8}', Thing, whole=False, aliases=aliases) == ({"count": 8}, [])


@pytest.mark.parametrize("raw", [b"", b"  \n", b"{}"])
def test_an_empty_body_is_an_empty_object(raw):
    assert read(raw, Thing, whole=False) == ({}, [])
    assert faults(raw) == {"name": "required"}


@pytest.mark.parametrize("raw", [b"\x0b", b"\x0c{}", b"\xa0"])
def test_only_what_json_takes_for_white_space_is_none(raw):
    with pytest.raises(Refused, match="not a JSON object"):
        read(raw, Thing, whole=False)


def answered(raw):
    with pytest.raises(Refused) as refused:
        read(raw, Thing, whole=True)
    return envelope({"state": {}}, refused.value)


def test_a_small_body_with_many_faults_makes_a_small_answer():
    inner = '["' + '","'.join(["\\u0000"] * 3001) + '"]'
    for number in range(25):
        inner = '{"' + chr(97 + number) * 4000 + '":' + inner + "}"
    raw = f'{{"name": "x", "config": {inner}}}'.encode()
    assert len(answered(raw)) < 100_000


def test_after_a_hundred_faults_no_more_are_told():
    details = json.loads(answered(msgspec.json.encode({"name": "x", "sizes": [0] * 5_000})))["details"]
    assert [each["field"] for each in details] == [*(f"sizes[{number}]" for number in range(100)), "and more"]
    assert len(faults({"name": "x", "sizes": [0] * 5_000})) == 101


def test_a_list_that_is_too_long_is_not_looked_into():
    assert faults({"name": "x", "few": [1] * 500_000}) == {"few": "Expected `array` of length <= 3"}


def test_what_a_fault_repeats_of_a_value_is_cut():
    [told] = json.loads(answered(msgspec.json.encode({"name": "x", "colour": "y" * 100_000})))["details"]
    assert len(told["message"]) <= 300
