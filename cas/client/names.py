"""Digests as people write them, and as messages.

Rule: pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TypeVar

from cas.digest import BY_NAME, FUNCTIONS, MAX_SIZE, Digest, Function, parse
from cas.errors import InvalidArgument
from cas.pb import remote_execution_pb2 as pb

T = TypeVar("T")

_FORM = re.compile(r"(?:blobs/)?(?:([a-z0-9]+)/)?([0-9a-f]+)[/:-]([0-9]{1,19})", re.ASCII)


def parse_digest(text: str) -> Digest:
    """Reads ``HASH/SIZE`` (also with ``:`` or ``-``, and after ``blobs/``), as resource names have
    it: behind the name of its function and a slash where the hash's length does not tell."""
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise InvalidArgument(
            f"{text!r} is not a digest; expected HASH/SIZE: lowercase hex and the number of "
            "bytes, as push and put print it"
        )
    size = int(match[3])
    if size > MAX_SIZE:
        raise InvalidArgument(f"size {size} of {text!r} is larger than any blob's")
    return parse(match[2], size, function_of(match[1]) if match[1] else None)


def function_of(name: str) -> Function:
    """The digest function of this name; raises InvalidArgument."""
    function = BY_NAME.get(name)
    if function is None:
        known = ", ".join(function.name for function in FUNCTIONS)
        raise InvalidArgument(f"{name!r} is no digest function; expected one of: {known}")
    return function


def by_function(things: Iterable[T], digest: Callable[[T], Digest]) -> list[list[T]]:
    """In lists whose digests are of one function: a request names one."""
    alike: dict[int, list[T]] = {}
    for thing in things:
        alike.setdefault(digest(thing).key[0], []).append(thing)
    return list(alike.values())


def message_of(digest: Digest) -> pb.Digest:
    return pb.Digest(hash=digest.hex, size_bytes=digest.size)


def digest_of(message: pb.Digest, function: Function | None = None) -> Digest:
    """Of that function; of the one that the hash's length tells where there is none."""
    return parse(message.hash, message.size_bytes, function)
