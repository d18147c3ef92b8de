"""What nobody waits for, until it is worth a commit.

Rule: nothing stays for longer than `SECONDS`, and no more than `MOST` at once: whoever keeps
bytes in memory until they are committed keeps few, and not for long.  What somebody waits for
takes along all that is here.
"""

from __future__ import annotations

import threading
import time
from typing import Generic, TypeVar

T = TypeVar("T")

SECONDS = 0.025
MOST = 16


class Later(Generic[T]):
    """`add` from any thread, the rest from one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items: list[T] = []
        self.deadline = float("inf")
        """When the first of them has waited for long enough, by `time.monotonic`."""

    def add(self, item: T) -> bool:
        """Whether `deadline` has become another, so that whoever sleeps until then is to look."""
        with self._lock:
            self._items.append(item)
            count = len(self._items)
            if count == 1:
                self.deadline = time.monotonic() + SECONDS
            elif count == MOST:
                self.deadline = 0.0
            else:
                return False
            return True

    def due(self, now: float) -> bool:
        return now >= self.deadline

    def take(self) -> list[T]:
        with self._lock:
            items, self._items = self._items, []
            self.deadline = float("inf")
        return items
