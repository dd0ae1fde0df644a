import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from certctl_core.audit import (
    CHECKPOINT_ROWS,
    COLUMNS,
    START,
    Link,
    Trailer,
    Walk,
    is_signed,
    key_text,
    moment,
    read_key,
    row_hash,
    sign,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY = Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key()
TRAILER = Trailer(first=1, last=3, hash="ab", unsealed=0, made_at="2026-01-01T00:00:00.000000Z", digest="cd")


def texts(number):
    return (f"audit-{number}", *("x" * at for at in range(1, len(COLUMNS))))


def chained(count, start=START):
    """Rows as ``Walk.row`` takes them."""
    rows, before = [], start
    for number in range(start.sequence + 1, start.sequence + count + 1):
        made = row_hash(before.hash, number, texts(number))
        rows.append((number, before.hash, made, texts(number)))
        before = Link(number, made)
    return rows


def walked(rows, signed=(), start=START):
    """What a walk says of rows with checkpoints behind some of them."""
    walk = Walk(start)
    for row in rows:
        walk.row(*row)
        for link in (link for link in signed if link.sequence == row[0]):
            walk.checkpoint(PUBLIC, link, sign(KEY, link))
    walk.end()
    return walk


def test_the_hash_of_a_row_is_what_the_format_says():
    parts = [b"certctl audit row 1", b"before", b"7", *(f"{name} \u00fc".encode() for name in COLUMNS)]
    framed = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    assert row_hash("before", 7, [f"{name} \u00fc" for name in COLUMNS]) == hashlib.sha256(framed).hexdigest()


def test_what_is_no_text_has_a_hash_as_well():
    assert row_hash("", 1, [None, "\ud800", b"x"]) != row_hash("", 1, ["", "", ""])


def test_a_moment_has_one_text_in_every_zone():
    east = datetime(2026, 1, 1, 5, tzinfo=timezone(timedelta(hours=5)))
    assert moment(east) == moment(datetime(2026, 1, 1, tzinfo=UTC)) == "2026-01-01T00:00:00.000000Z"


def test_a_whole_chain_has_no_faults():
    rows = chained(10)
    walk = walked(rows, [Link(10, rows[9][2])])
    assert (walk.faults.told, walk.rows, walk.checkpoints) == ([], 10, 1)
    assert walk.head == Link(10, rows[9][2])


def test_a_chain_goes_on_behind_an_archive():
    start = Link(5, "archived")
    assert walked(chained(3, start), start=start).faults.told == []


@pytest.mark.parametrize("place", range(3 + len(COLUMNS)))
def test_one_character_anywhere_in_a_row_is_one_change_found(place):
    rows = chained(3)
    sequence, previous, made, row = rows[1]
    fields = [previous, made, *row]
    if place < len(fields):
        fields[place] = "!" + fields[place][1:]
    else:
        sequence = 5
    rows[1] = (sequence, fields[0], fields[1], tuple(fields[2:]))
    assert walked(rows).faults.count > 0


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        (lambda rows: rows[1:], ["rows 1 to 1 are gone"]),
        (lambda rows: rows[:2] + rows[4:], ["rows 3 to 4 are gone"]),
        (lambda rows: [rows[0], rows[2], rows[1], rows[3]], ["rows 2 to 2 are gone", "row 2 stands after row 3"]),
        (lambda rows: [rows[0], rows[1], rows[1], rows[2]], ["row 2 stands after row 2"]),
    ],
    ids=["first gone", "two gone", "swapped", "twice"],
)
def test_rows_that_are_missing_or_moved_are_found(change, faults):
    assert walked(change(chained(5))).faults.told == faults


def test_rows_chained_anew_from_a_change_on_meet_the_signature():
    good, forged = chained(5), chained(5)
    forged[2] = (3, forged[1][2], row_hash(forged[1][2], 3, ("eve",)), ("eve",))
    for at in (3, 4):
        number, before = at + 1, forged[at - 1][2]
        forged[at] = (number, before, row_hash(before, number, texts(number)), texts(number))
    assert walked(forged).faults.told == []
    assert walked(forged, [Link(5, good[4][2])]).faults.told == ["row 5 is not the one that was signed"]


def test_a_checkpoint_names_rows_that_were_cut_off():
    rows = chained(5)
    walk = walked(rows[:3])
    walk.checkpoint(PUBLIC, Link(5, rows[4][2]), sign(KEY, Link(5, rows[4][2])))
    assert walk.faults.told == ["rows 4 to 5, which a checkpoint names, are gone"]


def test_a_checkpoint_of_another_key_is_found():
    rows, other = chained(2), Ed25519PrivateKey.generate()
    walk = walked(rows)
    walk.checkpoint(PUBLIC, walk.head, sign(other, walk.head))
    assert walk.faults.told == ["the checkpoint at row 2 holds a signature that is not ours"]


def test_many_rows_without_a_signature_are_found():
    rows = chained(2 * CHECKPOINT_ROWS + 1)
    assert walked(rows[:CHECKPOINT_ROWS]).faults.told == ["rows 1 to 1000 are not signed"]
    last = Link(rows[-1][0], rows[-1][2])
    assert walked(rows, [last]).faults.told == ["a checkpoint between rows 0 and 2001 is gone"]


def test_of_many_faults_the_first_are_told_and_all_counted():
    rows = [(number, before, "forged", row) for number, before, _, row in chained(200)]
    faults = walked(rows).faults
    assert (len(faults.told), faults.count) == (50, 399)


@pytest.mark.parametrize("name", ["first", "last", "hash", "unsealed", "made_at", "digest"])
def test_a_trailer_is_signed_with_all_that_it_says(name):
    signature = sign(KEY, TRAILER)
    value = getattr(TRAILER, name)
    other = replace(TRAILER, **{name: value + 1 if isinstance(value, int) else value + "0"})
    assert is_signed(PUBLIC, TRAILER, signature)
    assert not is_signed(PUBLIC, other, signature)
    assert not is_signed(Ed25519PrivateKey.generate().public_key(), TRAILER, signature)


@pytest.mark.parametrize("signature", ["", "!", None, "AAAA"])
def test_what_is_no_signature_is_none(signature):
    assert not is_signed(PUBLIC, START, signature)


def test_a_signature_has_one_spelling():
    signature = sign(KEY, START)
    head, last = signature[:-3], signature[-3]
    others = {f"{head}{letter}==" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"}
    assert {each for each in others if is_signed(PUBLIC, START, each)} == {f"{head}{last}=="}


def test_a_key_is_read_as_it_is_written():
    assert key_text(read_key(key_text(PUBLIC))) == key_text(PUBLIC)
    with pytest.raises(ValueError, match="32 bytes"):
        read_key("AAAA")
