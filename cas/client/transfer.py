"""The parts of a transfer: pieces of an upload, a download's way to its sink, groups for batches.

Rule: what one transfer needs for itself; which requests are made is `cas.client.client`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from cas import digest as digests
from cas.client.compress import Compressed, Decompressor
from cas.client.source import PIECE, Reader
from cas.digest import Digest, Hasher

T = TypeVar("T")

BATCH_BYTES = (4 << 20) - (64 << 10)
BATCH_BLOBS = 1000
"""Of one batch, if the remote allows as much."""

DIGEST_BYTES = 128
"""What a blob costs in a message besides its bytes, generously."""

Moved = Callable[[int], object]
"""Told how many bytes of content came further, as they do."""

Take = Callable[[list[tuple[Digest, bytes]]], Awaitable[None]]
"""Takes some blobs, whole and verified."""

Sink = Callable[[bytes | memoryview], object]
"""Takes a blob's bytes in order; called on a helper thread."""

Run = Callable[..., Awaitable[Any]]
"""Runs what blocks on a helper thread."""


@dataclass(slots=True)
class Tally:
    """What a client has done so far, to be read at any time.

    `sent_bytes` were handed to the network, repeats included and compressed where they were;
    `got_bytes` are of content.
    """

    sent_blobs: int = 0
    sent_bytes: int = 0
    got_blobs: int = 0
    got_bytes: int = 0
    retries: int = 0


class Told:
    """Tells of a blob's bytes once each, however often they are sent."""

    def __init__(self, moved: Moved) -> None:
        self._moved = moved
        self._reached = 0

    def reach(self, offset: int) -> None:
        if offset > self._reached:
            self._moved(offset - self._reached)
            self._reached = offset


class Pieces:
    """An upload's pieces, each read while the one before it is sent."""

    def __init__(
        self,
        run: Run,
        tally: Tally,
        read: Reader,
        digest: Digest,
        zstd: bool,
        offset: int,
        told: Told,
    ) -> None:
        self._run = run
        self._tally = tally
        self._size = digest.size
        self._read = read
        self._next = (
            Compressed(read, digest.size, offset, self._reach).next if zstd else self._plain
        )
        self._at = offset
        self._told = told
        self._reading: asyncio.Future[bytes] | None = None

    def _reach(self, offset: int) -> None:
        self._at = offset

    def _plain(self) -> bytes:
        # Exactly as many bytes as the digest says, also where the file has grown.
        piece = self._read(self._at, min(PIECE, self._size - self._at))
        self._at += len(piece)
        return piece

    async def pull(self) -> bytes:
        reading = self._reading or self._read_next()
        # Whoever pulls may be cancelled, as aiohttp does once the answer is there; a thread that
        # reads cannot be, and `close` waits for it.
        piece = await asyncio.shield(reading)
        # What was read before this piece has been sent.
        self._told.reach(self._at - len(piece))
        self._reading = None
        if piece:
            self._read_next()
        self._tally.sent_bytes += len(piece)
        return piece

    def _read_next(self) -> asyncio.Future[bytes]:
        self._reading = asyncio.ensure_future(self._run(self._next))
        return self._reading

    async def close(self) -> None:
        """Waits for a read under way: its file is about to be closed."""
        if self._reading is not None:
            await asyncio.wait([self._reading])
            if not self._reading.cancelled():
                self._reading.exception()  # Of no interest: nobody wants the piece.


class Drain:
    """Takes a download's pieces together into larger ones for a helper thread."""

    def __init__(
        self,
        run: Run,
        tally: Tally,
        digest: Digest,
        received: int,
        hasher: Hasher,
        sink: Sink,
        moved: Moved,
    ) -> None:
        self.received = received
        self._run = run
        self._tally = tally
        self._digest = digest
        self._hasher = hasher
        self._sink = sink
        self._moved = moved
        self._zstd: Decompressor | None = None
        self._waiting: list[bytes | memoryview] = []
        self._size = 0

    async def add(self, piece: bytes | memoryview, zstd: bool) -> None:
        if zstd and self._zstd is None:
            self._zstd = Decompressor(self._digest.size - self.received)
        self._waiting.append(piece)
        self._size += len(piece)
        if self._size >= PIECE:
            await self.flush()

    async def flush(self) -> None:
        if not self._waiting:
            return
        waiting, self._waiting, self._size = self._waiting, [], 0
        before = self.received
        await self._run(self._take, waiting)
        self._tally.got_bytes += self.received - before
        self._moved(self.received - before)

    def _take(self, pieces: list[bytes | memoryview]) -> None:
        for piece in pieces:
            for data in self._zstd.feed(piece) if self._zstd else (piece,):
                digests.check_size(self._digest, self.received + len(data))
                self._hasher.update(data)
                self._sink(data)
                self.received += len(data)


def batches(items: Sequence[T], size: Callable[[T], int], limit: int) -> list[list[T]]:
    """Groups of at most `limit` bytes, overhead included, and `BATCH_BLOBS`."""
    groups: list[list[T]] = []
    total = limit
    for item in items:
        cost = size(item) + DIGEST_BYTES
        if total + cost > limit or len(groups[-1]) >= BATCH_BLOBS:
            groups.append([])
            total = 0
        groups[-1].append(item)
        total += cost
    return groups


async def together(work: Iterable[Awaitable[T]]) -> list[T]:
    """All results; the first failure ends the rest, and is raised as it is."""
    async with tasks() as group:
        begun = [group.create_task(_awaited(one)) for one in work]
    return [task.result() for task in begun]


@asynccontextmanager
async def tasks() -> AsyncIterator[asyncio.TaskGroup]:
    """A group of tasks; the first failure, also the block's, ends the rest, and is raised as it
    is."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _awaited(work: Awaitable[T]) -> T:
    return await work
