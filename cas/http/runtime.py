"""asyncio as `cas.reapi.runtime.Runtime`: waiting for the committer and for helper threads.

Rule: made once for each loop; nothing else here starts a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from cas.store.pending import Pending

T = TypeVar("T")


SCRATCH_BYTES = 256 << 10


class LoopRuntime:
    """See `Runtime`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: int) -> None:
        self._loop = loop
        self.scratch = memoryview(bytearray(SCRATCH_BYTES))
        """For what is done with it at once, on the loop's thread: fresh memory would cost a page
        fault for every 4 KiB."""
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="cas-http")

    async def wait(self, pending: Pending[T], /) -> T:
        if not pending.done:
            done: asyncio.Future[None] = self._loop.create_future()

            def wake() -> None:
                # Not once the loop is closed: nobody waits then.
                with suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(_finish, done)

            pending.add_done_callback(wake)
            await done
        return pending.result()

    async def offload(self, function: Callable[..., T], /, *args: Any) -> T:
        return await self._loop.run_in_executor(self._pool, function, *args)

    def close(self) -> None:
        """Waits for what was begun."""
        self._pool.shutdown()


def _finish(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
