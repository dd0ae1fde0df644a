import hashlib
import io
import json

import msgspec
import pytest
from certctl_core.audit import COLUMNS, START, Link, Trailer, key_text, row_hash, sign
from certctl_sdk import cli
from certctl_sdk.audit_file import Line, encode, verify
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()


def row(number, before, **changes):
    """A sealed line; with ``before`` None, one that waits."""
    texts = dict(zip(COLUMNS, (f"audit-{number}", "2026-01-01T00:00:00.000000Z", *"abcdefg"), strict=True))
    texts |= {"details": f'{{"n":{number},"text":"\\"\u00fc\\n"}}', "request_id": "", **changes}
    place = {}
    if before is not None:
        hashed = row_hash(before.hash, before.sequence + 1, [texts[name] for name in COLUMNS])
        place = {"sequence": before.sequence + 1, "previous_hash": before.hash, "hash": hashed}
    details = texts.pop("details")
    return Line(**place, **texts, details_text=details, details=msgspec.Raw(details.encode()))


def checkpoint(link, key=KEY):
    return Line(checkpoint=link, key=key_text(key.public_key()), signature=sign(key, link))


def close(lines, first, head, *, unsealed=0, made_at="2026-01-02T00:00:00.000000Z", key=KEY):
    """The bytes of a file with its trailer."""
    body = b"".join(map(encode, lines))
    trailer = Trailer(first, head.sequence, head.hash, unsealed, made_at, hashlib.sha256(body).hexdigest())
    return body + encode(Line(trailer=trailer, key=key_text(key.public_key()), signature=sign(key, trailer)))


def export(count, *, start=START, waiting=0, key=KEY, **more):
    """A file of so many rows behind ``start`` and a checkpoint after the last; its bytes and its end."""
    lines, head = ([checkpoint(start, key)] if start.sequence else []), start
    for _ in range(count):
        lines.append(row(head.sequence + 1, head))
        head = Link(lines[-1].sequence, lines[-1].hash)
    lines.append(checkpoint(head, key))
    lines += [row(1000 + number, None) for number in range(waiting)]
    return close(lines, start.sequence + 1, head, unsealed=waiting, key=key, **more), head


def faults(*files, key=""):
    return verify(map(io.BytesIO, files), key).faults.told


def test_an_export_that_nobody_touched_verifies():
    raw, head = export(5, waiting=2)
    found = verify([io.BytesIO(raw)])
    assert (found.faults.told, found.rows, found.unsealed, found.checkpoints) == ([], 5, 2, 1)
    assert (found.first, found.head, found.key) == (1, head, key_text(KEY.public_key()))


def test_an_empty_trail_verifies():
    assert faults(close([], 1, START)) == []


def test_any_other_byte_anywhere_is_found():
    raw, _ = export(3, waiting=1)
    for at in range(len(raw)):
        for byte in {raw[at] ^ 1, ord(" ")} - {raw[at]}:
            assert faults(raw[:at] + bytes([byte]) + raw[at + 1 :]), raw[max(0, at - 20) : at + 20]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 6])
def test_a_file_that_ends_too_early_is_found(size):
    raw, _ = export(4)
    lines = raw.splitlines(keepends=True)
    assert "the trailer is missing: the end was cut off, or it is no whole export" in faults(
        b"".join(lines[:-1][:size])
    )
    assert faults(raw[:-1]) == ["the trailer is not written as it was"]


@pytest.mark.parametrize("gone", range(6))
def test_a_line_that_is_gone_is_found(gone):
    lines = export(4)[0].splitlines(keepends=True)
    assert faults(b"".join(lines[:gone] + lines[gone + 1 :]))


def test_lines_that_changed_places_are_found():
    lines = export(4)[0].splitlines(keepends=True)
    lines[1], lines[2] = lines[2], lines[1]
    assert faults(b"".join(lines))[:2] == ["rows 2 to 2 are gone", "row 2 stands after row 3"]


def test_something_behind_the_trailer_is_found():
    raw, _ = export(1)
    assert faults(raw + b"{}\n") == ["something stands after the trailer"]


def test_an_end_that_was_cut_off_and_closed_anew_is_signed_by_somebody_else():
    forged, _ = export(3, key=OTHER)
    assert faults(forged) == []
    assert faults(forged, key=key_text(KEY.public_key())) == [
        "it is signed by another key",
        "the checkpoint at row 3 holds a signature that is not ours",
        "the trailer holds a signature that is not ours",
    ]


def test_two_keys_in_one_file_are_found():
    first = row(1, START)
    head = Link(1, first.hash)
    assert "it is signed by another key" in faults(close([first, checkpoint(head)], 1, head, key=OTHER))


def test_details_that_say_something_else_than_was_hashed_are_found():
    line = row(1, START)
    line.details = msgspec.Raw(b'{"n":2}')
    assert "row 1 (audit-1) shows other details than were hashed" in faults(close([line], 1, Link(1, line.hash)))


def test_details_may_be_spelt_otherwise():
    line = row(1, START, details='{"a": 1,  "b": [2]}')
    line.details = msgspec.Raw(b'{"b":[2],"a":1}')
    assert faults(close([line], 1, Link(1, line.hash))) == []


@pytest.mark.parametrize(
    ("first", "unsealed", "fault"),
    [
        (2, 0, "it begins with another row than 2, as the trailer has it"),
        (1, 3, "it has 0 rows that were not sealed, not 3"),
    ],
)
def test_a_trailer_that_says_something_else_is_found(first, unsealed, fault):
    line = row(1, START)
    assert faults(close([line], first, Link(1, line.hash), unsealed=unsealed)) == [fault]


def test_archives_and_an_export_are_one_trail():
    one, at_one = export(3)
    two, at_two = export(2, start=at_one)
    three, head = export(4, start=at_two, waiting=1)
    found = verify(map(io.BytesIO, (one, two, three)))
    assert (found.faults.told, found.rows, found.first, found.head) == ([], 9, 1, head)
    alone = verify([io.BytesIO(three)])
    assert (alone.faults.told, alone.rows, alone.first) == ([], 4, 6)


def test_files_that_do_not_follow_each_other_are_found():
    one, at_one = export(3)
    _, at_two = export(2, start=at_one)
    three, _ = export(1, start=at_two)
    assert "rows 4 to 5, which a checkpoint names, are gone" in faults(one, three)
    assert "row 1 stands after row 3" in faults(one, one)
    old, _ = export(2, start=at_one, made_at="2026-01-01T00:00:00.000000Z")
    assert faults(one, old) == ["it was made before the file in front of it"]


def test_what_is_no_export_is_said_to_be_none():
    assert faults(b"hello\n\xff\n")[:2] == ["line 1 is none of an export", "line 2 is none of an export"]
    assert faults(b'{"trailer": 1}\n')[0] == "line 1 is none of an export"


def test_what_would_not_be_a_key_is_refused():
    with pytest.raises(ValueError, match="32 bytes"):
        verify([], "AAAA")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "audit.ndjson"
    path.write_bytes(export(3)[0])
    return path


def run(*arguments):
    return CliRunner().invoke(cli.main, ["audit", "verify", *map(str, arguments)])


def test_the_command_says_what_it_found(file):
    done = run(file)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[0] == "sealed rows: 3, checkpoints: 1, not sealed yet: 0"
    assert f"signed by: {key_text(KEY.public_key())}" in done.output
    assert "compare it with the server's" in done.output
    pinned = run("--key", key_text(KEY.public_key()), file)
    assert (pinned.exit_code, "compare" in pinned.output) == (0, False)


def test_the_command_fails_with_the_faults(file):
    file.write_bytes(file.read_bytes().replace(b'"actor":"a"', b'"actor":"\xc2\x9b"', 1))
    done = run(file)
    assert done.exit_code == 1
    assert "FAULT: row 1 (audit-1) was changed" in done.output
    assert "Error: this is not what the server sealed" in done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--key", "AAAA"], "--key goes with a FILE"),
        (["--key", "AAAA", "FILE"], "it is 32 bytes in base64"),
        (["/no/such/file"], "No such file"),
    ],
)
def test_the_command_refuses_what_cannot_be(file, arguments, said):
    done = run(*(str(file) if each == "FILE" else each for each in arguments))
    assert done.exit_code == 2
    assert said in done.output


def test_a_line_is_json_for_everybody():
    found = json.loads(encode(row(7, None)))
    assert found["details"] == {"n": 7, "text": '"\u00fc\n'} == json.loads(found["details_text"])
    assert found.keys() & {"sequence", "hash", "checkpoint", "trailer"} == set()
