"""A result that another thread brings, once.

Rule: no waiting happens here.  Whoever needs the result adds a callback; an RPC
engine turns that into an await (`cas.rpc.handler.Runtime.wait`).

`concurrent.futures.Future` does the same with a lock and a condition of its own
for each result, which costs more than a small commit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

S = TypeVar("S")
T = TypeVar("T")


class Pending(Generic[T]):
    """Made by the side that owes the result; `resolve` or `fail` is called exactly once."""

    __slots__ = ("_callbacks", "_error", "_value", "done")

    _value: T

    def __init__(self) -> None:
        self.done = False
        self._error: BaseException | None = None
        # Filled and emptied by append and pop, which are atomic: each callback is taken by
        # exactly one thread, so none is lost or called twice.
        self._callbacks: list[Callable[[], None]] = []

    def resolve(self, value: T) -> None:
        self._value = value
        self._finish()

    def fail(self, error: BaseException) -> None:
        self._error = error
        self._finish()

    def add_done_callback(self, callback: Callable[[], None], /) -> None:
        """Calls `callback` once: from the resolving thread, or at once when already done."""
        self._callbacks.append(callback)
        if self.done:
            self._call()

    def result(self) -> T:
        """The value, or raises the error.  Only valid once `done`."""
        if self._error is not None:
            raise self._error
        return self._value

    def wait(self, timeout: float | None = None) -> T:
        """Blocks the calling thread; for threads that serve no calls.

        Raises TimeoutError after `timeout` seconds.
        """
        event = threading.Event()
        self.add_done_callback(event.set)
        if not event.wait(timeout):
            raise TimeoutError(f"no result after {timeout} s")
        return self.result()

    def _finish(self) -> None:
        self.done = True
        self._call()

    def _call(self) -> None:
        while True:
            try:
                callback = self._callbacks.pop()
            except IndexError:
                return
            callback()


def then(first: Pending[S], work: Callable[[S], Pending[T]]) -> Pending[T]:
    """What `work` makes of the result comes to, in the thread that brings it; fails as `first`
    does, or with what `work` raises."""
    out: Pending[T] = Pending()

    def settle(came: Pending[T]) -> None:
        try:
            value = came.result()
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it
            out.fail(error)
        else:
            out.resolve(value)

    def go_on() -> None:
        try:
            came = work(first.result())
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it
            out.fail(error)
        else:
            came.add_done_callback(lambda: settle(came))

    first.add_done_callback(go_on)
    return out


def resolved(value: T) -> Pending[T]:
    """A pending that is done already."""
    pending: Pending[T] = Pending()
    pending.resolve(value)
    return pending


def failed(error: BaseException) -> Pending[None]:
    pending: Pending[None] = Pending()
    pending.fail(error)
    return pending
