"""What the nodes of a fleet know together of the object store: an index in Redis or Valkey.

Rule: the only importer of redis; a hint, never the truth.  It is asked once for all of a request.
What it has is believed to be there; what it has not may be there nevertheless, so that its loss
costs clients uploads and nothing else.  While it cannot be had the object store is asked, as if
there were none.  Runs on one loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from cas.errors import ConfigError
from cas.upstream.counts import Counts
from cas.upstream.memory import SharedOptions
from cas.upstream.patience import Breaker

T = TypeVar("T")

GATHER_SECONDS = 0.01
"""For which what was found and sent is gathered, to be entered together, …"""
ENTER_MOST = 1_000
"""… so much of it at once."""

log = logging.getLogger("cas.upstream")


class Shared:
    """See the module."""

    def __init__(self, options: SharedOptions, counts: Counts) -> None:
        """Raises ConfigError; nothing is asked yet."""
        # Short, since it is stored with every key.
        self._prefix = b"cas1" + hashlib.sha256(options.store.encode()).digest()[:6]
        self._milliseconds = max(1, int(options.seconds * 1000))
        self._timeout = options.timeout
        self._counts = counts
        self._breaker = Breaker()
        self._found: set[bytes] = set()
        self._entering: asyncio.Task[None] | None = None
        try:
            self._redis = Redis.from_url(
                options.url,
                socket_timeout=options.timeout,
                socket_connect_timeout=options.timeout,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
        except ValueError as error:
            # Not the URL, which may hold a password.
            raise ConfigError(f"upstream_index: {error}") from error

    async def present(self, keys: Sequence[bytes]) -> set[bytes] | None:
        """Those of `keys` that the fleet knows to be there: one round trip.  None where the index
        cannot be had."""
        names = [self._prefix + key for key in keys]
        found = await self._ask(lambda: self._redis.mget(names))
        if found is None:
            return None
        return {key for key, value in zip(keys, found, strict=True) if value is not None}

    def add(self, key: bytes) -> None:
        """It is there.  Entered soon, or not at all."""
        self._found.add(key)
        if self._entering is None:
            self._entering = asyncio.get_running_loop().create_task(self._enter())

    async def forget(self, key: bytes) -> None:
        """It is there no more."""
        self._found.discard(key)
        await self._ask(lambda: self._redis.delete(self._prefix + key))

    async def close(self) -> None:
        await self._redis.aclose()

    async def _enter(self) -> None:
        await asyncio.sleep(GATHER_SECONDS)
        while self._found:
            some = [self._found.pop() for _ in range(min(ENTER_MOST, len(self._found)))]
            pipeline = self._redis.pipeline(transaction=False)
            for key in some:
                pipeline.set(self._prefix + key, b"", px=self._milliseconds)
            await self._ask(pipeline.execute)
        self._entering = None

    async def _ask(self, ask: Callable[[], Awaitable[T]]) -> T | None:
        if not self._breaker.admits():
            return None
        try:
            async with asyncio.timeout(self._timeout):
                answer = await ask()
        except (RedisError, OSError, TimeoutError) as error:
            self._counts.index_failed.add()
            if self._breaker.failed():
                log.error("the shared index fails; the object store is asked", extra=_why(error))
            return None
        except BaseException:
            self._breaker.dropped()
            raise
        self._counts.index_asked.add()
        if self._breaker.succeeded():
            log.warning("the shared index answers again")
        return answer


def _why(error: BaseException) -> dict[str, str]:
    return {"error": str(error) or type(error).__name__}
