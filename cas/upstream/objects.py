"""What is asked of an object store, whichever it is.

Rule: the protocol, and its errors, which are a server's too; one request each, without patience:
time-outs, retries and the breaker are `trying`'s.  An object is visible whole or not at all, as
every object store promises; nothing else is relied on, neither the order of listings nor
conditional writes, which some stores refuse and some ignore.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import NamedTuple, Protocol


class UpstreamError(Exception):
    """Base: upstream, or the way to it, did not do what was asked."""


class Absent(UpstreamError):
    """There is no such thing: an answer, not a failure."""


class Broken(UpstreamError):
    """It failed in a way that may pass: no connection, 5xx, throttling, an end too early."""


class Refused(UpstreamError):
    """It will not do it, now or later: credentials, permissions, a malformed request."""


class Denied(Refused):
    """It will not do this one thing, and says nothing of others: it is not down."""


class Entry(NamedTuple):
    """An object of a listing."""

    key: str
    size: int
    """Bytes."""


class Aged(NamedTuple):
    """An object that was looked at."""

    size: int
    """Bytes."""
    age: float
    """Seconds since it was written, or renewed."""


class Object(Protocol):
    """An object that has begun to come."""

    @property
    def size(self) -> int:
        """Bytes of the whole object, whatever part was asked for."""

    @property
    def age(self) -> float:
        """Seconds since it was written, or renewed."""

    def pieces(self) -> AsyncIterator[bytes]:
        """The bytes asked for, in pieces as they come.  Raises Broken."""


class Objects(Protocol):
    """An object store.  Everything raises UpstreamError and nothing else."""

    def head(self, key: str, /) -> Awaitable[int]:
        """The object's size in bytes.  Raises Absent."""

    def get(self, key: str, start: int, end: int | None, /) -> Awaitable[Object]:
        """Bytes `start` to `end` (None: the last).  Raises Absent."""

    def put(self, key: str, data: bytes, /) -> Awaitable[None]:
        """Writes a whole object, in place of one that is there."""

    def put_parts(self, key: str, parts: AsyncIterator[bytes], /) -> Awaitable[None]:
        """Writes an object whose bytes come in parts; visible once the last one is there."""

    def copy(self, source: str, target: str, /) -> Awaitable[None]:
        """Copies within the store; onto itself it renews the object's age.  Raises Absent."""

    def delete(self, key: str, /) -> Awaitable[None]:
        """Nothing where there is none."""

    def list(self, prefix: str, /) -> AsyncIterator[Sequence[Entry]]:
        """The objects below `prefix`, in batches, in no order."""


class Aging(Objects, Protocol):
    """An object store that tells how old an object is."""

    def look(self, key: str, /) -> Awaitable[Aged]:
        """As `head`, with the age.  Raises Absent."""
