"""Header fields that decide what is sent: ranges, conditions, encodings.

Rule: pure; what RFC 9110 lets a server ignore is ignored, what is malformed otherwise is
InvalidArgument.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from cas.errors import InvalidArgument, OutOfRange

_RANGE = re.compile(r"bytes[ \t]*=[ \t]*(?:(\d{1,19})-(\d{0,19})|-(\d{1,19}))[ \t]*", re.ASCII)
_TAG = re.compile(r'(?:W/)?"([^"]*)"')
_DIGITS = re.compile(r"\d{1,19}", re.ASCII)


class Span(NamedTuple):
    """Bytes from `start` up to, not including, `end`."""

    start: int
    end: int


def byte_range(field: str, size: int) -> Span | None:
    """The range asked for, cut to `size`; None where all of it is to be sent: several ranges,
    other units and what cannot be read may be ignored (RFC 9110, 14.2).

    Raises OutOfRange when nothing of it is there.
    """
    match = _RANGE.fullmatch(field)
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        start, end = max(0, size - int(suffix)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < int(first):
            return None
    if start >= end:
        raise OutOfRange(f"range {field!r} is outside of 0 to {size}, the content's size")
    return Span(start, end)


def matches(field: str, tag: str) -> bool:
    """Whether If-None-Match names the entity tag `tag`, by the weak comparison."""
    return field.strip() == "*" or tag in _TAG.findall(field)


def accepts_zstd(field: str) -> bool:
    """Whether Accept-Encoding lets content come as zstd."""
    for item in field.lower().split(","):
        coding, _, parameters = item.partition(";")
        if coding.strip() == "zstd":
            quality = parameters.replace(" ", "")
            return re.fullmatch(r"q=0(\.0{0,3})?", quality) is None
    return False


def whole_number(name: str, field: str) -> int:
    """A size; raises InvalidArgument."""
    if not _DIGITS.fullmatch(field):
        raise InvalidArgument(f"{name} {field[:80]!r} is not a whole number of bytes")
    return int(field)
