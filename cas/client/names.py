"""Digests as people write them, and as messages.

Rule: pure.
"""

from __future__ import annotations

import re

from cas.digest import MAX_SIZE, Digest, parse
from cas.errors import InvalidArgument
from cas.pb import remote_execution_pb2 as pb

_FORM = re.compile(r"(?:blobs/)?([0-9a-f]+)[/:-]([0-9]{1,19})", re.ASCII)


def parse_digest(text: str) -> Digest:
    """Reads ``HASH/SIZE`` (also with ``:`` or ``-``, and after ``blobs/``)."""
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise InvalidArgument(
            f"{text!r} is not a digest; expected HASH/SIZE: lowercase hex and the number of "
            "bytes, as push and put print it"
        )
    size = int(match[2])
    if size > MAX_SIZE:
        raise InvalidArgument(f"size {size} of {text!r} is larger than any blob's")
    return parse(match[1], size)


def message_of(digest: Digest) -> pb.Digest:
    return pb.Digest(hash=digest.hex, size_bytes=digest.size)


def digest_of(message: pb.Digest) -> Digest:
    return parse(message.hash, message.size_bytes)
