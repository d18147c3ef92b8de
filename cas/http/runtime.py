"""asyncio as `cas.reapi.runtime.Runtime`: waiting for the committer and for helper threads.

Rule: made once for each loop; nothing else here starts a thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from cas.store.pending import Pending

T = TypeVar("T")


class LoopRuntime:
    """See `Runtime`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: int) -> None:
        self._loop = loop
        self._done: deque[asyncio.Future[None]] = deque()
        self._waking = False
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="cas-http")

    async def wait(self, pending: Pending[T], /) -> T:
        if not pending.done:
            done: asyncio.Future[None] = self._loop.create_future()

            def wake() -> None:
                # Those that one commit resolves wake the loop once.
                self._done.append(done)
                if not self._waking:
                    self._waking = True
                    # Not once the loop is closed: nobody waits then.
                    with suppress(RuntimeError):
                        self._loop.call_soon_threadsafe(self._wake)

            pending.add_done_callback(wake)
            await done
        return pending.result()

    async def offload(self, function: Callable[..., T], /, *args: Any) -> T:
        return await self._loop.run_in_executor(self._pool, function, *args)

    def _wake(self) -> None:
        self._waking = False
        while self._done:
            done = self._done.popleft()
            if not done.done():
                done.set_result(None)

    def close(self) -> None:
        """Waits for what was begun."""
        self._pool.shutdown()
