"""What is done with upstream: asked, fetched from, sent to.

Rule: `interface.Beyond`, and what `store.TieredStore` needs; every coroutine here runs on the one
loop, so nothing but `Flight` is guarded.  What is known is `memory`'s; what upstream is,
and how it is asked, is `holder`'s.  Nothing here names a blob locally but the local store's own
verified ways in.

* A blob is fetched once however many ask: one flight for each digest in a process, one process of
  a node at a time by `claims`; the others follow what it stages.
* A blob is sent from the local store, after its commit there.
* An action result is sent after all that it names is known to be upstream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, TypeVar

from cas import digest as digests
from cas.digest import Digest
from cas.errors import (
    CasError,
    DataLoss,
    DigestMismatch,
    NotFound,
    StoreClosed,
    Unavailable,
    UploadSuperseded,
)
from cas.store.coming import Staging
from cas.store.interface import Blob, NewAction
from cas.store.local import LocalStore
from cas.store.pending import Pending, resolved, then
from cas.store.room import in_room, short_of
from cas.store.uploads import LocalUpload
from cas.upstream.back import Back
from cas.upstream.checking import check
from cas.upstream.claims import Claims
from cas.upstream.counts import Counts
from cas.upstream.flights import ComingBlob, Flight
from cas.upstream.holder import Holder
from cas.upstream.landing import Landing
from cas.upstream.loop import Loop, brought
from cas.upstream.memory import Latest, Memory
from cas.upstream.objects import Absent, Broken

if TYPE_CHECKING:
    from cas.upstream.shared import Shared

T = TypeVar("T")

WHOLE = 1 << 20
"""Objects up to this size, bytes, come in one request and are not staged, …"""
SENT_WHOLE = 8 << 20
"""… and up to this one go in one; larger ones go in parts."""
STREAMS = 16
"""Blobs that come, and that go, at once in one process: each holds `flights.WINDOW` pieces, or a
few parts.  But …"""
SMALL = 64 << 10
"""… up to this size, bytes, …"""
SMALL_STREAMS = 256
"""… so many come at once: they may come together."""
BROUGHT = 64 << 10
"""Objects up to this size, which an action result names, are fetched where others are looked for:
that costs as much as to look, and who asked for it is about to read them."""
READ = 1 << 20
"""Bytes that are read at once of what is sent."""
MAX_ACTION = 16 << 20
"""Bytes of an action result that is taken."""
MAX_RESULTS = 10_000
"""Actions whose results are remembered."""
LOOK_SECONDS = 0.01
"""Between two looks at what another process stages."""
HELD_BACK = 1 << 20
"""Bytes of it that nobody is given before that process has found the blob to be right."""

log = logging.getLogger("cas.upstream")


class Tier:
    """See `interface.Beyond`."""

    def __init__(
        self,
        local: LocalStore,
        loop: Loop,
        holder: Holder,
        memory: Memory,
        counts: Counts,
        shared: Shared | None = None,
        back: Back | None = None,
        *,
        sends: bool = True,
    ) -> None:
        """`back` where writes are acknowledged before they are sent; `sends` False keeps what is
        written here, here."""
        self.back = back
        self._local = local
        self._loop = loop
        self._holder = holder
        self.sends = sends
        self._memory = memory
        self._counts = counts
        self._shared = shared
        self._claims = Claims(*local.claims())
        self._flights: dict[bytes, Flight] = {}
        self._sending: dict[bytes, asyncio.Task[None]] = {}
        self._results: Latest[bytes] = Latest(MAX_RESULTS)
        """What was sent last for an action: it may be replaced, and replaced again by the first."""
        self._coming_at_once = asyncio.Semaphore(STREAMS)
        self._small_coming_at_once = asyncio.Semaphore(SMALL_STREAMS)
        self._going_at_once = asyncio.Semaphore(STREAMS)

    def close(self) -> None:
        """*Blocking.*  Ends what is under way."""
        # Fails where all is closed already.
        with suppress(StoreClosed):
            self._loop.run(self._let_go).wait()
        if self._loop.close():
            self._claims.close()

    async def _let_go(self) -> None:
        if self._shared is not None:
            await self._shared.close()
        await self._holder.close()

    # --- existence -----------------------------------------------------------------------

    def present(self, keys: Sequence[bytes], /, *, sure: bool = False) -> Pending[set[bytes]]:
        return self._loop.run(lambda: self._present(keys, sure=sure))

    async def _present(self, asked: Iterable[bytes], *, sure: bool) -> set[bytes]:
        asked = list(dict.fromkeys(asked))
        if sure:
            unknown = [key for key in asked if not self._memory.has(key)]
        else:
            unknown = self._memory.unknown(asked)
        self._counts.remembered.add(len(asked) - len(unknown))
        if unknown and self._shared is not None:
            known = await self._shared.present(unknown)
            for key in known or ():
                self._memory.add(key)
            if known is not None:
                # What nobody has told of is sent once more at worst, but makes no action result a
                # miss.
                unknown = [key for key in unknown if key not in known] if sure else []
        if unknown and sure and self._holder.one_by_one:
            told_of = await asyncio.gather(*map(self._bring, unknown))
            unknown = [key for key, told in zip(unknown, told_of, strict=True) if not told]
        if unknown:
            looked_for = await self._holder.present([digests.from_key(key) for key in unknown])
            for key, there in looked_for.items():
                self._note(key, there)
        return {key for key in asked if self._memory.has(key)}

    async def _bring(self, key: bytes) -> bool:
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
        self._memory.add(key)
        return True

    async def _is_there(self, digest: Digest) -> bool:
        """Raises Unavailable."""
        there = await self._holder.has(digest)
        self._note(digest.key, there)
        return there

    def _note(self, key: bytes, there: bool) -> None:
        self._learn(key) if there else self._memory.add_absent(key)

    def _learn(self, key: bytes) -> None:
        """Upstream has it."""
        self._memory.add(key)
        if self._shared is not None:
            self._shared.add(key)

    async def _unlearn(self, key: bytes) -> None:
        """Upstream has it no more."""
        self._memory.add_absent(key)
        if self._shared is not None:
            await self._shared.forget(key)

    def find(self, prefix: bytes, /) -> Pending[Digest | None]:
        return self._loop.run(lambda: self._find(prefix))

    async def _find(self, prefix: bytes) -> Digest | None:
        digest = await self._holder.find(prefix)
        if digest is not None:
            self._learn(digest.key)
        return digest

    # --- reads ---------------------------------------------------------------------------

    def open(self, digest: Digest, /) -> Pending[Blob]:
        return self._loop.run(lambda: self._open(digest))

    def bring(self, digests: Sequence[Digest], /) -> None:
        async def begin() -> None:
            for digest in digests:
                self._flight(digest)

        self._loop.run(begin)

    async def _open(self, digest: Digest) -> Blob:
        if self._local.contains(digest):
            # It came since it was looked for.
            with suppress(NotFound):
                return await self._loop.offload(self._local.open, digest)
        flight = self._flight(digest)
        await brought(flight.began)
        return ComingBlob(flight, self._part)

    def _part(self, digest: Digest, start: int, end: int) -> Pending[bytes]:
        async def fetch() -> bytes:
            try:
                part = await self._holder.part(digest, start, end)
            except Absent:
                raise DataLoss(f"blob {digest} is gone from upstream") from None
            self._counts.received.add(len(part))
            return part

        return self._loop.run(fetch)

    def _flight(self, digest: Digest) -> Flight:
        flight = self._flights.get(digest.key)
        if flight is None:
            flight = self._flights[digest.key] = Flight(digest)
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
        async with self._small_coming_at_once if small else self._coming_at_once:
            try:
                size, pieces = await self._holder.coming(digest, 0)
            except Absent:
                await self._unlearn(digest.key)
                raise NotFound(f"blob {digest} is neither here nor upstream") from None
            except DataLoss:
                await self._unlearn(digest.key)
                raise
            if size != digest.size:
                await self._examine(digest)
            if size <= WHOLE:
                await self._fetch_whole(flight, pieces)
            else:
                await self._fetch_staged(flight, pieces)
            self._learn(digest.key)
            self._counts.fetched.add()

    async def _fetch_whole(self, flight: Flight, pieces: AsyncIterator[bytes]) -> None:
        digest = flight.digest
        data = b"".join([piece async for _, piece in self._resumed(digest, pieces)])
        put = partial(self._local.put, fetched=True)

        async def write() -> Pending[None]:
            [pending] = await self._loop.offload(put, [(digest, data)])
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
        await self._committed(digest, pending)

    async def _fetch_staged(self, flight: Flight, pieces: AsyncIterator[bytes]) -> None:
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
        await self._committed(digest, pending)

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
            self._memory.add_absent(digest.key)
            raise NotFound(f"blob {digest} is neither here nor upstream: it has {found.size} bytes")
        if found.is_right:
            raise Unavailable(f"{name} was damaged on its way here")
        self._counts.bad.add()
        await self._holder.condemn(digest)
        await self._unlearn(digest.key)
        raise DataLoss(f"blob {digest} is damaged upstream: {name} holds other bytes")

    # --- writes --------------------------------------------------------------------------

    def keep(self, keys: Sequence[bytes], /) -> Pending[None]:
        if not self.sends:
            return resolved(None)
        return self.send(keys) if self.back is None else self.back.keep(keys)

    def send(
        self, keys: Sequence[bytes], /, *, sure: bool = False, new: bool = False
    ) -> Pending[None]:
        """Resolved once these blobs are upstream.  Fails with NotFound where one is neither here
        nor there.  `sure` does without the memory of what was there a while ago; what is `new` is
        not looked for either, where that is a request of its own."""
        return self._loop.run(lambda: self._keep(keys, sure=sure, new=new))

    def after(self, committed: Pending[None], digest: Digest) -> Pending[None]:
        """What a write comes to: its local commit, and then its object."""
        if not self.sends:
            return committed
        if self.back is not None:
            return self.back.after(committed, digest)
        return then(committed, lambda _: self.send([digest.key]))

    async def _keep(self, asked: Iterable[bytes], *, sure: bool = False, new: bool = False) -> None:
        wanted = [key for key in dict.fromkeys(asked) if sure or not self._memory.has(key)]
        sending = [self._sent(key, new=new) for key in wanted]
        ended = await asyncio.gather(*sending, return_exceptions=True)
        for error in ended:
            if isinstance(error, BaseException):
                raise error

    async def _sent(self, key: bytes, *, new: bool) -> None:
        task = self._sending.get(key)
        if task is None:
            send = self._send(digests.from_key(key), new=new)
            task = asyncio.get_running_loop().create_task(send)
            self._sending[key] = task
            task.add_done_callback(lambda _: self._sending.pop(key))
        # Others may wait for the same.
        await asyncio.shield(task)

    async def _send(self, digest: Digest, *, new: bool) -> None:
        if not digest.size:
            return
        if not await self._holder.takes(digest):
            # It stays here, as does whatever names it.
            return
        # What is sent in one request costs little more in vain; a server is asked for many at once.
        new = new and digest.size <= SENT_WHOLE and self._holder.one_by_one
        if not new and not self._memory.lacks(digest.key) and await self._is_there(digest):
            return
        data = self._local.read_small(digest)
        if data is None:
            async with self._going_at_once:
                blob = await self._loop.offload(self._local.open, digest)
                try:
                    if blob.size <= SENT_WHOLE:
                        data = await self._loop.offload(_read, blob, 0, blob.size)
                        await self._holder.put(digest, data)
                    else:
                        await self._holder.put_parts(digest, partial(self._parts, blob))
                finally:
                    blob.close()
        else:
            await self._holder.put(digest, data)
        self._counts.sent.add(digest.size)
        self._learn(digest.key)

    async def _parts(self, blob: Blob, begin: int) -> AsyncIterator[bytes]:
        for start in range(begin, blob.size, READ):
            yield await self._loop.offload(_read, blob, start, min(READ, blob.size - start))

    # --- action results ------------------------------------------------------------------

    def action(self, instance: str, digest: Digest, /) -> Pending[bytes | None]:
        return self._loop.run(lambda: self._action(instance, digest))

    async def _action(self, instance: str, digest: Digest) -> bytes | None:
        digest = self._sized(digest)
        try:
            found = await self._holder.action(instance, digest, MAX_ACTION)
        except Absent:
            return None
        if found is None:
            log.warning(
                "an action result upstream is too large",
                extra={"action": str(digest), "instance": instance},
            )
        else:
            self._counts.received.add(len(found))
        return found

    def _sized(self, action: Digest) -> Digest:
        """Over HTTP an action has a hash alone; its blob, where that is here, has a size."""
        if action.size:
            return action
        return self._local.find(action.key[: 1 + action.function.length]) or action

    def keep_action(self, instance: str, digest: Digest, action: NewAction, /) -> Pending[None]:
        return self._local.put_action(instance, digest, action, fetched=True)

    def served_action(self) -> None:
        self._counts.actions.add()

    def put_action(self, instance: str, digest: Digest, action: NewAction, /) -> Pending[None]:
        """A write's action result, acknowledged as `after` has it: all that it names goes first.
        One that lacks a blob, here and upstream, stays here."""
        if self.back is not None:
            return self.back.put_action(instance, digest, action)
        committed = self._local.put_action(instance, digest, action)
        if not self.sends:
            return committed

        async def send() -> None:
            # Of use to nobody yet; whoever completes it sends it again.
            with suppress(NotFound):
                await self._send_action(instance, digest, action.references, action.result)

        return then(committed, lambda _: self._loop.run(send))

    def send_action(
        self, instance: str, digest: Digest, references: Sequence[bytes], result: bytes, /
    ) -> Pending[None]:
        """Resolved once the action result is upstream, and all that it names was before.  Fails
        with NotFound where one of those is neither here nor there."""
        return self._loop.run(lambda: self._send_action(instance, digest, references, result))

    async def _send_action(
        self, instance: str, digest: Digest, references: Sequence[bytes], result: bytes
    ) -> None:
        """What upstream cannot take stays here, and so does what names it."""
        digest = self._sized(digest)
        named = [digest, *map(digests.from_key, references)]
        if not all([await self._holder.takes(one) for one in named]):
            return
        await self._keep(references)
        # Machines that run one action at the same time all send its result.
        name = b"\0".join((instance.encode(), digest.key))
        known = b"\0".join((name, sha256(result).digest()))
        if self._results.get(name) != known or not self._memory.has(known):
            await self._holder.put_action(instance, digest, result)
            self._counts.sent.add(len(result))
            self._memory.add(known)
            self._results.add(name, known)


def _upload_name(digest: Digest) -> str:
    """Of what is staged; no client's upload is named so."""
    return f"\0upstream/{digest}"


def _read(blob: Blob, offset: int, size: int) -> bytes:
    data = bytearray(size)
    view = memoryview(data)
    done = 0
    while done < size:
        done += blob.read_into(view[done:], offset + done)
    return bytes(data)
