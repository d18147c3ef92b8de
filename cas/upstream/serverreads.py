"""Blobs' bytes from a server upstream.

Rule: small blobs that are wanted at a time come together, larger ones as streams, as zstd where
that is of use.  What comes has as many bytes as its digest says; whether they are right is for who
takes them.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from functools import partial
from typing import NoReturn

from cas.client.compress import Decompressor
from cas.client.errors import RemoteError, Unavailable
from cas.client.overgrpc import GrpcWire
from cas.client.wire import Parcel
from cas.digest import Digest
from cas.errors import CasError
from cas.upstream.gathering import Gathered
from cas.upstream.objects import Absent, Broken, Refused
from cas.upstream.servercalls import Calls, Unserved, translated
from cas.upstream.serveroffer import BATCH, Offered, cost

JOINED = 512 << 10
"""Bytes in which a stream is handed on, at least, but for its ends."""

log = logging.getLogger("cas.upstream")


class Reads:
    """One process's, on one loop."""

    def __init__(
        self,
        wire: GrpcWire,
        calls: Calls,
        offered: Offered,
        is_wrong: Callable[[Digest, int], Awaitable[NoReturn]],
        *,
        zstd: bool,
    ) -> None:
        """`is_wrong` is told of a blob of which so many bytes came, or more, and raises what is to
        be said of it.  `zstd` False does without."""
        self._wire = wire
        self._calls = calls
        self._offered = offered
        self._is_wrong = is_wrong
        self._zstd = zstd
        self._reading: Gathered[Digest, bytes] = Gathered(
            self._read_many, kind=lambda digest: digest.function.code, cost=cost, most=BATCH
        )

    async def coming(self, digest: Digest, start: int) -> tuple[int, AsyncIterator[bytes]]:
        """See `holder.Holder.coming`."""
        if not start and await self._offered.batches(digest):
            with suppress(Unserved):
                data = await self._calls.patient(partial(self._reading, digest))
                if len(data) != digest.size:
                    await self._is_wrong(digest, len(data))
                return digest.size, _one(data)
            self._offered.has_no_batches()
        messages = await self._calls.ask("get", lambda: self._opened(digest, start))
        return digest.size, self._counted(digest, start, self._calls.trying.pieces(messages))

    async def part(self, digest: Digest, start: int, end: int) -> bytes:
        """See `holder.Holder.part`."""

        async def get() -> bytes:
            pieces = self._wire.read(digest, start, False, end - start)
            async with aclosing(pieces):
                data = b"".join([piece async for piece, _ in pieces])
            if len(data) != end - start:
                raise Unavailable(f"{len(data)} bytes came, not {end - start}")
            return data

        return await self._calls.ask("get", get)

    async def _opened(self, digest: Digest, start: int) -> AsyncIterator[bytes]:
        """The content from there on, once some of it has come."""
        zstd = self._zstd and (await self._offered.offer()).zstd
        content = self._content(digest, start, zstd)
        first = await anext(content, b"")
        return _resumed(first, content)

    async def _content(self, digest: Digest, start: int, zstd: bool) -> AsyncIterator[bytes]:
        decoder = Decompressor(digest.size - start)
        messages = self._wire.read(digest, start, zstd)
        async with aclosing(messages):
            async for data, packed in messages:
                if not packed:
                    yield bytes(data)
                    continue
                try:
                    for piece in decoder.feed(data):
                        yield piece
                except RemoteError as error:
                    log.warning("upstream's zstd is of no use; it goes plainly from now on",
                                extra={"error": str(error)})  # fmt: skip
                    self._zstd = False
                    raise Unavailable(str(error)) from None

    async def _counted(
        self, digest: Digest, start: int, messages: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        """The messages joined into pieces, of as many bytes as the digest says."""
        offset = start
        held: list[bytes] = []
        size = 0
        try:
            async for message in messages:
                offset += len(message)
                if offset > digest.size:
                    break
                held.append(message)
                size += len(message)
                # Readers wait for the first of them.
                if size >= JOINED or offset == start + len(message):
                    yield b"".join(held)
                    held, size = [], 0
        except (Absent, Refused) as error:
            raise Broken(str(error)) from error
        if offset != digest.size:
            await self._is_wrong(digest, offset)
        if held:
            yield b"".join(held)

    async def _read_many(self, digests: list[Digest]) -> list[bytes | Exception]:
        answers = await self._calls.ask(
            "get", lambda: self._wire.read_many(digests, False), size=sum(map(cost, digests))
        )
        return [
            answer.data if isinstance(answer, Parcel) else translated(answer) for answer in answers
        ]


async def _one(data: bytes) -> AsyncIterator[bytes]:
    if data:
        yield data


async def _resumed(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first:
        yield first
        try:
            async for piece in rest:
                yield piece
        except CasError as error:
            raise translated(error) from error
