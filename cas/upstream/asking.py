"""Requests to an object store, with patience (`trying`).

Rule: the only caller of `objects.Objects`.  Runs on one loop.  What comes out is an answer, or
Absent, or `Unavailable`, which the protocols tell as such; never an obstore error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from cas.upstream.counts import Counts
from cas.upstream.objects import Broken, Entry, Objects
from cas.upstream.trying import Patience, Trying


class Asking:
    """See `objects.Objects`."""

    def __init__(self, objects: Objects, patience: Patience, counts: Counts | None = None) -> None:
        self._objects = objects
        self.trying = Trying(patience, counts)

    async def head(self, key: str) -> int:
        """The object's size.  Raises Absent."""
        return await self.trying.ask("head", lambda: self._objects.head(key))

    async def whole(self, key: str, most: int) -> bytes | None:
        """An object; None where it has more than `most` bytes.  Raises Absent."""

        async def get() -> bytes | None:
            found = await self._objects.get(key, 0, None)
            if found.size > most:
                return None
            # Nobody can use a part of it, so all of it is one request with one time-out.
            return b"".join([piece async for piece in found.pieces()])

        return await self.trying.ask("get", get)

    async def part(self, key: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end`.  Raises Absent."""

        async def get() -> bytes:
            found = await self._objects.get(key, start, end)
            data = b"".join([piece async for piece in found.pieces()])
            if len(data) != min(end, found.size) - start:
                raise Broken(f"{key}: {len(data)} bytes came, not {end - start}")
            return data

        return await self.trying.ask("get", get)

    async def coming(self, key: str, start: int) -> tuple[int, AsyncIterator[bytes]]:
        """The object's size, and its bytes from `start` on.  They may end in Broken: whoever
        took some goes on from there.  Raises Absent."""
        found = await self.trying.ask("get", lambda: self._objects.get(key, start, None))
        return found.size, self.trying.pieces(found.pieces())

    async def put(self, key: str, data: bytes) -> None:
        await self.trying.ask("put", lambda: self._objects.put(key, data))

    async def put_parts(self, key: str, parts: Callable[[], AsyncIterator[bytes]]) -> None:
        """`parts` begins anew for each attempt.  Time counts from one part to the next."""

        async def put() -> None:
            moved = asyncio.get_running_loop().time
            limit = asyncio.timeout(self.trying.timeout)

            async def watched() -> AsyncIterator[bytes]:
                async for part in parts():
                    limit.reschedule(moved() + self.trying.timeout)
                    yield part
                limit.reschedule(moved() + self.trying.timeout)

            async with limit:
                await self._objects.put_parts(key, watched())

        await self.trying.ask("put", put, seconds=0)

    async def copy(self, source: str, target: str) -> None:
        """Raises Absent."""
        await self.trying.ask("copy", lambda: self._objects.copy(source, target))

    async def delete(self, key: str) -> None:
        await self.trying.ask("delete", lambda: self._objects.delete(key))

    async def listed(self, prefix: str) -> list[Entry]:
        """The objects below `prefix`, which are few enough to be held."""

        async def entries() -> list[Entry]:
            return [entry async for batch in self._objects.list(prefix) for entry in batch]

        return await self.trying.ask("list", entries)
