"""What upstream was found to have, and not to have, a short while ago.

Rule: pure but for the clock; bounded in number and age.  An object that is there may go by the
bucket's own rules, so "there" is believed for a time far below those; an object that is not
there may come at any moment from another node, so "not there" is believed for seconds, and only
where being wrong costs a client an upload and nothing else.  Used by one thread.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class MemoryOptions:
    """What an operator chooses."""

    keys: int = 200_000
    """Most that are remembered of each kind, in one process; about 200 bytes each."""
    there_seconds: float = 600.0
    absent_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class SharedOptions:
    """What an operator chooses of the memory that nodes share (`shared`)."""

    url: str
    """As redis-py takes them: ``redis://host:6379/0``, ``rediss://``, ``unix:///path``."""
    store: str
    """Which object store it is about: several may share one Redis."""
    seconds: float = 86_400.0
    """For which an entry is believed."""
    timeout: float = 1.0
    """Seconds for an answer: later, the object store would have been quicker."""


class Memory:
    """Keys of blobs and action results, as `cas.digest` and `cas.index` form them."""

    def __init__(self, options: MemoryOptions, clock: Callable[[], float] = time.monotonic) -> None:
        self._there = _Aged(options.keys, options.there_seconds, clock)
        self._absent = _Aged(options.keys, options.absent_seconds, clock)

    def add(self, key: bytes) -> None:
        """Upstream has it."""
        self._absent.discard(key)
        self._there.add(key)

    def add_absent(self, key: bytes) -> None:
        self._there.discard(key)
        self._absent.add(key)

    def has(self, key: bytes) -> bool:
        """Whether upstream is known to have it."""
        return key in self._there

    def lacks(self, key: bytes) -> bool:
        """Whether upstream is known not to have had it a moment ago."""
        return key in self._absent

    def unknown(self, keys: Iterable[bytes]) -> list[bytes]:
        return [key for key in keys if key not in self._there and key not in self._absent]


class Latest(Generic[V]):
    """Values by a key, the last so many that were added."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[bytes, V] = OrderedDict()

    def __contains__(self, key: bytes) -> bool:
        return key in self._values

    def get(self, key: bytes) -> V | None:
        return self._values.get(key)

    def add(self, key: bytes, value: V) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._most:
            self._values.popitem(last=False)

    def discard(self, key: bytes) -> None:
        self._values.pop(key, None)


class _Aged:
    """A set whose members go when they are old, oldest first when there are too many."""

    def __init__(self, most: int, seconds: float, clock: Callable[[], float]) -> None:
        self._most = most
        self._seconds = seconds
        self._clock = clock
        # In the order of their ends, since each is put last when it is added.
        self._ends: OrderedDict[bytes, float] = OrderedDict()

    def __contains__(self, key: bytes) -> bool:
        end = self._ends.get(key)
        return end is not None and end > self._clock()

    def add(self, key: bytes) -> None:
        now = self._clock()
        ends = self._ends
        ends[key] = now + self._seconds
        ends.move_to_end(key)
        while len(ends) > self._most:
            ends.popitem(last=False)
        # Two at most: what is old goes faster than it comes, and no call pays for all of it.
        for _ in range(2):
            if ends and ends[next(iter(ends))] <= now:
                ends.popitem(last=False)

    def discard(self, key: bytes) -> None:
        self._ends.pop(key, None)
