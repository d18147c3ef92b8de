"""A blob that is hashed and staged while those who wait for it read it already.

Rule: runs on the loop; no reader waits for the disk.  Pieces are readable when they come; they are
hashed, and staged, on threads of their own, all that came meanwhile in one go, and stay in memory
until they are in the file.  What comes is held up once too much waits for the disk.  The last
piece is readable once the hash was found to be right.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from cas import digest as digests
from cas.store.pending import Pending
from cas.store.uploads import LocalUpload
from cas.upstream.flights import Flight, Source
from cas.upstream.loop import Loop

UNSTAGED = 8 << 20
"""Bytes of one blob that may wait for the disk, in memory."""
STEP = 1 << 20
"""What an upload gathers: written so, all but a blob's end goes past the system's cache."""


class Landing:
    """One blob's."""

    def __init__(self, loop: Loop, flight: Flight, upload: LocalUpload, source: Source) -> None:
        """`source` is where `upload` puts its bytes."""
        self._loop = loop
        self._flight = flight
        self._upload = upload
        self._source: Source | None = source
        # What an earlier process left off may have been readable up to there.
        self._readable = flight.readable
        self._hasher = flight.digest.function.new(flight.digest.size)
        upload.hashed_by(self._hasher)
        self._hashing = _Worker(loop, self._hash)
        self._staging = _Worker(loop, self._stage, self._staged)
        self._uses = threading.Lock()
        self._discarded = False

    async def take(self, offset: int, piece: memoryview) -> None:
        """The next piece has come.  Raises what staging it fails with."""
        size = self._flight.digest.size
        end = offset + len(piece)
        self._flight.add(offset, piece, end if end < size else offset)
        self._hashing.add(piece)
        self._staging.add(piece)
        await self._hashing.at_most(UNSTAGED)
        await self._staging.at_most(UNSTAGED)

    async def verify(self) -> None:
        """All of it has come: the rest is readable, if it is right.  Raises DigestMismatch."""
        await self._hashing.at_most(0)
        digest = self._flight.digest
        digests.check(digest, self._hasher, self._hashing.done)
        self._flight.advance(digest.size)

    async def finish(self) -> Pending[None]:
        """See `interface.Upload.finish`; after `verify`."""
        await self._staging.at_most(0)
        pending = await self._loop.offload(self._finish)
        self._lies_there()
        return pending

    async def discard(self) -> None:
        """What is readable stays so, from what there is by now."""
        self._hashing.stop()
        self._staging.stop()
        source, self._source, self._discarded = self._source, None, True
        await self._loop.offload(self._discard, source)

    def _hash(self, pieces: list[memoryview]) -> None:
        for piece in pieces:
            self._hasher.update(piece)

    def _stage(self, pieces: list[memoryview]) -> None:
        upload = self._upload
        with self._uses:
            for piece in pieces:
                data = piece
                while data:
                    room = STEP - upload.offset % STEP
                    if upload.append(data[:room]):
                        upload.flush()
                    data = data[room:]

    def _staged(self) -> None:
        if self._discarded:
            return
        if self._upload.flushed > self._readable:
            self._lies_there()
        self._flight.settle(self._upload.flushed)

    def _lies_there(self) -> None:
        if self._source is not None:
            self._flight.lies_in(self._source)
            self._source = None

    def _finish(self) -> Pending[None]:
        with self._uses:
            return self._upload.finish()

    def _discard(self, source: Source | None) -> None:
        # Whoever gave up has not waited for what runs.
        with self._uses:
            self._upload.discard()
        if source is not None:
            source.close()


class _Worker:
    """Does something to all pieces in their order, off the loop."""

    def __init__(
        self,
        loop: Loop,
        work: Callable[[list[memoryview]], None],
        after: Callable[[], None] = lambda: None,
    ) -> None:
        self._loop = loop
        self._work = work
        self._after = after
        self._waiting: list[memoryview] = []
        self._behind = 0
        self._runs = False
        self._moved = asyncio.Event()
        self._error: Exception | None = None
        self.done = 0
        """Bytes."""

    def add(self, piece: memoryview) -> None:
        self._waiting.append(piece)
        self._behind += len(piece)
        if not self._runs and self._error is None:
            self._runs = True
            self._loop.spawn(self._run())

    async def at_most(self, behind: int) -> None:
        """Waits until no more than so many bytes wait.  Raises what the work raised."""
        while self._error is None and self._behind > behind:
            self._moved.clear()
            await self._moved.wait()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        self._waiting.clear()

    async def _run(self) -> None:
        try:
            while self._waiting:
                pieces, self._waiting = self._waiting, []
                await self._loop.offload(self._work, pieces)
                count = sum(map(len, pieces))
                self._behind -= count
                self.done += count
                self._after()
                self._moved.set()
        except Exception as error:  # noqa: BLE001 - whoever waits gets it, whatever it is
            self._error = error
            self._moved.set()
        finally:
            self._runs = False
