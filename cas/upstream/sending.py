"""Blobs that go upstream.

Rule: a blob is sent from the local store, after its commit there, and once however many ask; one
that is there already is not.  What upstream cannot take stays here.  Runs on the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from functools import partial

from cas import digest as digests
from cas.digest import Digest
from cas.store.interface import Blob
from cas.store.local import LocalStore
from cas.upstream.counts import Counts
from cas.upstream.existence import Existence
from cas.upstream.holder import Holder
from cas.upstream.loop import Loop

SENT_WHOLE = 8 << 20
"""Blobs up to this size, bytes, go in one request; larger ones go in parts."""
STREAMS = 16
"""Blobs that go at once in one process: each holds a few parts."""
READ = 1 << 20
"""Bytes that are read at once of what is sent."""


class Sending:
    """One process's."""

    def __init__(
        self, local: LocalStore, loop: Loop, holder: Holder, existence: Existence, counts: Counts
    ) -> None:
        self._local = local
        self._loop = loop
        self._holder = holder
        self._existence = existence
        self._counts = counts
        self._under_way: dict[bytes, asyncio.Task[None]] = {}
        self._at_once = asyncio.Semaphore(STREAMS)

    async def send(self, asked: Iterable[bytes], *, sure: bool = False, new: bool = False) -> None:
        """Returns once these blobs are upstream.  Raises NotFound where one is neither here nor
        there.  `sure` does without the memory of what was there a while ago; what is `new` is not
        looked for either, where that is a request of its own."""
        wanted = [
            key for key in dict.fromkeys(asked) if sure or not self._existence.memory.has(key)
        ]
        sending = [self._sent(key, new=new) for key in wanted]
        ended = await asyncio.gather(*sending, return_exceptions=True)
        for error in ended:
            if isinstance(error, BaseException):
                raise error

    async def _sent(self, key: bytes, *, new: bool) -> None:
        task = self._under_way.get(key)
        if task is None:
            send = self._send(digests.from_key(key), new=new)
            task = asyncio.get_running_loop().create_task(send)
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key))
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
        lacking = new or self._existence.memory.lacks(digest.key)
        if not lacking and await self._existence.has(digest):
            return
        data = self._local.read_small(digest)
        if data is None:
            async with self._at_once:
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
        self._existence.learn(digest.key)

    async def _parts(self, blob: Blob, begin: int) -> AsyncIterator[bytes]:
        for start in range(begin, blob.size, READ):
            yield await self._loop.offload(_read, blob, start, min(READ, blob.size - start))


def _read(blob: Blob, offset: int, size: int) -> bytes:
    data = bytearray(size)
    view = memoryview(data)
    done = 0
    while done < size:
        done += blob.read_into(view[done:], offset + done)
    return bytes(data)
