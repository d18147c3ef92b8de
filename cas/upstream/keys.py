"""Where things are in an object store: the layout, version 1.

Rule: pure; the only module that knows a key's form.  docs/upstream.md documents it for
people with other tools.  A change of any form needs another version, beside this one.

The kind comes first, so that a bucket's lifecycle rules, which know prefixes only, can tell
blobs from action results; the hash comes before anything else that varies, and in hex, which
is how object stores spread the load of one prefix.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from cas.digest import BY_NAME, Function, raw_hash
from cas.errors import InvalidArgument

VERSION: Final = "v1"

BLOBS: Final = f"{VERSION}/cas"
ACTIONS: Final = f"{VERSION}/ac"
QUARANTINE: Final = f"{VERSION}/quarantine"

NO_INSTANCE: Final = "="
"""The instance whose name is empty: no other escapes to a lone `=`."""

# Those that every object store, and every shell, takes as they are.
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
_ESCAPED = re.compile(r"(?:[A-Za-z0-9_-]|=[0-9A-F]{2})+")


class Place(NamedTuple):
    """What a key tells."""

    prefix: bytes
    """The function's code and the hash."""
    instance: str | None
    """Of an action result; None for a blob."""


def blob(prefix: bytes, function: Function) -> str:
    """The key of a blob: ``v1/cas/sha256/ab/abcd…``.  `prefix` is the function's code and the
    hash.  The size is the object's own: HTTP caches name no other."""
    return f"{BLOBS}/{_hashed(prefix, function)}"


def action(instance: str, prefix: bytes, function: Function) -> str:
    """The key of an action result: ``v1/ac/main/sha256/ab/abcd…``."""
    return f"{ACTIONS}/{escape(instance)}/{_hashed(prefix, function)}"


def quarantined(key: str, stamp: str) -> str:
    """Where an object goes that failed verification; `stamp` keeps two of one key apart."""
    return f"{QUARANTINE}/{key.removeprefix(VERSION + '/')}.{stamp}"


def parse(key: str) -> Place | None:
    """What `key` names; None where it is none of this layout's blobs or action results."""
    head, *parts = key.split("/")
    if head != VERSION or not parts:
        return None
    kind, *rest = parts
    instance = None
    if kind == "ac" and len(rest) == 4:
        instance = _unescape(rest.pop(0))
        if instance is None:
            return None
    elif kind != "cas":
        return None
    if len(rest) != 3:
        return None
    name, shard, hex_hash = rest
    function = BY_NAME.get(name)
    if function is None or shard != hex_hash[:2]:
        return None
    try:
        return Place(function.prefix + raw_hash(hex_hash, function), instance)
    except InvalidArgument:
        return None


def escape(instance: str) -> str:
    """An instance's name as one segment: each byte of its UTF-8 that is no letter, digit, `-` or
    `_` as ``=2F``."""
    if not instance:
        return NO_INSTANCE
    return "".join(chr(b) if b in _PLAIN else f"={b:02X}" for b in instance.encode())


def _unescape(segment: str) -> str | None:
    if segment == NO_INSTANCE:
        return ""
    if not _ESCAPED.fullmatch(segment):
        return None
    raw = re.sub(rb"=(..)", lambda m: bytes.fromhex(m[1].decode()), segment.encode())
    try:
        found = raw.decode()
    except UnicodeDecodeError:
        return None
    return found if escape(found) == segment else None


def _hashed(prefix: bytes, function: Function) -> str:
    hex_hash = prefix[1:].hex()
    return f"{function.name}/{hex_hash[:2]}/{hex_hash}"
