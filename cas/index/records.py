"""Index records, to bytes and back.

Rule: pure.  Every record opens with its version, so that a later release can read
what an earlier one wrote; a record that cannot be read raises DataLoss naming it.

Layouts (little-endian):

========  ==================================================================
record    version u8 · where u8 · written u32 (whole minutes since the epoch) ·
          serial u64 · generation u32 · stored size u64
action    version u8 · flags u8 · author length u16 · references u32 ·
          written at u64 (ms since the epoch) · author (UTF-8) ·
          referenced keys, each after its length u8 · ActionResult bytes
value     an action, whose last part is: length u8 and key of the content's
          digest · length u16 and metadata · the content, unless it is a blob:
          then that is the first of the referenced keys
========  ==================================================================
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cas.errors import DataLoss

VERSION = 1

INLINE = 0
"""`where`: a blob whose bytes are in the `data` table."""
FILE = 1
"""`where`: a blob whose bytes are in a file."""
ACTION = 2
"""`where`: an action result; its packed bytes are in the `data` table."""
VALUE = 3
"""`where`: a value under a key of a client's choice; packed as an action result is."""
PACKED = 4
"""`where`: a blob whose bytes are in a file, as zstd."""

PACKED_INLINE = 5
"""`where`: a blob whose bytes are in the `data` table, as one frame of zstd."""

IN_FILES = (FILE, PACKED)
BLOBS = (INLINE, PACKED_INLINE, *IN_FILES)

_RECORD = struct.Struct("<BBIQIQ")
# Where a packed record holds what need not be unpacked.
WHERE = 1
SERIAL = slice(6, 14)
STORED = slice(18, 26)
_SERIALS = struct.Struct("<6xQ12x")
RECORD_BYTES = _RECORD.size
_ACTION = struct.Struct("<BBHIQ")
_EXPANDED = 1
_META = struct.Struct("<H")

ACTION_PREFIX = b"\0"
VALUE_PREFIX = b"\xff"
"""What the keys of all action results and of all values open with; a blob's opens with its
function's code."""

MAX_KEY_BYTES = 511
"""LMDB's own limit, as it is compiled."""

MINUTE = 60.0
MAX_MINUTE = 2**32 - 1

_BYTE = [bytes((value,)) for value in range(256)]


class Record(NamedTuple):
    """What the `meta` table says of one key."""

    where: int
    """INLINE, FILE, ACTION, VALUE, PACKED or PACKED_INLINE."""
    written: int
    """Whole minutes since the epoch.  When it was used since is in `uses`."""
    serial: int
    """Its number in the order of writing, never used twice: its key in `data`."""
    generation: int
    """Part of the file's name; 0 when `where` is none of IN_FILES."""
    stored: int
    """Bytes that it takes on disk."""


class ActionRecord(NamedTuple):
    """An action result as it is stored."""

    written_at: int
    """Milliseconds since the epoch."""
    author: str
    """Who wrote it: principal and tool, as one line for people."""
    references: Sequence[bytes]
    """Keys of every blob that the result needs, those named by its trees included."""
    expanded: bool
    """Whether `references` covers the trees: false when one was absent at the time."""
    result: bytes
    """The ActionResult exactly as the client sent it."""


def pack_record(record: Record) -> bytes:
    return _RECORD.pack(VERSION, *record)


def unpack_record(raw: bytes) -> Record:
    try:
        version, *fields = _RECORD.unpack(raw)
    except struct.error:
        raise DataLoss(f"index record of {len(raw)} bytes, expected {_RECORD.size}") from None
    if version != VERSION or fields[0] > PACKED_INLINE:
        raise DataLoss(f"index record of version {version}, kind {fields[0]}; expected {VERSION}")
    return Record(*fields)


def serials(raws: Iterable[bytes]) -> list[int]:
    """The serials of packed records, at a tenth of a microsecond each."""
    joined = b"".join(raws)
    try:
        return [serial for (serial,) in _SERIALS.iter_unpack(joined)]
    except struct.error:
        raise DataLoss(
            f"index records of {len(joined)} bytes, expected a multiple of {RECORD_BYTES}"
        ) from None


def pack_action(record: ActionRecord) -> bytes:
    author = record.author.encode("utf-8", "replace")[:1024]
    references = record.references
    parts = [
        _ACTION.pack(
            VERSION,
            _EXPANDED if record.expanded else 0,
            len(author),
            len(references),
            max(0, record.written_at),
        ),
        author,
    ]
    for key in references:
        parts += (_BYTE[len(key)], key)
    parts.append(record.result)
    return b"".join(parts)


class PackedAction(NamedTuple):
    """An action record cut into what a cache hit needs, nothing decoded further."""

    references: list[bytes]
    expanded: bool
    result: bytes


def cut_action(raw: bytes) -> PackedAction:
    """The hot half of `unpack_action`: keys to look up and the bytes to answer."""
    try:
        version, flags, author_length, count, _ = _ACTION.unpack_from(raw)
        at = _ACTION.size + author_length
        references = []
        for _ in range(count):
            end = at + 1 + raw[at]
            references.append(raw[at + 1 : end])
            at = end
    except (struct.error, IndexError):
        raise DataLoss(f"action record of {len(raw)} bytes is cut short") from None
    if version != VERSION or at > len(raw):
        raise DataLoss(f"action record of version {version}, {len(raw)} bytes, is damaged")
    return PackedAction(references, bool(flags & _EXPANDED), raw[at:])


def unpack_action(raw: bytes) -> ActionRecord:
    references, expanded, result = cut_action(raw)
    _, _, author_length, _, written_at = _ACTION.unpack_from(raw)
    author = raw[_ACTION.size : _ACTION.size + author_length].decode("utf-8", "replace")
    return ActionRecord(written_at, author, references, expanded, result)


def action_key(instance: str, hash_key: bytes) -> bytes:
    """The `meta` key of an action result: its instance first, so that one can be walked.

    `hash_key` is a digest's function code and hash.  Function codes start at 1, so no
    blob's key opens with a zero byte; an instance name holds none, so it ends at one.
    """
    return ACTION_PREFIX + instance.encode() + b"\0" + hash_key


def split_action_key(key: bytes) -> tuple[str, bytes]:
    """The instance and the `hash_key` that an `action_key` was made of."""
    instance, _, hash_key = key[1:].partition(b"\0")
    return instance.decode(), hash_key


class ValueRecord(NamedTuple):
    """A value as it is stored."""

    written_at: int
    """Milliseconds since the epoch."""
    author: str
    digest: bytes
    """The key of its content's digest."""
    meta: bytes
    """What the client's protocol keeps beside the content, at most 64 KiB."""
    content: bytes | None
    """None where it is the blob that `digest` names."""
    references: Sequence[bytes] = ()
    """Keys of further blobs that it needs; none where it has its content."""


def pack_value(record: ValueRecord) -> bytes:
    written_at, author, digest, meta, content, more = record
    head = (_BYTE[len(digest)], digest, _META.pack(len(meta)), meta)
    references = (digest, *more) if content is None else ()
    rest = b"".join((*head, content or b""))
    return pack_action(ActionRecord(written_at, author, references, True, rest))


def cut_value(packed: PackedAction) -> tuple[bytes, bytes, bytes | None]:
    """Digest's key, metadata and content of a value, cut by `cut_action` before."""
    raw = packed.result
    try:
        at = 1 + raw[0]
        (length,) = _META.unpack_from(raw, at)
    except (struct.error, IndexError):
        raise DataLoss(f"value record of {len(raw)} bytes is cut short") from None
    start = at + _META.size
    end = start + length
    if end > len(raw):
        raise DataLoss(f"value record of {len(raw)} bytes is cut short")
    return raw[1:at], raw[start:end], None if packed.references else raw[end:]


def value_key(namespace: str, key: str) -> bytes:
    """The `meta` key of a value: its namespace first, so that one can be walked.

    No digest function has code 255.  What LMDB has no room for is known by its hash, which
    follows a second zero byte; neither argument holds one.
    """
    head = VALUE_PREFIX + namespace.encode() + b"\0"
    raw = key.encode()
    if len(head) + len(raw) > MAX_KEY_BYTES:
        raw = b"\0" + hashlib.blake2b(raw, digest_size=32).digest()
    return head + raw


def value_namespace(key: bytes) -> tuple[bytes, str]:
    """What the `meta` keys of all values of one namespace begin with, and its name, of one of
    them."""
    name, _, _ = key[1:].partition(b"\0")
    return VALUE_PREFIX + name + b"\0", name.decode()


def minutes(seconds: float) -> int:
    """A clock's seconds as the coarse time that records hold; whatever a clock may say, in the
    range of 32 bits."""
    return max(0, min(int(seconds // MINUTE), MAX_MINUTE))
