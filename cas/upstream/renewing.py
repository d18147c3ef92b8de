"""Objects that are used are kept young, so that a bucket's own rules expire those that are not.

Rule: runs on one loop.  An object that is asked for, and was written or renewed longer ago than
an operator chose, is copied onto itself.  Its age is the only record of when, so that no node
needs to know what others do, and each is renewed about once in that time however many use it.
Nobody waits for it; a failure is the log's alone, and nothing against the object store's health.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

from cas.upstream.objects import Absent, Aging, Entry, Object, UpstreamError

PER_SECOND = 20.0
"""Copies that are begun by one process."""
WAITING = 10_000
"""Objects that wait to be copied; more are found old again the next time."""
PATIENCE = 60.0
"""Seconds for one copy, which the object store makes by itself."""

log = logging.getLogger("cas.upstream")


class Renewing:
    """See `objects.Objects`."""

    def __init__(self, objects: Aging, seconds: float, *, pause: float = 1 / PER_SECOND) -> None:
        """`seconds` is the age from which an object is renewed when it is used."""
        self._objects = objects
        self._seconds = seconds
        self._pause = pause
        self._old: dict[str, None] = {}
        self._task: asyncio.Task[None] | None = None
        self._fails = False
        self.put = objects.put
        self.put_parts = objects.put_parts
        self.copy = objects.copy
        self.delete = objects.delete

    async def head(self, key: str, /) -> int:
        found = await self._objects.look(key)
        self._used(key, found.age)
        return found.size

    async def get(self, key: str, start: int, end: int | None, /) -> Object:
        found = await self._objects.get(key, start, end)
        self._used(key, found.age)
        return found

    def list(self, prefix: str, /) -> AsyncIterator[Sequence[Entry]]:
        return self._objects.list(prefix)

    def _used(self, key: str, age: float) -> None:
        if age < self._seconds or len(self._old) >= WAITING:
            return
        self._old[key] = None
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._renew())

    async def _renew(self) -> None:
        try:
            while self._old:
                key = next(iter(self._old))
                try:
                    async with asyncio.timeout(PATIENCE):
                        await self._objects.copy(key, key)
                except Absent:
                    pass
                except (UpstreamError, TimeoutError) as error:
                    self._failed(key, error)
                else:
                    self._fails = False
                self._old.pop(key, None)
                await asyncio.sleep(self._pause)
        finally:
            self._task = None

    def _failed(self, key: str, error: Exception) -> None:
        if not self._fails:
            self._fails = True
            log.error(
                "an object cannot be renewed upstream: the bucket's rules may expire what is used",
                extra={"object": key, "error": str(error) or type(error).__name__},
            )
