"""Many Digest messages to keys at once.

Rule: pure; bytes in, keys out, or `UnusualError` for whatever is not plainly a list of digests in
protobuf's canonical form; then the caller lets protobuf look at them one by one.

A Python object per digest costs more than looking the digest up.  So the messages are laid
out as rows of equal width, where one slice with a stride is one byte of every digest: each
check, and each step of turning hex into keys, is one call for all of them.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from cas.digest import KNOWN, Functions

AT_ONCE: Final = 4
"""Digests from which this is faster than one object for each."""

HEADER: Final = 2
"""Bytes before each message where it is a field of another: a tag and a one-byte length."""


class UnusualError(Exception):
    """Bytes that are left to protobuf."""


_HASH_TAG: Final = b"\x0a"
_SIZE_TAG: Final = 0x10
_LONGEST_SIZE: Final = 9
"""Bytes of a varint below 2^63."""

_IS_CONTINUED: Final = bytes(byte >= 0x80 for byte in range(256))
_IS_THERE: Final = bytes(byte != 0 for byte in range(256))
_TAG_OR_NONE: Final = bytes(_SIZE_TAG if byte else 0 for byte in range(256))
_HIGH_DIGIT: Final = b" " + b"".join(b"%x" % (byte >> 4) for byte in range(1, 256))
_LOW_DIGIT: Final = b" " + b"".join(b"%x" % (byte & 15) for byte in range(1, 256))
_CAPITALS: Final = (b"A", b"B", b"C", b"D", b"E", b"F")


def keys_of_run(run: bytes, number: int, among: Functions = KNOWN) -> list[bytes]:
    """The keys of digests that are fields of equal length, one after the other.

    `number` is the digest function of the request, one `among` those, 0 where the hash's length
    tells.
    """
    width = run[1] + HEADER
    count = len(run) // width
    header = run[:HEADER]
    if header[1] > 0x7F or any(run[i::width] != header[i : i + 1] * count for i in (0, 1)):
        raise UnusualError
    # Rows from message to message: the next one's header pads each.
    return _keys(run[HEADER:] + header, width, [width - HEADER] * count, number, among)


def keys_of_list(messages: list[bytes], number: int, among: Functions = KNOWN) -> list[bytes]:
    """The keys of digests given one by one; their sizes may differ in length."""
    lengths = [*map(len, messages)]
    width = max(lengths)
    if width > 0x7F:
        raise UnusualError
    # Struct pads with zeros, which no canonical size holds.
    width += _LONGEST_SIZE - 1
    return _keys(Struct(f"{width}s" * len(messages)).pack(*messages), width, lengths, number, among)


def _keys(
    rows: bytes, width: int, lengths: list[int], number: int, among: Functions
) -> list[bytes]:
    """The keys of messages that begin each row of `width` bytes.

    What follows a message in its row is blanked; shorter ones than the longest are padded
    with zeros up to its length.
    """
    count = len(lengths)
    digits = rows[1]
    function = among.by_number.get(number) if number else among.by_hex_length.get(digits)
    if function is None or digits != 2 * function.length or digits > 0x7F:
        raise UnusualError
    size_tag = 2 + digits
    longest = max(lengths) - size_tag - 1
    column = rows[size_tag + 1 :: width]
    if (
        # Each byte of a size takes two hex digits, in the columns from its tag on.
        not 1 <= longest <= _LONGEST_SIZE
        or size_tag + 2 * longest > width
        or rows[::width] != _HASH_TAG * count
        or rows[1::width] != rows[1:2] * count
        or rows[size_tag::width] != column.translate(_TAG_OR_NONE)
    ):
        raise UnusualError

    # The two bytes before the hash become the function's code, those after it the size's hex
    # digits or blanks, which fromhex skips: what is left are the keys, one after the other.
    text = bytearray(rows)
    code = b"%02x" % function.code
    text[::width] = code[:1] * count
    text[1::width] = code[1:] * count
    sized = count - column.count(0)
    seen = count * size_tag + sized
    for place in range(longest):
        seen += count - column.count(0)
        at = size_tag + 2 * place
        text[at::width] = column.translate(_HIGH_DIGIT)
        text[at + 1 :: width] = column.translate(_LOW_DIGIT)
        goes_on = column.translate(_IS_CONTINUED)
        column = rows[size_tag + 2 + place :: width] if place + 1 < longest else bytes(count)
        # A canonical size goes on exactly where its bytes say so, and never with a zero.
        if goes_on != column.translate(_IS_THERE):
            raise UnusualError
    # Zeros that came look like padding, but not in the lengths.
    if seen != sum(lengths):
        raise UnusualError
    blank = b" " * count
    for at in range(size_tag + 2 * longest, width):
        text[at::width] = blank
    # fromhex takes capitals, a hash may have none.
    if any(letter in text for letter in _CAPITALS):
        raise UnusualError
    try:
        raw = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        raise UnusualError from None
    # White space within a hash was skipped as well.
    if len(raw) != count * (1 + function.length) + seen - count * size_tag - sized:
        raise UnusualError
    # A Struct of its own: struct.unpack would keep this one in its cache.
    return list(Struct(_key_format(lengths, size_tag, 1 + function.length)).unpack(raw))


def _key_format(lengths: list[int], size_tag: int, unsized: int) -> str:
    """Struct's format of keys whose messages have these lengths."""
    formats = {length: f"{unsized + max(0, length - size_tag - 1)}s" for length in set(lengths)}
    if len(formats) == 1:
        return formats[lengths[0]] * len(lengths)
    return "".join([formats[length] for length in lengths])
