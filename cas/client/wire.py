"""What a connection to a remote can do: the contract of `overgrpc` and `overhttp`.

Rule: one request or one stream each; no retries, no choice between batch and stream, no
verification: those are the client's (`cas.client.client`), once for both.  Everything that
fails is an exception of `cas.errors` or `cas.client.errors`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from cas.digest import Digest
from cas.errors import CasError
from cas.pb import remote_execution_pb2 as pb

Pull = Callable[[], Awaitable[bytes]]
"""The next piece of an upload; empty at its end."""

Piece = tuple[bytes | memoryview, bool]
"""Bytes of a download, and whether they are zstd: of one download all are, or none."""


class Parcel(NamedTuple):
    """A blob of a batch; `data` is one frame of zstd where `zstd` says so, else its bytes."""

    digest: Digest
    data: bytes
    zstd: bool = False


@dataclass(frozen=True, slots=True)
class Offer:
    """What a remote says it can do.

    `batch`: most blob bytes of one batch, 0 where there are no batches.  `zstd` for streams
    and for batches that are read, `zstd_batch` for blobs in batches that are sent.  `largest`:
    most bytes of a blob, 0 when it names no limit.
    """

    batch: int = 0
    zstd: bool = False
    zstd_batch: bool = False
    largest: int = 0
    writes_actions: bool = True
    functions: tuple[int, ...] = ()
    api: str = ""


class Wire(Protocol):
    """A connection."""

    resumes: bool
    """Whether uploads can go on where they broke."""

    async def offer(self) -> Offer: ...

    async def find_missing(self, digests: Sequence[Digest]) -> list[Digest]:
        """Those that are absent."""
        ...

    async def write_many(self, parcels: Sequence[Parcel]) -> list[CasError | None]:
        """One answer a blob, in order."""
        ...

    async def read_many(self, digests: Sequence[Digest], zstd: bool) -> list[Parcel | CasError]:
        """One answer a digest, in order, as zstd only if `zstd`; nothing is verified."""
        ...

    def read(self, digest: Digest, offset: int, zstd: bool) -> AsyncGenerator[Piece, None]:
        """The blob from `offset` on; with `zstd` it may come as a stream of frames, `offset`
        counting bytes before compression."""
        ...

    def upload_name(self, digest: Digest, zstd: bool) -> str:
        """A new name to upload under."""
        ...

    async def write(self, digest: Digest, name: str, offset: int, pull: Pull, zstd: bool) -> int:
        """Sends what `pull` gives of the blob from `offset` on; the size that the remote says
        it has then.  May return early when the blob turns out to be there."""
        ...

    async def committed(self, name: str) -> int:
        """How much of an upload's content the remote holds; 0 when it knows nothing of it."""
        ...

    async def get_action(self, action: Digest) -> pb.ActionResult | None: ...

    async def put_action(self, action: Digest, result: pb.ActionResult) -> None: ...

    async def clock(self) -> float | None:
        """The remote's time in seconds since 1970, where it tells."""
        ...

    async def status(self) -> dict[str, Any] | None:
        """What our server says of itself at /status; None where nobody tells."""
        ...

    async def close(self) -> None: ...
