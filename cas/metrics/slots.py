"""Texts in places of a fixed size, in memory that others read while it is written.

Rule: a place holds a CRC, a length and as many bytes; whoever finds them at odds, since a process
writes at this moment or was killed while it did, finds the place empty.
"""

from __future__ import annotations

import struct
import zlib

_HEAD = struct.Struct("<II")


def capacity(size: int) -> int:
    """Bytes that a place of `size` can hold."""
    return size - _HEAD.size


def write(place: memoryview, data: bytes) -> None:
    """Puts `data`, at most `capacity` of the place, in place of what was there."""
    place[: _HEAD.size] = bytes(_HEAD.size)
    end = _HEAD.size + len(data)
    place[_HEAD.size : end] = data
    place[: _HEAD.size] = _HEAD.pack(zlib.crc32(data), len(data))


def read(place: bytes | memoryview) -> bytes | None:
    """What a place holds; None where that is nothing whole."""
    if len(place) < _HEAD.size:
        return None
    crc, length = _HEAD.unpack_from(place)
    data = bytes(place[_HEAD.size : _HEAD.size + length])
    if not length or len(data) != length or zlib.crc32(data) != crc:
        return None
    return data
