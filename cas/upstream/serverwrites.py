"""Blobs' bytes to a server upstream.

Rule: small blobs that are to go at a time go together, larger ones as streams, which go on after a
break at what the server has kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from functools import partial

from cas.client.errors import Unavailable
from cas.client.overgrpc import GrpcWire
from cas.client.wire import Parcel
from cas.digest import Digest
from cas.upstream.gathering import Gathered
from cas.upstream.holder import Parts
from cas.upstream.objects import Broken, Denied, Refused
from cas.upstream.servercalls import Calls, Unserved, translated
from cas.upstream.serveroffer import BATCH, Offered, cost


class Writes:
    """One process's, on one loop."""

    def __init__(self, wire: GrpcWire, calls: Calls, offered: Offered) -> None:
        self._wire = wire
        self._calls = calls
        self._offered = offered
        self._writing: Gathered[tuple[Digest, bytes], None] = Gathered(
            self._write_many,
            kind=lambda one: one[0].function.code,
            cost=lambda one: cost(one[0]),
            most=BATCH,
        )

    async def put(self, digest: Digest, data: bytes) -> None:
        if await self._offered.batches(digest):
            try:
                await self._calls.patient(partial(self._writing, (digest, data)))
            except Unserved:
                self._offered.has_no_batches()
            else:
                self._calls.took()
                return
        await self.put_parts(digest, partial(_parts_of, data))

    async def put_parts(self, digest: Digest, parts: Parts) -> None:
        name = self._wire.upload_name(digest, False)
        offset = attempt = 0
        while True:
            try:
                await self._calls.write(partial(self._write, digest, name, offset, parts))
                break
            except Denied as error:
                if not offset:
                    await self._calls.retry(attempt, error)
                # It will not go on from there.
                name, offset = self._wire.upload_name(digest, False), 0
            except (Broken, Refused) as error:
                await self._calls.retry(attempt, error)
                committed = partial(self._wire.committed, name)
                reached = await self._calls.ask("put", committed, writes=True)
                if reached >= digest.size:
                    break
                if reached > offset:
                    attempt = -1
                elif not reached:
                    name = self._wire.upload_name(digest, False)
                offset = reached
            attempt += 1
        self._calls.took()

    async def _write(self, digest: Digest, name: str, offset: int, parts: Parts) -> None:
        now = asyncio.get_running_loop().time
        pieces = parts(offset)
        async with asyncio.timeout(self._calls.trying.timeout) as limit:

            async def pull() -> bytes:
                # What was pulled before has gone.
                limit.reschedule(now() + self._calls.trying.timeout)
                return await anext(pieces, b"")

            size = await self._wire.write(digest, name, offset, pull, False)
        if 0 <= size < digest.size:
            raise Unavailable(f"it kept {size} of {digest.size} bytes")

    async def _write_many(self, blobs: list[tuple[Digest, bytes]]) -> list[Exception | None]:
        parcels = [Parcel(digest, data) for digest, data in blobs]
        answers = await self._calls.ask(
            "put",
            lambda: self._wire.write_many(parcels),
            size=sum(cost(digest) for digest, _ in blobs),
            writes=True,
        )
        return [answer and translated(answer, writes=True) for answer in answers]


async def _parts_of(data: bytes, start: int) -> AsyncGenerator[bytes, None]:
    for at in range(start, len(data), 1 << 20):
        yield data[at : at + (1 << 20)]
