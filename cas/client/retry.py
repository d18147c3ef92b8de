"""When to try again, and after how long.

Rule: only `Unavailable` is worth another try.  Pauses double up to a limit and are drawn at
random from nothing to that ("full jitter": a fleet that lost its cache at one moment must
not come back at one moment).  A try that got somewhere is not held against the next.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from cas.client.errors import Unavailable

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Retry:
    """`attempts` in a row without progress; pauses up to `first` seconds, doubling, up to
    `longest`."""

    attempts: int = 6
    first: float = 0.2
    longest: float = 8.0

    def longest_pause(self, failures: int) -> float:
        """The most seconds to wait after that many failures in a row."""
        return min(self.longest, self.first * 2.0 ** min(failures - 1, 60))


class Patience:
    """How many failures in a row one piece of work has had."""

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self._failures = 0

    def progress(self) -> None:
        """Something arrived: start counting anew."""
        self._failures = 0

    async def failed(self, error: Unavailable) -> None:
        """Waits before the next try, or raises `error` when there is none."""
        self._failures += 1
        if self._failures >= self._retry.attempts:
            raise error
        await asyncio.sleep(random.uniform(0, self._retry.longest_pause(self._failures)))


async def retried(retry: Retry, work: Callable[[], Awaitable[T]]) -> T:
    """`work`'s result; it is begun anew each time the remote is unavailable."""
    patience = Patience(retry)
    while True:
        try:
            return await work()
        except Unavailable as error:
            await patience.failed(error)
