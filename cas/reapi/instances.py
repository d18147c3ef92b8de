"""Instance names: what one may be.

Rule: pure.  An instance is named by itself in REAPI's messages, and by a prefix in resource
names and in the paths of HTTP.
"""

from __future__ import annotations

from typing import Final

from cas.digest import shorten
from cas.errors import InvalidArgument

KEYWORDS: Final = frozenset(
    {
        "blobs",
        "uploads",
        "actions",
        "actionResults",
        "operations",
        "capabilities",
        "compressed-blobs",
    }
)
"""Segments that no instance name may hold, so that names can be read from the left."""

MAX_INSTANCE_BYTES: Final = 255

_NOT_IN_INSTANCES: Final = KEYWORDS | {"", ".", ".."}


def check_instance(name: str) -> str:
    """Returns `name` if it can be an instance name, or raises InvalidArgument.

    The empty name is one.  Others are segments joined by single slashes, none of them a
    keyword, `.` or `..`, no control characters, at most 255 bytes of UTF-8: what REAPI
    forbids, and what would be ambiguous in a resource name or unsafe in a path or a log.
    """
    if not name:
        return name
    if not _NOT_IN_INSTANCES.isdisjoint(name.split("/")):
        bad = next(s for s in name.split("/") if s in _NOT_IN_INSTANCES)
        raise InvalidArgument(
            f"instance name {shorten(name)} has a segment {bad!r}; expected segments that are "
            "neither empty, dots nor a keyword of resource names"
        )
    if len(name) > MAX_INSTANCE_BYTES or not (name.isascii() and name.isprintable()):
        check_text(f"instance name {shorten(name)}", name, MAX_INSTANCE_BYTES)
    return name


def namespace(kind: str, instance: str) -> str:
    """Of the values that a protocol, `kind`, keeps for an instance (`BlobStore.value`)."""
    return f"{kind}/{instance}"


def is_namespace_of(name: str, instance: str) -> bool:
    """Whether `namespace` made `name` for this instance, and any protocol."""
    return name.partition("/")[2] == instance


def check_text(what: str, text: str, limit: int) -> None:
    """Raises InvalidArgument unless `text` is at most `limit` bytes of UTF-8 without control
    characters; `what` names it."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(f"{what} is not valid Unicode") from None
    if size > limit:
        raise InvalidArgument(f"{what} has {size} bytes; expected at most {limit}")
    if any(c < " " or "\x7f" <= c <= "\x9f" for c in text):
        raise InvalidArgument(f"{what} holds a control character")
