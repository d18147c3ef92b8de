"""`AsyncClient`: a remote as one puts and gets blobs.

Rule: everything that one connection does alike whatever it speaks: batch or stream by size,
only what is missing is sent, every download is verified, what breaks goes on where it
broke.  Trees and saves stand on this (`cas.client.push`, `pull`, `saves`).
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from cas import digest as digests
from cas.client import remote as remotes
from cas.client.budget import Budget
from cas.client.compress import LEAST, content, parcels, worthwhile
from cas.client.credentials import Credentials
from cas.client.errors import RemoteError, Unavailable, Unsupported
from cas.client.names import by_function
from cas.client.remote import Remote
from cas.client.retry import Patience, Retry, retried
from cas.client.source import PIECE, Blob, Reader, hash_all, of_bytes, of_file
from cas.client.transfer import (
    BATCH_BYTES,
    DIGEST_BYTES,
    Drain,
    Moved,
    Pieces,
    Sink,
    Take,
    Tally,
    Told,
    batches,
    together,
)
from cas.client.wire import Offer, Parcel, Wire
from cas.digest import SHA256, Digest, Function
from cas.errors import DigestMismatch, InvalidArgument, NotFound
from cas.pb import remote_execution_pb2 as pb
from cas.zstd import Packer

T = TypeVar("T")

BATCHED = 2 << 20
"""Blobs up to this size are sent in batches; larger ones in a stream of their own, where they
can resume.  A stream costs what 600 KiB do."""

READ_TOGETHER = 256 << 10
"""Blobs up to this size are read in batches."""

FIND_BLOBS = 4000
"""Digests in one FindMissing."""

STREAM_BYTES = 4 * PIECE
"""What a stream holds in memory."""


def _ignored(size: int) -> None:
    """Nobody shows how far it is."""


class AsyncClient:
    """A remote.  Belongs to one event loop; `async with` closes it.

    `budget` bytes are held by transfers at once.  `zstd` True compresses where the remote offers
    it, False never, None unless the remote is on this machine: what crosses no network costs less
    than compressing it.
    """

    def __init__(
        self,
        remote: str | Remote,
        credentials: Credentials | None = None,
        *,
        retry: Retry | None = None,
        budget: int = 64 << 20,
        zstd: bool | None = None,
        threads: int | None = None,
    ) -> None:
        self.remote = remotes.parse(remote) if isinstance(remote, str) else remote
        self.tally = Tally()
        self.retry = retry or Retry()
        self._wire = _connect(self.remote, credentials or Credentials())
        self._budget = Budget(budget)
        wanted = not self.remote.local if zstd is None else zstd
        self._packer = Packer() if wanted else None
        self._offer: Offer | None = None
        self._threads = ThreadPoolExecutor(threads or min(8, 2 + (os.cpu_count() or 1)), "cas")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._wire.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """Runs what blocks on a helper thread.  Cancelled, it still waits for what has begun:
        nothing works on behind the back of a caller who goes on to clean up."""
        job = self._threads.submit(work, *arguments)
        try:
            return await asyncio.shield(asyncio.wrap_future(job))
        except asyncio.CancelledError:
            if not job.cancel():
                ended = asyncio.wrap_future(job)
                await asyncio.wait([ended])
                ended.exception()
            raise

    async def offer(self) -> Offer:
        """What the remote can do, asked once."""
        if self._offer is None:
            self._offer = await self._retried(self._wire.offer)
        return self._offer

    async def clock(self) -> float | None:
        """The remote's time in seconds since 1970, where its protocol tells."""
        return await self._retried(self._wire.clock)

    async def status(self) -> dict[str, Any] | None:
        """What the remote says of itself at /status, if it is ours and spoken to over HTTP."""
        return await self._wire.status()

    # Which blobs are there

    async def has(self, digest: Digest) -> bool:
        return not await self.find_missing([digest])

    async def find_missing(self, digests: Iterable[Digest]) -> list[Digest]:
        """Those that the remote lacks, each once."""
        asked = {digest.key: digest for digest in digests if digest.size}.values()
        chunks = [
            alike[at : at + FIND_BLOBS]
            for alike in by_function(asked, lambda digest: digest)
            for at in range(0, len(alike), FIND_BLOBS)
        ]
        turns = asyncio.Semaphore(4)

        async def find(chunk: list[Digest]) -> list[Digest]:
            async with turns:
                return await self._retried(partial(self._wire.find_missing, chunk))

        return [digest for found in await together(map(find, chunks)) for digest in found]

    # Upload

    async def put(self, content: bytes | Path, function: Function = SHA256) -> Digest:
        """Stores bytes, or a file's, unless the remote has them."""
        if isinstance(content, bytes):
            blob = of_bytes(content, function)
        else:
            blob = await self.run(of_file, content, function)
        await self.put_blobs([blob])
        return blob.digest

    async def put_blobs(self, blobs: Iterable[Blob]) -> None:
        """Sends those that the remote lacks."""
        named = {blob.digest.key: blob for blob in blobs}
        missing = await self.find_missing(blob.digest for blob in named.values())
        await self.send([named[digest.key] for digest in missing])

    async def send(self, blobs: Sequence[Blob], moved: Moved = _ignored) -> None:
        """Sends all of these."""
        offer = await self.offer()
        limit = min(offer.batch, BATCH_BYTES)
        small = [blob for blob in blobs if blob.digest.size + DIGEST_BYTES <= min(limit, BATCHED)]
        chosen = {id(blob) for blob in small}
        large = [blob for blob in blobs if id(blob) not in chosen]
        groups = [
            batch
            for alike in by_function(small, lambda blob: blob.digest)
            for batch in batches(alike, lambda blob: blob.digest.size, limit)
        ]
        # The largest first: one that starts last is waited for alone.
        large.sort(key=lambda blob: -blob.digest.size)
        await together(
            [
                *(self._send_stream(blob, moved) for blob in large),
                *(self._send_batch(batch, moved) for batch in groups),
            ]
        )

    async def _send_batch(self, batch: list[Blob], moved: Moved) -> None:
        cost = sum(blob.digest.size + DIGEST_BYTES for blob in batch)
        packer = self._packer if (await self.offer()).zstd_batch else None
        async with self._budget.take(2 * cost):
            todo = await self.run(parcels, batch, packer)
            patience = Patience(self.retry)
            while todo:
                try:
                    answers = await self._wire.write_many(todo)
                except Unavailable as error:
                    await self._failed(patience, error)
                    continue
                except Unsupported:
                    break
                again: list[Parcel] = []
                for parcel, answer in zip(todo, answers, strict=True):
                    if answer is None:
                        self.tally.sent_blobs += 1
                        self.tally.sent_bytes += len(parcel.data)
                        moved(parcel.digest.size)
                    elif isinstance(answer, Unavailable):
                        again.append(parcel)
                        failure = answer
                    else:
                        await self.run(_check_unchanged, parcel, batch)
                        raise answer
                if len(again) < len(todo):
                    patience.progress()
                if again:
                    await self._failed(patience, failure)
                todo = again
        unsent = {parcel.digest.key for parcel in todo}
        for blob in batch:
            if blob.digest.key in unsent:
                await self._send_stream(blob, moved)

    async def _send_stream(self, blob: Blob, moved: Moved) -> None:
        async with self._budget.take(STREAM_BYTES):
            with blob.source.open() as read:
                try:
                    await self._send_open(blob.digest, read, moved)
                except InvalidArgument:
                    if await self.run(hash_all, read, blob.digest.function) != blob.digest:
                        raise _changed(blob) from None
                    raise
        self.tally.sent_blobs += 1

    async def _send_open(self, digest: Digest, read: Reader, moved: Moved) -> None:
        offer = await self.offer()
        zstd = (
            self._packer is not None
            and offer.zstd
            and digest.size >= LEAST
            and await self.run(worthwhile, read, self._packer)
        )
        patience = Patience(self.retry)
        name = self._wire.upload_name(digest, zstd)
        offset = reached = 0
        told = Told(moved)
        while True:
            pieces = Pieces(self.run, self.tally, read, digest, zstd, offset, told)
            try:
                size = await self._wire.write(digest, name, offset, pieces.pull, zstd)
                # What a compressed upload is said to have counts its compressed bytes.
                if zstd or size < 0 or size >= digest.size:
                    told.reach(digest.size)
                    return
                raise Unavailable(f"the remote kept {size} of {digest.size} bytes")
            except Unavailable as error:
                await self._failed(patience, error)
            except InvalidArgument:
                if not offset:
                    raise
                with suppress(Unavailable):
                    size = await self._wire.committed(name)
                    if offset < size < digest.size:
                        # More of the stream that broke had got through than it had seen yet.
                        offset = size
                        continue
                # A remote that answered with a size it will not go on from.
                name, offset, reached = self._wire.upload_name(digest, zstd), 0, digest.size
                continue
            finally:
                await pieces.close()
            if not self._wire.resumes:
                offset = 0
                continue
            # Of a compressed upload, too, this is how much of the content is there.
            with suppress(Unavailable):
                offset = await self._wire.committed(name)
                if offset >= digest.size:
                    told.reach(digest.size)
                    return
            if offset > reached:
                reached = offset
                patience.progress()

    # Download

    async def get(self, digest: Digest) -> bytes:
        """The blob, verified; raises NotFound."""
        found: list[bytes] = []

        async def take(blobs: list[tuple[Digest, bytes]]) -> None:
            found.extend(data for _, data in blobs)

        await self.get_many([digest], take)
        return found[0]

    async def get_file(self, digest: Digest, path: Path, moved: Moved = _ignored) -> None:
        """Writes the blob to `path`, which is whole or untouched; raises NotFound."""
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=".cas-")
        try:
            with os.fdopen(fd, "wb") as file:
                await self.get_stream(digest, file.write, moved)
                mask = os.umask(0)
                os.umask(mask)
                os.fchmod(file.fileno(), 0o666 & ~mask)
            os.replace(temporary, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise

    async def get_many(self, wanted: Iterable[Digest], take: Take, moved: Moved = _ignored) -> None:
        """Hands the blobs, whole and verified, to `take`, some at a time and several times at
        once; for blobs that fit into memory.  Raises NotFound naming one that is absent."""
        every = list({digest.key: digest for digest in wanted}.values())
        if empty := [(digest, b"") for digest in every if not digest.size]:
            await take(empty)
        offer = await self.offer()
        limit = min(offer.batch, BATCH_BYTES)
        most = min(limit - DIGEST_BYTES, READ_TOGETHER)
        small = [digest for digest in every if 0 < digest.size <= most]
        groups = [
            batch
            for alike in by_function(small, lambda digest: digest)
            for batch in batches(alike, lambda digest: digest.size, limit)
        ]
        await together(
            [
                *(self._get_whole(digest, take, moved) for digest in every if digest.size > most),
                *(self._get_batch(batch, take, moved) for batch in groups),
            ]
        )

    async def _get_batch(self, batch: list[Digest], take: Take, moved: Moved) -> None:
        cost = sum(digest.size + DIGEST_BYTES for digest in batch)
        zstd = self._packer is not None and (await self.offer()).zstd
        async with self._budget.take(2 * cost):
            todo = batch
            patience = Patience(self.retry)
            while todo:
                try:
                    answers = await self._wire.read_many(todo, zstd)
                except Unavailable as error:
                    await self._failed(patience, error)
                    continue
                except Unsupported:
                    break
                again = []
                came: list[Parcel] = []
                for digest, answer in zip(todo, answers, strict=True):
                    if isinstance(answer, Parcel):
                        came.append(answer)
                    elif isinstance(answer, Unavailable):
                        again.append(digest)
                        failure = answer
                    elif isinstance(answer, NotFound):
                        raise _absent(digest)
                    else:
                        raise answer
                if came:
                    found = await self.run(_contents, came)
                    size = sum(digest.size for digest, _ in found)
                    self.tally.got_blobs += len(found)
                    self.tally.got_bytes += size
                    patience.progress()
                    await take(found)
                    moved(size)
                if again:
                    await self._failed(patience, failure)
                todo = again
        for digest in todo:
            await self._get_whole(digest, take, moved)

    async def _get_whole(self, digest: Digest, take: Take, moved: Moved) -> None:
        pieces: list[bytes] = []
        await self.get_stream(digest, lambda piece: pieces.append(bytes(piece)), moved)
        await take([(digest, b"".join(pieces))])

    async def get_stream(self, digest: Digest, sink: Sink, moved: Moved = _ignored) -> None:
        """Hands the blob's bytes to `sink` as they come.

        They are known to be right only once this returns: raises DigestMismatch at the end.
        """
        offer = await self.offer()
        hasher = digest.function.new()
        received = 0
        async with self._budget.take(STREAM_BYTES):
            patience = Patience(self.retry)
            zstd = self._packer is not None and offer.zstd and digest.size >= LEAST
            while received < digest.size:
                drain = Drain(self.run, self.tally, digest, received, hasher, sink, moved)
                try:
                    async with aclosing(self._wire.read(digest, received, zstd)) as pieces:
                        async for piece, packed in pieces:
                            await drain.add(piece, packed)
                    await drain.flush()
                    if drain.received < digest.size:
                        raise Unavailable(
                            f"the stream ended after {drain.received} of {digest.size} bytes"
                        )
                except Unavailable as error:
                    await drain.flush()
                    if drain.received > received:
                        patience.progress()
                    await self._failed(patience, error)
                except NotFound:
                    raise _absent(digest) from None
                except InvalidArgument as error:
                    if isinstance(error, DigestMismatch) or not zstd:
                        raise
                    zstd = False  # Offered, and not for this blob.
                received = drain.received
        digests.check(digest, hasher, received)
        self.tally.got_blobs += 1

    # Action results

    async def get_action(self, action: Digest) -> pb.ActionResult | None:
        return await self._retried(partial(self._wire.get_action, action))

    async def put_action(self, action: Digest, result: pb.ActionResult) -> None:
        await self._retried(partial(self._wire.put_action, action, result))

    async def _retried(self, work: Callable[[], Awaitable[T]]) -> T:
        return await retried(self.retry, work)

    async def _failed(self, patience: Patience, error: Unavailable) -> None:
        await patience.failed(error)
        self.tally.retries += 1


def _connect(remote: Remote, credentials: Credentials) -> Wire:
    if remote.http:
        from cas.client.overhttp import HttpWire

        return HttpWire(remote, credentials)
    from cas.client.overgrpc import GrpcWire

    return GrpcWire(remote, credentials)


def _check_unchanged(parcel: Parcel, batch: list[Blob]) -> None:
    """Raises, where what was sent is not what was to be, what says so better than the remote."""
    try:
        content(parcel)
    except (DigestMismatch, RemoteError):
        raise _changed(next(blob for blob in batch if blob.digest == parcel.digest)) from None


def _contents(came: list[Parcel]) -> list[tuple[Digest, bytes]]:
    return [(parcel.digest, content(parcel)) for parcel in came]


def _absent(digest: Digest) -> NotFound:
    return NotFound(f"the remote does not have blob {digest}")


def _changed(blob: Blob) -> InvalidArgument:
    return InvalidArgument(f"{blob.source} changed while it was sent; send it again")
