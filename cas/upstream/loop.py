"""The loop that asks upstream, on a thread of its own.

Rule: one for each process that has an upstream.  A loop, because a thousand questions that wait
for an answer are a thousand small objects here and would be a thousand threads otherwise; a thread
of its own, because an engine's loop is not asyncio's, and what it serves from here must not wait
behind what comes from there.  Whoever asks gets a `Pending`, as from the committer.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import uvloop

from cas.errors import StoreClosed
from cas.store.pending import Pending

T = TypeVar("T")

THREADS = 4
"""For what waits for the local disk, and for hashing."""


class Loop:
    """Any thread may call `run`."""

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._pool = ThreadPoolExecutor(THREADS, "cas-upstream")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="cas-upstream", daemon=True)
        self._thread.start()

    def run(self, make: Callable[[], Coroutine[Any, Any, T]]) -> Pending[T]:
        """What the coroutine that `make` makes comes to.  StoreClosed where the loop ends first."""
        pending: Pending[T] = Pending()

        def start() -> None:
            self._keep(self._loop.create_task(_settle(make, pending)))

        with self._lock:
            if not self._closed:
                self._loop.call_soon_threadsafe(start)
                return pending
        pending.fail(StoreClosed("the store is closed"))
        return pending

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """On the loop: has it run on its own."""
        self._keep(self._loop.create_task(work))

    async def offload(self, function: Callable[..., T], *args: Any) -> T:
        """On the loop: the function's result, from a thread of a few."""
        return await self._loop.run_in_executor(self._pool, function, *args)

    def close(self) -> bool:
        """*Blocking.*  Ends whatever runs; False where it had ended already."""
        with self._lock:
            if self._closed:
                return False
            self._closed = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        return True

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _serve(self) -> None:
        loop = self._loop
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            self._pool.shutdown()
            loop.close()


async def _settle(make: Callable[[], Coroutine[Any, Any, T]], pending: Pending[T]) -> None:
    try:
        result = await make()
    except asyncio.CancelledError:
        pending.fail(StoreClosed("the store is closed"))
        raise
    except Exception as error:  # noqa: BLE001 - whoever waits gets it, whatever it is
        pending.fail(error)
    else:
        pending.resolve(result)


async def brought(pending: Pending[T]) -> T:
    """On a loop of asyncio: what another thread brings."""
    if not pending.done:
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def wake() -> None:
            # Closed: nobody waits any more.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(done.set)

        pending.add_done_callback(wake)
        await done.wait()
    return pending.result()
