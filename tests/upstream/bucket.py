"""An object store in memory that a test can watch, stop and break.  See `objects.Objects`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager

from cas.upstream.objects import Absent, Aged, Broken, Entry, Object, Refused, UpstreamError


class Gate:
    """Opened by a test's thread, waited for by loops."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def passed(self) -> None:
        # Opened by another thread.
        while not self._open.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


class Bucket:
    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        """(operation, key), in order."""
        self.under_way = 0
        self.most_under_way = 0
        self.gate = Gate()
        """Of all requests but `get`'s bodies."""
        self.bodies = Gate()
        """Of what follows a body's first two pieces."""
        self.errors: list[UpstreamError] = []
        """What the next requests end in."""
        self.error: UpstreamError | None = None
        """What every request ends in."""
        self.refused: set[str] = set()
        """Objects of which every request is refused."""
        self.breaks_at: list[int] = []
        """Offsets at which bodies break off, each once."""
        self.piece = 1 << 20
        self.ages: dict[str, float] = {}
        """Seconds, of those that are not new."""

    def count(self, operation: str, key: str = "") -> int:
        return sum(1 for asked, name in self.asked if asked == operation and key in name)

    @contextmanager
    def _request(self, operation: str, key: str) -> Iterator[None]:
        self.asked.append((operation, key))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if self.errors:
                raise self.errors.pop(0)
            if self.error is not None:
                raise self.error
            if key in self.refused:
                raise Refused(key)
            yield
        finally:
            self.under_way -= 1

    def _find(self, key: str) -> bytes:
        if key not in self.objects:
            raise Absent(key)
        return self.objects[key]

    async def head(self, key: str, /) -> int:
        with self._request("head", key):
            await self.gate.passed()
            return len(self._find(key))

    async def look(self, key: str, /) -> Aged:
        return Aged(await self.head(key), self.ages.get(key, 0.0))

    async def get(self, key: str, start: int, end: int | None, /) -> Object:
        with self._request("get" if end is None else "part", key):
            await self.gate.passed()
            return _Body(self, key, self._find(key), start, end)

    async def put(self, key: str, data: bytes, /) -> None:
        with self._request("put", key):
            await self.gate.passed()
            self.objects[key] = bytes(data)

    async def put_parts(self, key: str, parts: AsyncIterator[bytes], /) -> None:
        with self._request("put", key):
            await self.gate.passed()
            self.objects[key] = b"".join([bytes(part) async for part in parts])

    async def copy(self, source: str, target: str, /) -> None:
        with self._request("copy", source):
            self.objects[target] = self._find(source)
            self.ages.pop(target, None)

    async def delete(self, key: str, /) -> None:
        with self._request("delete", key):
            self.objects.pop(key, None)

    async def list(self, prefix: str, /) -> AsyncIterator[Sequence[Entry]]:
        yield [
            Entry(key, len(data)) for key, data in self.objects.items() if key.startswith(prefix)
        ]


class _Body:
    def __init__(self, bucket: Bucket, key: str, data: bytes, start: int, end: int | None) -> None:
        self._bucket = bucket
        self._data = data
        self._start = start
        self._end = len(data) if end is None else min(end, len(data))
        self._gated = end is None
        self.size = len(data)
        self.age = bucket.ages.get(key, 0.0)

    async def pieces(self) -> AsyncIterator[bytes]:
        bucket = self._bucket
        for number, at in enumerate(range(self._start, self._end, bucket.piece)):
            if self._gated and number >= 2:
                await bucket.bodies.passed()
            end = min(at + bucket.piece, self._end)
            for offset in bucket.breaks_at:
                if at <= offset < end:
                    bucket.breaks_at.remove(offset)
                    raise Broken("the connection broke")
            yield self._data[at:end]
