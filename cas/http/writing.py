"""Whole blobs on their way into the store.

Rule: what needs no file is entered where it arrived; what does is written by one helper
thread at a time, which takes all that waits: several would spend half of their time on
handing the interpreter's lock to and fro, and what they write is synced together anyway.
"""

from __future__ import annotations

import asyncio

from cas.digest import Digest
from cas.http.runtime import LoopRuntime
from cas.store.interface import BlobStore
from cas.store.pending import Pending
from cas.store.room import in_room, short_of

MOST_AT_ONCE = 16
"""Blobs that one turn of the helper thread takes: those behind them wait no longer than that."""


class Writer:
    """One for each loop; for blobs of `bodies.WHOLE` bytes at most."""

    def __init__(self, store: BlobStore, runtime: LoopRuntime) -> None:
        self._store = store
        self._runtime = runtime
        self._waiting: list[tuple[Digest, bytes, asyncio.Future[Pending[None]]]] = []
        self._turn: asyncio.Task[None] | None = None

    async def put(self, digest: Digest, data: bytes) -> None:
        """Verifies and enters a blob.  Raises what `BlobStore.put` fails with."""
        if digest.size <= self._store.inline_threshold:
            pending = self._store.put([(digest, data)])[0]
        else:
            pending = await in_room(
                self._store, self._runtime.wait, digest.size, lambda: self._written(digest, data)
            )
        await self._runtime.wait(pending)

    async def _written(self, digest: Digest, data: bytes) -> Pending[None]:
        """Raises NoRoomYet."""
        begun: asyncio.Future[Pending[None]] = asyncio.get_running_loop().create_future()
        self._waiting.append((digest, data, begun))
        if self._turn is None:
            self._turn = asyncio.create_task(self._write())
        pending = await begun
        if short_of(pending):
            pending.result()
        return pending

    async def _write(self) -> None:
        try:
            while self._waiting:
                turn, self._waiting = self._waiting[:MOST_AT_ONCE], self._waiting[MOST_AT_ONCE:]
                blobs = [(digest, data) for digest, data, _ in turn]
                try:
                    results = await self._runtime.offload(self._store.put, blobs)
                except Exception as error:  # noqa: BLE001 - each of them must hear of it
                    for _, _, begun in turn:
                        begun.set_exception(error)
                    continue
                for (_, _, begun), pending in zip(turn, results, strict=True):
                    if not begun.done():
                        begun.set_result(pending)
        finally:
            self._turn = None
