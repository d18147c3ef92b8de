"""Requests to an object store, with patience: time-outs, retries, the breaker, at most so many.

Rule: the only caller of `objects.Objects`.  Runs on one loop.  What comes out is an answer, or
Absent, or `Unavailable`, which the protocols tell as such; never an obstore error.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from cas.errors import Unavailable
from cas.metrics.instruments import Metrics
from cas.upstream.counts import Counts
from cas.upstream.objects import Absent, Broken, Entry, Object, Objects, Refused, UpstreamError
from cas.upstream.patience import Breaker, Budget, backoff

T = TypeVar("T")

ATTEMPTS = 4
"""Of one request, retries included."""

log = logging.getLogger("cas.upstream")


@dataclass(frozen=True, slots=True)
class Patience:
    """What an operator chooses."""

    timeout: float = 10.0
    """Seconds for an answer's head, and in which something must come or go."""
    concurrency: int = 64
    """Requests under way at once, in one process."""


class Asking:
    """See `objects.Objects`."""

    def __init__(
        self,
        objects: Objects,
        patience: Patience,
        counts: Counts | None = None,
        *,
        draw: Callable[[], float] = random.random,
        breaker: Breaker | None = None,
    ) -> None:
        self._objects = objects
        self._patience = patience
        self._counts = counts or Counts(Metrics())
        self._draw = draw
        self._slots = asyncio.Semaphore(patience.concurrency)
        self._budget = Budget()
        self.breaker = breaker or Breaker()

    async def head(self, key: str) -> int:
        """The object's size.  Raises Absent."""
        return await self._ask("head", lambda: self._objects.head(key))

    async def whole(self, key: str, most: int) -> bytes | None:
        """An object; None where it has more than `most` bytes.  Raises Absent."""

        async def get() -> bytes | None:
            found = await self._objects.get(key, 0, None)
            if found.size > most:
                return None
            # Nobody can use a part of it, so all of it is one request with one time-out.
            return b"".join([piece async for piece in found.pieces()])

        return await self._ask("get", get)

    async def part(self, key: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end`.  Raises Absent."""

        async def get() -> bytes:
            found = await self._objects.get(key, start, end)
            data = b"".join([piece async for piece in found.pieces()])
            if len(data) != min(end, found.size) - start:
                raise Broken(f"{key}: {len(data)} bytes came, not {end - start}")
            return data

        return await self._ask("get", get)

    async def coming(self, key: str, start: int) -> tuple[int, AsyncIterator[bytes]]:
        """The object's size, and its bytes from `start` on.  They may end in Broken: whoever
        took some goes on from there.  Raises Absent."""
        found = await self._ask("get", lambda: self._objects.get(key, start, None))
        return found.size, self._pieces(found)

    async def put(self, key: str, data: bytes) -> None:
        await self._ask("put", lambda: self._objects.put(key, data))

    async def put_parts(self, key: str, parts: Callable[[], AsyncIterator[bytes]]) -> None:
        """`parts` begins anew for each attempt.  Time counts from one part to the next."""

        async def put() -> None:
            moved = asyncio.get_running_loop().time
            limit = asyncio.timeout(self._patience.timeout)

            async def watched() -> AsyncIterator[bytes]:
                async for part in parts():
                    limit.reschedule(moved() + self._patience.timeout)
                    yield part
                limit.reschedule(moved() + self._patience.timeout)

            async with limit:
                await self._objects.put_parts(key, watched())

        await self._ask("put", put, timed=False)

    async def copy(self, source: str, target: str) -> None:
        """Raises Absent."""
        await self._ask("copy", lambda: self._objects.copy(source, target))

    async def delete(self, key: str) -> None:
        await self._ask("delete", lambda: self._objects.delete(key))

    async def listed(self, prefix: str) -> list[Entry]:
        """The objects below `prefix`, which are few enough to be held."""

        async def entries() -> list[Entry]:
            return [entry async for batch in self._objects.list(prefix) for entry in batch]

        return await self._ask("list", entries)

    async def retry(self, attempt: int, error: UpstreamError) -> None:
        """Waits before retry number `attempt` of what broke with `error`; raises Unavailable
        where there is to be none."""
        if attempt + 1 >= ATTEMPTS or isinstance(error, Refused) or not self._budget.take():
            raise Unavailable(f"upstream fails: {error}") from error
        self._counts.retries.add()
        await asyncio.sleep(backoff(attempt, self._draw()))

    async def _pieces(self, found: Object) -> AsyncIterator[bytes]:
        pieces = found.pieces()
        while True:
            try:
                async with asyncio.timeout(self._patience.timeout):
                    piece = await anext(pieces, b"")
            except TimeoutError:
                error = Broken(f"nothing came for {self._patience.timeout:g} s")
                self._failed(error)
                raise error from None
            except Broken as error:
                self._failed(error)
                raise
            if not piece:
                return
            yield piece

    async def _ask(
        self, operation: str, make: Callable[[], Awaitable[T]], *, timed: bool = True
    ) -> T:
        self._budget.asked()
        attempt = 0
        while True:
            try:
                return await self._try(operation, make, timed=timed)
            except (Broken, Refused) as error:
                await self.retry(attempt, error)
                attempt += 1

    async def _try(self, operation: str, make: Callable[[], Awaitable[T]], *, timed: bool) -> T:
        async with self._slots:
            if not self.breaker.admits():
                raise Unavailable("upstream failed lately, and is not asked for a moment")
            outcome = "failed"
            began = time.monotonic()
            try:
                async with asyncio.timeout(self._patience.timeout if timed else None):
                    answer = await make()
            except Absent:
                outcome = "absent"
                self._succeeded()
                raise
            except TimeoutError:
                outcome = "late"
                error = Broken(f"no answer within {self._patience.timeout:g} s")
                self._failed(error)
                raise error from None
            except UpstreamError as error:
                outcome = "refused" if isinstance(error, Refused) else "failed"
                self._failed(error)
                raise
            except BaseException:
                # Given up by who asked.
                self.breaker.dropped()
                raise
            else:
                outcome = "ok"
                self._succeeded()
                return answer
            finally:
                self._counts.asked(operation, outcome, time.monotonic() - began)

    def _succeeded(self) -> None:
        if self.breaker.succeeded():
            self._counts.down.set(0.0)
            log.warning("upstream answers again")

    def _failed(self, error: UpstreamError) -> None:
        if self.breaker.failed():
            self._counts.down.set(1.0)
            log.error("upstream fails; what is here is served", extra={"error": str(error)})
