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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from cas import digest as digests
from cas.client import remote as remotes
from cas.client.budget import Budget
from cas.client.compress import LEAST, Compressed, Decompressor, worthwhile
from cas.client.credentials import Credentials
from cas.client.errors import Unavailable, Unsupported
from cas.client.remote import Remote
from cas.client.retry import Patience, Retry, retried
from cas.client.source import PIECE, Blob, Bytes, Reader, hash_all, of_bytes, of_file
from cas.client.wire import Offer, Wire
from cas.digest import Digest, Hasher
from cas.errors import CasError, DigestMismatch, InvalidArgument, NotFound
from cas.pb import remote_execution_pb2 as pb

T = TypeVar("T")

BATCHED = 256 << 10
"""Blobs up to this size travel in batches; larger ones in a stream of their own, where they
can resume."""

BATCH_BYTES = 2 << 20
BATCH_BLOBS = 1000
"""Of one batch, if the remote allows as much."""

DIGEST_BYTES = 128
"""What a blob costs in a message besides its bytes, generously."""

FIND_BLOBS = 4000
"""Digests in one FindMissing."""

STREAM_BYTES = 4 * PIECE
"""What a stream holds in memory."""

Sink = Callable[[bytes | memoryview], object]
"""Takes a blob's bytes in order; called on a helper thread."""


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


class AsyncClient:
    """A remote.  Belongs to one event loop; `async with` closes it.

    `budget` bytes are held by transfers at once.  `zstd` False never compresses, True does
    where the remote offers it.
    """

    def __init__(
        self,
        remote: str | Remote,
        credentials: Credentials | None = None,
        *,
        retry: Retry | None = None,
        budget: int = 64 << 20,
        zstd: bool = True,
        threads: int | None = None,
    ) -> None:
        self.remote = remotes.parse(remote) if isinstance(remote, str) else remote
        self.tally = Tally()
        self.retry = retry or Retry()
        self._wire = _connect(self.remote, credentials or Credentials())
        self._budget = Budget(budget)
        self._zstd = zstd
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
        """Runs what blocks on a helper thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def offer(self) -> Offer:
        """What the remote can do, asked once."""
        if self._offer is None:
            self._offer = await self._retried(self._wire.offer)
        return self._offer

    async def clock(self) -> float | None:
        """The remote's time in seconds since 1970, where its protocol tells."""
        return await self._retried(self._wire.clock)

    # Which blobs are there

    async def has(self, digest: Digest) -> bool:
        return not await self.find_missing([digest])

    async def find_missing(self, digests: Iterable[Digest]) -> list[Digest]:
        """Those that the remote lacks, each once."""
        asked = list({digest.key: digest for digest in digests if digest.size}.values())
        chunks = [asked[at : at + FIND_BLOBS] for at in range(0, len(asked), FIND_BLOBS)]
        turns = asyncio.Semaphore(4)

        async def find(chunk: list[Digest]) -> list[Digest]:
            async with turns:
                return await self._retried(partial(self._wire.find_missing, chunk))

        return [digest for found in await together(map(find, chunks)) for digest in found]

    # Upload

    async def put(self, content: bytes | Path) -> Digest:
        """Stores bytes, or a file's, unless the remote has them."""
        blob = of_bytes(content) if isinstance(content, bytes) else await self.run(of_file, content)
        await self.put_blobs([blob])
        return blob.digest

    async def put_blobs(self, blobs: Iterable[Blob]) -> None:
        """Sends those that the remote lacks."""
        named = {blob.digest.key: blob for blob in blobs}
        missing = await self.find_missing(blob.digest for blob in named.values())
        await self.send([named[digest.key] for digest in missing])

    async def send(self, blobs: Sequence[Blob]) -> None:
        """Sends all of these."""
        offer = await self.offer()
        limit = min(offer.batch, BATCH_BYTES)
        small = [blob for blob in blobs if blob.digest.size + DIGEST_BYTES <= min(limit, BATCHED)]
        chosen = {id(blob) for blob in small}
        large = [blob for blob in blobs if id(blob) not in chosen]
        batches = _batches(small, lambda blob: blob.digest.size, limit)
        # The largest first: one that starts last is waited for alone.
        large.sort(key=lambda blob: -blob.digest.size)
        await together([*map(self._send_stream, large), *map(self._send_batch, batches)])

    async def _send_batch(self, batch: list[Blob]) -> None:
        cost = sum(blob.digest.size + DIGEST_BYTES for blob in batch)
        async with self._budget.take(2 * cost):
            todo = await self.run(_read_all, batch)
            patience = Patience(self.retry)
            while todo:
                try:
                    answers = await self._wire.write_many(todo)
                except Unavailable as error:
                    await self._failed(patience, error)
                    continue
                except Unsupported:
                    break
                again: list[tuple[Digest, bytes]] = []
                for (digest, data), answer in zip(todo, answers, strict=True):
                    if answer is None:
                        self.tally.sent_blobs += 1
                        self.tally.sent_bytes += digest.size
                    elif isinstance(answer, Unavailable):
                        again.append((digest, data))
                        failure = answer
                    elif digests.of(data, digest.function) != digest:
                        raise _changed(next(b for b in batch if b.digest == digest))
                    else:
                        raise answer
                if len(again) < len(todo):
                    patience.progress()
                if again:
                    await self._failed(patience, failure)
                todo = again
        for digest, data in todo:
            await self._send_stream(Blob(digest, Bytes(data)))

    async def _send_stream(self, blob: Blob) -> None:
        async with self._budget.take(STREAM_BYTES):
            with blob.source.open() as read:
                try:
                    await self._send_open(blob.digest, read)
                except InvalidArgument:
                    if await self.run(hash_all, read, blob.digest.function) != blob.digest:
                        raise _changed(blob) from None
                    raise
        self.tally.sent_blobs += 1

    async def _send_open(self, digest: Digest, read: Reader) -> None:
        offer = await self.offer()
        zstd = (
            self._zstd and offer.zstd and digest.size >= LEAST and await self.run(worthwhile, read)
        )
        patience = Patience(self.retry)
        name = self._wire.upload_name(digest, zstd)
        offset = reached = 0
        while True:
            pieces = _Pieces(self, read, digest, zstd, offset)
            try:
                size = await self._wire.write(digest, name, offset, pieces.pull)
                if zstd or size < 0 or size >= digest.size:
                    return
                raise Unavailable(f"the remote kept {size} of {digest.size} bytes")
            except Unavailable as error:
                await self._failed(patience, error)
            except InvalidArgument:
                # A remote that answered with a size it will not go on from.
                if not offset:
                    raise
                name, offset, reached = self._wire.upload_name(digest, zstd), 0, digest.size
                continue
            finally:
                await pieces.close()
            if zstd or not self._wire.resumes:
                # REAPI leaves open where a compressed upload goes on.
                name, offset = self._wire.upload_name(digest, zstd), 0
                continue
            with suppress(Unavailable):
                offset = await self._wire.committed(name)
                if offset >= digest.size:
                    return
            if offset > reached:
                reached = offset
                patience.progress()

    # Download

    async def get(self, digest: Digest) -> bytes:
        """The blob, verified; raises NotFound."""
        found: list[bytes] = []

        async def take(digest: Digest, data: bytes) -> None:
            found.append(data)

        if digest.size <= BATCHED:
            await self.get_small([digest], take)
            return found[0]
        pieces: list[bytes] = []
        await self.get_stream(digest, lambda piece: pieces.append(bytes(piece)))
        return b"".join(pieces)

    async def get_file(self, digest: Digest, path: Path) -> None:
        """Writes the blob to `path`, which is whole or untouched; raises NotFound."""
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=".cas-")
        try:
            with os.fdopen(fd, "wb") as file:
                await self.get_stream(digest, file.write)
                mask = os.umask(0)
                os.umask(mask)
                os.fchmod(file.fileno(), 0o666 & ~mask)
            os.replace(temporary, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise

    async def get_many(
        self, wanted: Iterable[Digest], take: Callable[[Digest, bytes], Awaitable[None]]
    ) -> None:
        """Hands each blob, whole and verified, to `take`, several at once; for blobs that fit
        into memory.  Raises NotFound naming one that is absent."""
        every = list({digest.key: digest for digest in wanted}.values())
        small = [digest for digest in every if digest.size <= BATCHED]

        async def large(digest: Digest) -> None:
            await take(digest, await self.get(digest))

        await together(
            [
                self.get_small(small, take),
                *(large(digest) for digest in every if digest.size > BATCHED),
            ]
        )

    async def get_small(
        self, wanted: Sequence[Digest], take: Callable[[Digest, bytes], Awaitable[None]]
    ) -> None:
        """`get_many` for blobs that fit into batches."""
        offer = await self.offer()
        limit = min(offer.batch, BATCH_BYTES)
        filled = [digest for digest in wanted if digest.size]
        alone = [digest for digest in filled if digest.size + DIGEST_BYTES > limit]
        fit = [digest for digest in filled if digest.size + DIGEST_BYTES <= limit]
        for digest in wanted:
            if not digest.size:
                await take(digest, b"")
        batches = _batches(fit, lambda digest: digest.size, limit)
        await together(
            [
                *(self._get_batch(batch, take) for batch in batches),
                *(self._get_alone(digest, take) for digest in alone),
            ]
        )

    async def _get_batch(
        self, batch: list[Digest], take: Callable[[Digest, bytes], Awaitable[None]]
    ) -> None:
        cost = sum(digest.size + DIGEST_BYTES for digest in batch)
        async with self._budget.take(2 * cost):
            todo = batch
            patience = Patience(self.retry)
            while todo:
                try:
                    answers = await self._wire.read_many(todo)
                except Unavailable as error:
                    await self._failed(patience, error)
                    continue
                except Unsupported:
                    break
                again = []
                for digest, answer in zip(todo, answers, strict=True):
                    if isinstance(answer, Unavailable):
                        again.append(digest)
                        failure = answer
                    elif isinstance(answer, NotFound):
                        raise _absent(digest)
                    elif isinstance(answer, CasError):
                        raise answer
                    else:
                        digests.verify(digest, answer)
                        self.tally.got_blobs += 1
                        self.tally.got_bytes += digest.size
                        await take(digest, answer)
                if len(again) < len(todo):
                    patience.progress()
                if again:
                    await self._failed(patience, failure)
                todo = again
        for digest in todo:
            await self._get_alone(digest, take)

    async def _get_alone(
        self, digest: Digest, take: Callable[[Digest, bytes], Awaitable[None]]
    ) -> None:
        pieces: list[bytes] = []
        await self.get_stream(digest, lambda piece: pieces.append(bytes(piece)))
        await take(digest, b"".join(pieces))

    async def get_stream(self, digest: Digest, sink: Sink) -> None:
        """Hands the blob's bytes to `sink` as they come.

        They are known to be right only once this returns: raises DigestMismatch at the end.
        """
        offer = await self.offer()
        hasher = digest.function.new()
        received = 0
        async with self._budget.take(STREAM_BYTES):
            patience = Patience(self.retry)
            zstd = self._zstd and offer.zstd and digest.size >= LEAST
            while received < digest.size:
                drain = _Drain(self, digest, received, hasher, sink, zstd)
                try:
                    async with aclosing(self._wire.read(digest, received, zstd)) as pieces:
                        async for piece in pieces:
                            await drain.add(piece)
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


class _Pieces:
    """An upload's pieces, each read while the one before it is sent."""

    def __init__(
        self, client: AsyncClient, read: Reader, digest: Digest, zstd: bool, offset: int
    ) -> None:
        self._size = digest.size
        self._read = read
        self._next = Compressed(read, digest.size).next if zstd else self._plain
        self._client = client
        self._at = offset
        self._reading: asyncio.Future[bytes] | None = None

    def _plain(self) -> bytes:
        # Exactly as many bytes as the digest says, also where the file has grown.
        piece = self._read(self._at, min(PIECE, self._size - self._at))
        self._at += len(piece)
        return piece

    async def pull(self) -> bytes:
        reading = self._reading or asyncio.ensure_future(self._client.run(self._next))
        piece = await reading
        self._reading = asyncio.ensure_future(self._client.run(self._next)) if piece else None
        self._client.tally.sent_bytes += len(piece)
        return piece

    async def close(self) -> None:
        """Waits for a read under way: its file is about to be closed."""
        if self._reading is not None:
            with suppress(OSError):
                await self._reading


class _Drain:
    """Takes a download's pieces together into larger ones for a helper thread."""

    def __init__(
        self,
        client: AsyncClient,
        digest: Digest,
        received: int,
        hasher: Hasher,
        sink: Sink,
        zstd: bool,
    ) -> None:
        self.received = received
        self._client = client
        self._digest = digest
        self._hasher = hasher
        self._sink = sink
        self._zstd = Decompressor() if zstd else None
        self._waiting: list[bytes | memoryview] = []
        self._size = 0

    async def add(self, piece: bytes | memoryview) -> None:
        self._waiting.append(piece)
        self._size += len(piece)
        if self._size >= PIECE:
            await self.flush()

    async def flush(self) -> None:
        if not self._waiting:
            return
        waiting, self._waiting, self._size = self._waiting, [], 0
        before = self.received
        await self._client.run(self._take, waiting)
        self._client.tally.got_bytes += self.received - before

    def _take(self, pieces: list[bytes | memoryview]) -> None:
        for piece in pieces:
            data = self._zstd.feed(piece) if self._zstd else piece
            digests.check_size(self._digest, self.received + len(data))
            self._hasher.update(data)
            self._sink(data)
            self.received += len(data)


def _connect(remote: Remote, credentials: Credentials) -> Wire:
    if remote.http:
        from cas.client.overhttp import HttpWire

        return HttpWire(remote, credentials)
    from cas.client.overgrpc import GrpcWire

    return GrpcWire(remote, credentials)


def _batches(items: Sequence[T], size: Callable[[T], int], limit: int) -> list[list[T]]:
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


def _read_all(batch: list[Blob]) -> list[tuple[Digest, bytes]]:
    found = []
    for blob in batch:
        with blob.source.open() as read:
            found.append((blob.digest, read(0, blob.digest.size)))
    return found


async def together(work: Iterable[Awaitable[T]]) -> list[T]:
    """All results; the first failure ends the rest, and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_awaited(one)) for one in work]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def _awaited(work: Awaitable[T]) -> T:
    return await work


def _absent(digest: Digest) -> NotFound:
    return NotFound(f"the remote does not have blob {digest}")


def _changed(blob: Blob) -> InvalidArgument:
    return InvalidArgument(f"{blob.source} changed while it was sent; send it again")
