"""The little of DER (ITU-T X.690) that cryptography does not offer: to take a structure apart and make one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
OID = 0x06
SEQUENCE = 0x30

_LONG_FORM = 0x80
_MULTI_BYTE_TAG = 0x1F


@dataclass(frozen=True, slots=True)
class Element:
    """One value, by its place in the bytes it was read from."""

    tag: int
    """The identifier octet, class and constructed bit included."""
    whole: bytes
    """Identifier, length and content."""
    content: bytes
    """The content octets alone."""


def elements(der: bytes) -> Iterator[Element]:
    """Yield the values that follow one another in ``der``; for those inside another one, pass its ``content``.

    Raises:
        ValueError: a value is cut off, or encoded in a way that DER and X.509 do not use.
    """
    at = 0
    while at < len(der):
        start, tag = at, der[at]
        if tag & _MULTI_BYTE_TAG == _MULTI_BYTE_TAG or at + 1 >= len(der):
            raise ValueError("not DER: a value is cut off or has a tag that X.509 does not use")
        length, at = der[at + 1], at + 2
        if length >= _LONG_FORM:
            octets = length & ~_LONG_FORM
            if not 1 <= octets <= 4:  # noqa: PLR2004  # no structure here has 4 GiB
                raise ValueError("not DER: a length is indefinite or absurd")
            length, at = int.from_bytes(der[at : at + octets], "big"), at + octets
        if at + length > len(der):
            raise ValueError("not DER: a value is cut off")
        yield Element(tag, der[start : at + length], der[at : at + length])
        at += length


def children(der: bytes) -> list[Element]:
    """Return the values inside the first value of ``der``.

    Raises:
        ValueError: as ``elements`` does, or ``der`` is empty.
    """
    first = next(elements(der), None)
    if first is None:
        raise ValueError("not DER: nothing there")
    return list(elements(first.content))


def encode(tag: int, *contents: bytes) -> bytes:
    """Return one value with ``tag`` and the joined ``contents``, its length in the shortest form."""
    content = b"".join(contents)
    length = len(content)
    if length < _LONG_FORM:
        return bytes((tag, length)) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, _LONG_FORM | len(octets))) + octets + content
