"""What is asked of upstream, whatever it is: an object store, or another server of REAPI.

Rule: the protocol between who knows what is to be done (`existence`, `fetching`, `sending`,
`results`) and who knows how it is asked for: `objectholder`, `serverholder`.  Patience is
`trying`'s in both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol

from cas.digest import Digest
from cas.upstream.trying import Trying

Parts = Callable[[int], AsyncIterator[bytes]]
"""A blob's bytes from an offset on; may be asked for again."""


class Holder(Protocol):
    """Runs on one loop.  Everything raises Unavailable where nothing is heard of upstream, and of
    `objects.UpstreamError` only Absent, where that is said."""

    @property
    def trying(self) -> Trying: ...

    @property
    def one_by_one(self) -> bool:
        """Whether it is asked of each blob by itself, so that looking for a small one costs as
        much as fetching it."""

    def name(self, digest: Digest, /) -> str:
        """What a blob is called there, for people."""

    def takes(self, digest: Digest, /) -> Awaitable[bool]:
        """Whether such a blob, or an action result under such a digest, can be kept there."""

    def has(self, digest: Digest, /) -> Awaitable[bool]: ...

    def present(self, digests: Sequence[Digest], /) -> Awaitable[dict[bytes, bool]]:
        """As `has` for many, by key; those that nobody could tell of are left out."""

    def find(self, prefix: bytes, /) -> Awaitable[Digest | None]:
        """See `interface.BlobStore.find`; None too where upstream cannot tell."""

    def coming(self, digest: Digest, start: int, /) -> Awaitable[tuple[int, AsyncIterator[bytes]]]:
        """The size there, and the bytes from `start` on, which may end in Broken: whoever took some
        goes on from there.  Raises Absent."""

    def part(self, digest: Digest, start: int, end: int, /) -> Awaitable[bytes]:
        """Bytes `start` to `end`.  Raises Absent."""

    def put(self, digest: Digest, data: bytes, /) -> Awaitable[None]: ...

    def put_parts(self, digest: Digest, parts: Parts, /) -> Awaitable[None]: ...

    def action(self, instance: str, digest: Digest, most: int, /) -> Awaitable[bytes | None]:
        """The ActionResult's bytes; None where there are more than `most`.  Raises Absent."""

    def put_action(self, instance: str, digest: Digest, result: bytes, /) -> Awaitable[None]: ...

    def condemn(self, digest: Digest, /) -> Awaitable[None]:
        """What is there is not what its name says: has it be absent from now on."""

    def close(self) -> Awaitable[None]: ...
