"""Work that goes on if nobody waits for it any more.

Rule: knows nothing of what is done.  Threads of its own, a few, do it in the order in which it
came, so that what takes long holds up nothing else; so much may wait, and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, TypeVar

from cas.errors import LimitExceeded
from cas.store.pending import Pending

T = TypeVar("T")


class Background:
    """Any thread may ask."""

    def __init__(self, name: str, threads: int, most: int, under_way: str) -> None:
        """`most` may wait or run; `under_way` goes on after their number: "fetches are under
        way"."""
        self._threads = ThreadPoolExecutor(threads, name)
        self._most = most
        self._under_way = under_way
        self._lock = Lock()
        self._running: dict[Hashable, Pending[Any]] = {}
        self.ended = False
        """For what runs, which is to come to its end then."""

    def begin(self, work: Callable[[], T], what: Hashable = None) -> Pending[T]:
        """What `work` comes to, or that which somebody began under the same name `what`.  Raises
        LimitExceeded."""
        with self._lock:
            if what is None:
                what = work
            running = self._running.get(what)
            if running is not None:
                return running
            if self.ended or len(self._running) >= self._most:
                raise LimitExceeded(f"{len(self._running)} {self._under_way}, {self._most} at most")
            pending: Pending[T] = Pending()
            self._running[what] = pending
            self._threads.submit(self._run, what, pending, work)
        return pending

    def close(self) -> None:
        """*Blocking.*  Waits for all of it."""
        with self._lock:
            self.ended = True
        self._threads.shutdown(wait=True)

    def _run(self, what: Hashable, pending: Pending[T], work: Callable[[], T]) -> None:
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - whoever waits gets it, whatever it is
            self._is_over(what)
            pending.fail(error)
        else:
            self._is_over(what)
            pending.resolve(result)

    def _is_over(self, what: Hashable) -> None:
        with self._lock:
            del self._running[what]
