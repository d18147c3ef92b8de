"""Digests: which function, which hash, how many bytes.

Rule: pure values and their parsing; no I/O, no wire formats.  Everything above
treats the digest function as a value, so that adding one is a line in
`FUNCTIONS` and nothing else.  Everything stored may be of any of them; a client may name those
only that its server enables, which are a value too (`Functions`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from blake3 import blake3

from cas import sha256tree
from cas.errors import DataLoss, DigestMismatch, InvalidArgument

MAX_SIZE = 2**63 - 1
"""Largest size a digest can state: REAPI's size_bytes is an int64."""


class Hasher(Protocol):
    """What hashlib's objects and blake3's have in common."""

    def update(self, data: bytes | bytearray | memoryview, /) -> object: ...

    def digest(self) -> bytes: ...


class NewHasher(Protocol):
    """Makes a hasher that has seen nothing.

    `size`: how many bytes it is going to be given in pieces of `SEVERAL_THREADS` or more; for
    smaller pieces 0, whatever they add up to.
    """

    def __call__(self, size: int = 0, /) -> Hasher: ...


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
    new: NewHasher
    hash: Callable[[bytes | bytearray | memoryview], bytes]
    """The hash of bytes that are all there: `length` bytes."""
    in_names: bool
    """Whether resource names carry the function's name (REAPI: not for those whose hash
    length already tells)."""

    @property
    def code(self) -> int:
        """`prefix` as a number."""
        return self.prefix[0]


SEVERAL_THREADS = 256 << 10
"""Bytes in one piece from which BLAKE3 is hashed by one thread per core: sooner done by a third
there and by half from 4 MiB on, while smaller ones only cost more CPU."""


def _hashlib(name: str, number: int, code: int) -> Function:
    constructor: Callable[..., Any] = getattr(hashlib, name)

    def new(size: int = 0, /) -> Hasher:
        hasher: Hasher = constructor(usedforsecurity=False)
        return hasher

    def hash(data: bytes | bytearray | memoryview) -> bytes:
        raw: bytes = constructor(data, usedforsecurity=False).digest()
        return raw

    return Function(
        name, number, bytes((code,)), len(hash(b"")), new=new, hash=hash, in_names=False
    )


def _new_blake3(size: int = 0, /) -> Hasher:
    return blake3(max_threads=blake3.AUTO) if size >= SEVERAL_THREADS else blake3()


def _hash_blake3(data: bytes | bytearray | memoryview) -> bytes:
    if len(data) >= SEVERAL_THREADS:
        return blake3(data, max_threads=blake3.AUTO).digest()
    return blake3(data).digest()


def _new_sha256tree(size: int = 0, /) -> Hasher:
    return sha256tree.Sha256Tree()


SHA256 = _hashlib("sha256", 1, 1)
SHA1 = _hashlib("sha1", 2, 2)
MD5 = _hashlib("md5", 3, 3)
SHA384 = _hashlib("sha384", 5, 5)
SHA512 = _hashlib("sha512", 6, 6)
SHA256TREE = Function(
    "sha256tree", 8, b"\x08", 32, _new_sha256tree, sha256tree.hash_of, in_names=True
)
BLAKE3 = Function("blake3", 9, b"\x09", 32, _new_blake3, _hash_blake3, in_names=True)

FUNCTIONS: tuple[Function, ...] = (SHA256, BLAKE3, SHA1, SHA384, SHA512, MD5, SHA256TREE)
"""Every function that can be served, and that a store may hold."""

BY_CODE = {function.code: function for function in FUNCTIONS}
BY_NAME = {function.name: function for function in FUNCTIONS}


class Functions(NamedTuple):
    """A set of functions, as requests name them.  Made by `functions`."""

    all: tuple[Function, ...]
    """In the order in which capabilities list them."""
    by_number: Mapping[int, Function]
    by_hex_length: Mapping[int, Function]
    """REAPI: a function that names omit is told by the length of its hash."""

    def of_number(self, number: int) -> Function | None:
        """The function of a request: None where the client leaves it to the hash's length.

        Raises InvalidArgument where it is not served.
        """
        if number == 0:
            return None
        function = self.by_number.get(number)
        if function is None:
            name = f" ({_NAMES[number]})" if number in _NAMES else ""
            raise InvalidArgument(f"digest function {number}{name} is not served; expected {self}")
        return function

    def of_hash(self, hash_hex: str) -> Function:
        """The function whose hashes have this length, of those that names omit.

        Raises InvalidArgument.
        """
        function = self.by_hex_length.get(len(hash_hex))
        if function is None:
            raise InvalidArgument(
                f"hash {shorten(hash_hex)} has {len(hash_hex)} characters; expected {self.lengths} "
                "lowercase hex digits"
            )
        return function

    def of_name(self, name: str) -> Function | None:
        """The function of this name, one that resource names have to name; None where no function
        has it.

        Raises InvalidArgument where it is not served, or is left out of names.
        """
        function = BY_NAME.get(name)
        if function is None:
            return None
        if function not in self.all:
            raise InvalidArgument(f"digest function {name!r} is not served; expected {self}")
        if not function.in_names:
            raise InvalidArgument(f"digest function {name!r} is left out of names")
        return function

    @property
    def lengths(self) -> str:
        """For messages: how long hashes are."""
        return ", ".join(f"{2 * f.length} ({f.name}{', named' * f.in_names})" for f in self.all)

    def __str__(self) -> str:
        return ", ".join(f"{f.number} ({f.name})" for f in self.all)


def functions(enabled: Iterable[Function]) -> Functions:
    """The set of those that are `enabled`."""
    chosen = tuple(enabled)
    return Functions(
        chosen,
        {function.number: function for function in chosen},
        {2 * function.length: function for function in chosen if not function.in_names},
    )


# Those of REAPI that are not served by any means, too.
_NAMES = {f.number: f.name for f in FUNCTIONS} | {4: "vso", 7: "murmur3", 10: "gitsha1"}

KNOWN = functions(FUNCTIONS)
ENABLED = functions((SHA256, BLAKE3))
"""By default."""


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
    def prefix(self) -> bytes:
        """What `key` begins with whatever the size: the function's code and the hash."""
        key = self.key
        return key[: 1 + BY_CODE[key[0]].length]

    @property
    def hex(self) -> str:
        return self.hash.hex()

    def __str__(self) -> str:
        """As resource names have it behind ``blobs/``."""
        function = self.function
        named = f"{function.name}/" if function.in_names else ""
        return f"{named}{self.hex}/{self.size}"


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


def parse(
    hash_hex: str, size: int, function: Function | None = None, among: Functions = KNOWN
) -> Digest:
    """The digest that a client wrote as lowercase hex and a size.

    `function` None infers it from the hash's length (REAPI: servers should), `among` those.
    Raises InvalidArgument naming the value when the hash is not lowercase hex of
    a length that is enabled or the size is outside 0 … 2^63-1.
    """
    if function is None:
        function = among.of_hash(hash_hex)
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
