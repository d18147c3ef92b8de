"""Waiting for other threads without asyncio: what handlers on the cq engine yield, and for whom.

Rule: knows threads and coroutines, nothing of gRPC or of calls.  A coroutine yields a `Wait`;
whoever runs it makes itself the wait's waiter, and resumes the coroutine, with `CANCELLED` or
anything else, when it was woken.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import types
from collections.abc import Callable, Generator
from typing import Any, Final, Protocol, TypeVar

from cas.rpc.handler import Pending

T = TypeVar("T")

CANCELLED: Final = object()
"""What a wait is resumed with, once, when its call was cancelled."""


class Waiter(Protocol):
    """Runs the coroutine that waits."""

    def wake(self, wait: Wait, /) -> None:
        """What `wait` is for has come.  From any thread; perhaps more than once, or too late."""


class Wait:
    """One await of another thread's result."""

    __slots__ = ("is_done", "waiter")

    def __init__(self) -> None:
        self.is_done = False
        self.waiter: Waiter | None = None

    def done(self) -> None:
        # In this order.  The waiter does the reverse, makes itself known and then looks, so
        # that one of the two sees what the other has done.
        self.is_done = True
        waiter = self.waiter
        if waiter is not None:
            waiter.wake(self)


class Work(Wait):
    """A function for a helper to call."""

    __slots__ = ("_arguments", "_error", "_function", "_value")

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        super().__init__()
        # Popped by who calls it or who withdraws it: only one of them can.
        self._function = [function]
        self._arguments = arguments
        self._value: Any = None
        self._error: BaseException | None = None

    def withdraw(self) -> bool:
        """Whether the function will not be called any more, nor is being called."""
        return bool(self._function) and self._take() is not None

    def run(self) -> None:
        function = self._take()
        if function is None:
            return
        try:
            self._value = function(*self._arguments)
        except BaseException as error:  # noqa: BLE001 - raised where it is awaited
            self._error = error
        self.done()

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._value

    def _take(self) -> Callable[..., Any] | None:
        try:
            return self._function.pop()
        except IndexError:
            return None


class Helpers:
    """A few threads.

    `concurrent.futures.ThreadPoolExecutor` costs 13 µs of CPU a function, this 4: each of its
    futures has a condition of its own, which nobody waits on here.
    """

    def __init__(self, count: int) -> None:
        self._work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"rpc-helper_{number}", daemon=True)
            for number in range(count)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def submit(self, work: Work) -> None:
        self._work.put(work)

    def stop(self) -> None:
        """Returns when all work is done."""
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work.run()
            # It holds the call that waited for it.
            del work


class WaitRuntime:
    """A `cas.rpc.handler.Runtime`."""

    def __init__(self, helpers: Helpers) -> None:
        self._helpers = helpers

    @types.coroutine
    def wait(self, pending: Pending[T], /) -> Generator[Any, Any, T]:
        wait = Wait()
        pending.add_done_callback(wait.done)
        if not wait.is_done and (yield wait) is CANCELLED:
            raise asyncio.CancelledError
        return pending.result()

    @types.coroutine
    def offload(self, function: Callable[..., T], /, *args: Any) -> Generator[Any, Any, T]:
        work = Work(function, args)
        self._helpers.submit(work)
        if (yield work) is CANCELLED:
            if not work.withdraw():
                yield work
            raise asyncio.CancelledError
        result: T = work.result()
        return result
