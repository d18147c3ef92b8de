"""Blobs that come from upstream.

Rule: a blob is fetched once however many ask: one flight for each digest in a process, one process
of a node at a time by `claims`; the others follow what it stages.  Nothing here names a blob
locally but the local store's own verified ways in.  Runs on the loop, so that nothing but `Flight`
is guarded; other threads look at what there is, and no more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from functools import partial

from cas import digest as digests
from cas.digest import Digest
from cas.errors import (
    CasError,
    DataLoss,
    DigestMismatch,
    NotFound,
    Unavailable,
    UploadSuperseded,
)
from cas.store.coming import Staging
from cas.store.interface import Blob
from cas.store.local import LocalStore
from cas.store.pending import Pending
from cas.store.room import in_room, short_of
from cas.store.uploads import LocalUpload
from cas.upstream.checking import check
from cas.upstream.claims import Claims
from cas.upstream.counts import Counts
from cas.upstream.existence import Existence
from cas.upstream.flights import ComingBlob, Flight
from cas.upstream.holder import Holder
from cas.upstream.landing import Landing
from cas.upstream.loop import Loop, brought
from cas.upstream.objects import Absent, Broken

WHOLE = 1 << 20
"""Blobs up to this size, bytes, come in one request and are not staged."""
STREAMS = 16
"""Blobs that come at once in one process: each holds `flights.WINDOW` pieces.  But …"""
SMALL = 64 << 10
"""… up to this size, bytes, …"""
SMALL_STREAMS = 256
"""… so many come at once: they may come together."""
BROUGHT = 64 << 10
"""Blobs up to this size, which an action result names, are fetched where others are looked for:
that costs as much as to look, and who asked for it is about to read them."""
LOOK_SECONDS = 0.01
"""Between two looks at what another process stages."""
HELD_BACK = 1 << 20
"""Bytes of it that nobody is given before that process has found the blob to be right."""

log = logging.getLogger("cas.upstream")


class Fetching:
    """One process's."""

    def __init__(
        self, local: LocalStore, loop: Loop, holder: Holder, existence: Existence, counts: Counts
    ) -> None:
        self._local = local
        self._loop = loop
        self._holder = holder
        self._existence = existence
        self._counts = counts
        self._claims = Claims(*local.claims())
        self._flights: dict[bytes, Flight] = {}
        self._by_prefix: dict[bytes, Flight] = {}
        self._at_once = asyncio.Semaphore(STREAMS)
        self._small_at_once = asyncio.Semaphore(SMALL_STREAMS)

    def close(self) -> None:
        """Once the loop has ended."""
        self._claims.close()

    def begun(self, digest: Digest) -> Blob | None:
        """A blob that has begun to come; None where `open` is to be asked.  From any thread: who
        was told of it a moment ago, and reads it now, need not wait for the loop."""
        flight = self._flights.get(digest.key)
        return ComingBlob(flight, self._part) if flight and flight.has_begun else None

    def named(self, prefix: bytes) -> Digest | None:
        """The blob that has begun to come and whose key begins so.  From any thread."""
        flight = self._by_prefix.get(prefix)
        return flight.digest if flight and flight.has_begun else None

    async def open(self, digest: Digest) -> Blob:
        """See `interface.Beyond.open`."""
        if self._local.contains(digest):
            # It came since it was looked for.
            with suppress(NotFound):
                return await self._loop.offload(self._local.open, digest)
        flight = self._flight(digest)
        await brought(flight.began)
        return ComingBlob(flight, self._part)

    async def begin(self, digests: Iterable[Digest]) -> None:
        """Has blobs fetched for whoever asks for them next."""
        for digest in digests:
            self._flight(digest)

    async def tell(self, key: bytes) -> bool:
        """Whether fetching the blob told if upstream has it."""
        digest = digests.from_key(key)
        if digest.size > BROUGHT:
            return False
        try:
            await brought(self._flight(digest).began)
        except (NotFound, DataLoss, Unavailable):
            return True
        except (CasError, OSError):
            # It may be there, though it does not come.
            return False
        self._existence.memory.add(key)
        return True

    def _part(self, digest: Digest, start: int, end: int) -> Pending[bytes]:
        async def fetch() -> bytes:
            try:
                part = await self._holder.part(digest, start, end)
            except Absent:
                raise DataLoss(f"blob {digest} is gone from upstream") from None
            self._counts.received.add(len(part))
            return part

        return self._loop.run(fetch)

    # --- flights ------------------------------------------------------------------------

    def _flight(self, digest: Digest) -> Flight:
        flight = self._flights.get(digest.key)
        if flight is None:
            flight = self._flights[digest.key] = self._by_prefix[digest.prefix] = Flight(digest)
            self._loop.spawn(self._fly(flight))
        return flight

    async def _fly(self, flight: Flight) -> None:
        digest = flight.digest
        try:
            while not self._claims.take(digest):
                if await self._follow(flight):
                    return
            try:
                if not await self._is_here(flight):
                    await self._fetch(flight)
            finally:
                self._claims.release(digest)
        except asyncio.CancelledError:
            flight.fail(Unavailable("the server stops"))
            raise
        except Exception as error:  # noqa: BLE001 - whoever waits gets it, whatever it is
            flight.fail(error)
        finally:
            del self._flights[digest.key]
            if self._by_prefix.get(digest.prefix) is flight:
                del self._by_prefix[digest.prefix]

    async def _is_here(self, flight: Flight) -> bool:
        """Whether the blob came by other ways; if so, the flight has ended."""
        if not self._local.contains(flight.digest):
            return False
        try:
            blob = await self._loop.offload(self._local.open, flight.digest)
        except NotFound:
            return False
        flight.lies_in(blob)
        flight.begin()
        flight.advance(flight.digest.size)
        return True

    async def _follow(self, flight: Flight) -> bool:
        """Another process fetches it: takes what that has staged.  Whether it is here now."""
        if await self._is_here(flight):
            return True
        if not flight.has_source:
            staged = await self._loop.offload(self._local.staged, _upload_name(flight.digest))
            if staged is not None:
                flight.lies_in(staged)
                self._loop.spawn(self._watch(flight, staged))
        await asyncio.sleep(LOOK_SECONDS)
        return False

    async def _watch(self, flight: Flight, staged: Staging) -> None:
        """Tells the flight what is in the file, until it has ended."""
        while self._flights.get(flight.digest.key) is flight:
            if staged.size > HELD_BACK:
                flight.begin()
                flight.advance(min(staged.size, flight.digest.size) - HELD_BACK)
            await asyncio.sleep(LOOK_SECONDS)

    async def _fetch(self, flight: Flight) -> None:
        digest = flight.digest
        small = digest.size <= SMALL
        async with self._small_at_once if small else self._at_once:
            try:
                size, pieces = await self._holder.coming(digest, 0)
            except Absent:
                await self._existence.unlearn(digest.key)
                raise NotFound(f"blob {digest} is neither here nor upstream") from None
            except DataLoss:
                await self._existence.unlearn(digest.key)
                raise
            if size != digest.size:
                await self._examine(digest)
            fetch = self._fetch_whole if size <= WHOLE else self._fetch_staged
            pending = await fetch(flight, pieces)
            self._existence.learn(digest.key)
            self._counts.fetched.add()
            await self._committed(digest, pending)

    async def _fetch_whole(self, flight: Flight, pieces: AsyncIterator[bytes]) -> Pending[None]:
        digest = flight.digest
        data = b"".join([piece async for _, piece in self._resumed(digest, pieces)])
        put = partial(self._local.put, [(digest, data)], fetched=True)
        # Hashed in less time than another thread takes to wake.
        at_once = digest.size <= min(SMALL, self._local.inline_threshold)

        async def write() -> Pending[None]:
            [pending] = put() if at_once else await self._loop.offload(put)
            if short_of(pending):
                pending.result()
            return pending

        pending = await in_room(self._local, brought, digest.size, write)
        try:
            # Fails at once if it is not what it should be.
            if pending.done:
                pending.result()
        except DigestMismatch:
            await self._examine(digest)
        flight.add(0, memoryview(data), digest.size)
        flight.begin()
        return pending

    async def _fetch_staged(self, flight: Flight, pieces: AsyncIterator[bytes]) -> Pending[None]:
        digest = flight.digest
        begun = await in_room(
            self._local, brought, digest.size, lambda: self._loop.offload(self._begin, digest)
        )
        landing = Landing(self._loop, flight, *begun)
        flight.begin()
        try:
            async for offset, piece in self._resumed(digest, pieces):
                await landing.take(offset, memoryview(piece))
            try:
                await landing.verify()
            except DigestMismatch:
                await self._examine(digest)
                raise
            pending = await landing.finish()
        except BaseException:
            await asyncio.shield(landing.discard())
            raise
        return pending

    async def _resumed(
        self, digest: Digest, pieces: AsyncIterator[bytes]
    ) -> AsyncIterator[tuple[int, bytes]]:
        """All the pieces with their offsets, whatever breaks on the way; as many bytes as the
        digest says."""
        offset = attempt = 0
        while True:
            try:
                async for piece in pieces:
                    self._counts.received.add(len(piece))
                    yield offset, piece
                    offset += len(piece)
                    attempt = 0
                if offset == digest.size:
                    return
                error = Broken(f"blob {digest} ended at byte {offset}, of {digest.size}")
            except Broken as broken:
                error = broken
            await self._holder.trying.retry(attempt, error)
            attempt += 1
            try:
                size, pieces = await self._holder.coming(digest, offset)
            except Absent:
                raise DataLoss(f"blob {digest} is gone from upstream") from None
            if size != digest.size:
                raise DataLoss(f"blob {digest} was replaced upstream while it came")

    async def _committed(self, digest: Digest, pending: Pending[None]) -> None:
        try:
            await brought(pending)
        except (CasError, OSError) as error:
            # Readers have all of it; the next ones fetch it again.
            log.warning(
                "a blob from upstream could not be kept",
                extra={"digest": str(digest), "error": str(error)},
            )

    def _begin(self, digest: Digest) -> tuple[LocalUpload, Staging]:
        name = _upload_name(digest)
        left = self._local.committed_size(name)
        if left is not None:
            # Of a process that died.  Not gone on with: what is wrong would then be nobody's.
            self._local.upload(name, digest, left, b"").discard()
        upload = self._local.upload(name, digest, 0, b"")
        upload.fetched = True
        staged = self._local.staged(name)
        if staged is None:
            upload.discard()
            raise UploadSuperseded(f"the staged upload of {digest} has gone")
        return upload, staged

    # --- damage --------------------------------------------------------------------------

    async def _examine(self, digest: Digest) -> None:
        """Says what is wrong with what is not this blob; raises in any case.

        It is read once more, and hashed whatever its size: a digest with a wrong size must not
        condemn what is right, nor must a byte that was lost on the way.
        """
        name = self._holder.name(digest)
        opening = partial(self._holder.coming, digest, 0)
        try:
            found = await check(name, opening, digest.function, digest.hash, digest.size)
        except Absent:
            raise NotFound(f"blob {digest} is neither here nor upstream") from None
        if found.is_right and found.size != digest.size:
            self._existence.memory.add_absent(digest.key)
            raise NotFound(f"blob {digest} is neither here nor upstream: it has {found.size} bytes")
        if found.is_right:
            raise Unavailable(f"{name} was damaged on its way here")
        self._counts.bad.add()
        await self._holder.condemn(digest)
        await self._existence.unlearn(digest.key)
        raise DataLoss(f"blob {digest} is damaged upstream: {name} holds other bytes")


def _upload_name(digest: Digest) -> str:
    """Of what is staged; no client's upload is named so."""
    return f"\0upstream/{digest}"
