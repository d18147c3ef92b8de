"""Digests: which function, which hash, how many bytes.

Rule: pure values and their parsing; no I/O, no wire formats.  Everything above
treats the digest function as a value, so that adding one is a line in
`FUNCTIONS` and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from cas.errors import DataLoss, DigestMismatch, InvalidArgument

MAX_SIZE = 2**63 - 1
"""Largest size a digest can state: REAPI's size_bytes is an int64."""


class Hasher(Protocol):
    """What hashlib's objects and blake3's have in common."""

    def update(self, data: bytes | bytearray | memoryview, /) -> object: ...

    def digest(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Function:
    """A digest function: its REAPI name and number, and how to compute it.

    `prefix` is the byte that opens every key made with it; it is stored on disk and never
    reused.
    """

    name: str
    number: int
    prefix: bytes
    length: int
    new: Callable[[], Hasher]
    """A hasher that has seen nothing."""
    hash: Callable[[bytes | bytearray | memoryview], bytes]
    """The hash of bytes that are all there: `length` bytes."""
    in_names: bool
    """Whether resource names carry the function's name (REAPI: not for those whose hash
    length already tells)."""

    @property
    def code(self) -> int:
        """`prefix` as a number."""
        return self.prefix[0]


def _new_sha256() -> Hasher:
    return hashlib.sha256(usedforsecurity=False)


def _hash_sha256(data: bytes | bytearray | memoryview) -> bytes:
    return hashlib.sha256(data, usedforsecurity=False).digest()


SHA256 = Function("sha256", 1, b"\x01", 32, _new_sha256, _hash_sha256, in_names=False)

FUNCTIONS: tuple[Function, ...] = (SHA256,)
"""Every function that is served, in the order in which capabilities list them."""

BY_CODE = {function.code: function for function in FUNCTIONS}
BY_NAME = {function.name: function for function in FUNCTIONS}
BY_NUMBER = {function.number: function for function in FUNCTIONS}
BY_HEX_LENGTH = {2 * f.length: f for f in FUNCTIONS if not f.in_names}
"""REAPI: a function that names omit is told by the length of its hash."""


class Digest(NamedTuple):
    """A blob's identity.

    `key` is the whole of it in one byte string, as the index holds it: the function's
    code, the raw hash, and the size as a base-128 varint (the wire's own encoding of
    size_bytes; nothing for size 0).  So one lookup answers for hash and size together,
    and a digest with the right hash but another size is simply another key.
    """

    key: bytes
    size: int

    @property
    def function(self) -> Function:
        return BY_CODE[self.key[0]]

    @property
    def hash(self) -> bytes:
        return self.key[1 : 1 + self.function.length]

    @property
    def hex(self) -> str:
        return self.hash.hex()

    def __str__(self) -> str:
        return f"{self.hex}/{self.size}"


def make(function: Function, raw_hash: bytes, size: int) -> Digest:
    """The digest of `size` bytes that hash to `raw_hash`."""
    return Digest(function.prefix + raw_hash + varint(size), size)


def from_key(key: bytes) -> Digest:
    """The digest whose `key` this is; raises DataLoss when it is none."""
    function = BY_CODE.get(key[0]) if key else None
    if function is not None and len(key) > function.length:
        suffix = key[1 + function.length :]
        size = shift = 0
        for byte in suffix:
            size |= (byte & 0x7F) << shift
            shift += 7
        if varint(size) == suffix:
            return Digest(key, size)
    raise DataLoss(f"{key.hex()} is not a digest's key")


def varint(size: int) -> bytes:
    """`size` as the end of a key: base 128, low bits first, nothing for 0."""
    # Most blobs are small.
    if size < 0x80:
        return bytes((size,)) if size else b""
    if size < 0x4000:
        return bytes((size & 0x7F | 0x80, size >> 7))
    out = bytearray()
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out)


def of(data: bytes | bytearray | memoryview, function: Function = SHA256) -> Digest:
    """The digest of `data`."""
    return make(function, function.hash(data), len(data))


def parse(hash_hex: str, size: int, function: Function | None = None) -> Digest:
    """The digest that a client wrote as lowercase hex and a size.

    `function` None infers it from the hash's length (REAPI: servers should).
    Raises InvalidArgument naming the value when the hash is not lowercase hex of
    a known length or the size is outside 0 … 2^63-1.
    """
    if function is None:
        function = BY_HEX_LENGTH.get(len(hash_hex))
        if function is None:
            raise InvalidArgument(
                f"hash {shorten(hash_hex)} has {len(hash_hex)} characters; expected "
                + " or ".join(f"{2 * f.length} ({f.name})" for f in FUNCTIONS)
            )
    raw = raw_hash(hash_hex, function)
    if not 0 <= size <= MAX_SIZE:
        raise InvalidArgument(f"size {size} of blob {hash_hex} is not in 0 to {MAX_SIZE}")
    return make(function, raw, size)


def raw_hash(hash_hex: str, function: Function) -> bytes:
    """Decodes a lowercase hex hash of `function`; raises InvalidArgument."""
    try:
        raw = bytes.fromhex(hash_hex)
    except ValueError:
        raw = b""
    # fromhex takes capitals and skips white space: what comes back tells.
    if len(raw) != function.length or raw.hex() != hash_hex:
        raise InvalidArgument(
            f"hash {shorten(hash_hex)} is not {2 * function.length} lowercase hex digits "
            f"({function.name})"
        )
    return raw


def check_size(expected: Digest, received: int) -> None:
    """Raises InvalidArgument when `received` bytes are more than the digest's size."""
    if received > expected.size:
        raise InvalidArgument(
            f"{received} bytes were sent for blob {expected}, which has {expected.size}"
        )


def check(expected: Digest, hasher: Hasher, received: int) -> None:
    """Raises DigestMismatch unless `received` bytes hashed by `hasher` are `expected`."""
    actual = hasher.digest()
    if received != expected.size or actual != expected.hash:
        raise DigestMismatch(
            f"received {received} bytes with hash {actual.hex()}, expected {expected}"
        )


def verify(expected: Digest, data: bytes | bytearray | memoryview) -> None:
    """Raises DigestMismatch unless `data` has the digest that `expected.key` tells."""
    actual = of(data, BY_CODE[expected.key[0]])
    if actual.key != expected.key:
        raise DigestMismatch(
            f"received {len(data)} bytes with hash {actual.hex}, expected {from_key(expected.key)}"
        )


def empty(function: Function) -> Digest:
    """The digest of no bytes: REAPI wants it always present."""
    return make(function, function.hash(b""), 0)


def shorten(text: str, limit: int = 80) -> str:
    """`text` quoted for a message, cut so that a hostile value cannot flood a log."""
    return repr(text if len(text) <= limit else f"{text[:limit]}…")
