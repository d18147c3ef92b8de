"""When each entry was used last: one number per serial, in a file that all processes map.

Rule: times only, and only whole minutes; nothing here is needed for correctness.  A use is
one store into shared memory: kept in LMDB, a busy cache would rewrite pages of its index
all day for having been read.  A killed process loses nothing that it stored; a power loss may
lose some of it, which `cas.index.aging.mend` makes good with the times of writing.

Layout: minutes since the epoch, 32 bits in the machine's order, at 4 × serial; 0 where there
is no entry (any more).  Writing an entry counts as a use of it.  Where there is none for long,
the file has holes, so that it takes room for what lives and not for every serial ever given.
"""

from __future__ import annotations

import errno
import os
import threading
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

from cas.index.mapped import Numbers

STEP = 1 << 20
"""Serials by which the file grows."""

STEP_BYTES = STEP * 4

PAGE = 1024
"""Serials in a page of the file: what a hole is made of."""

CHUNK = 1 << 18
"""Most serials that `UseTimes.chunks` gives at a time."""


class UseTimes:
    """The file at `path`, made if absent.  Any thread may call any method but `chunks`."""

    def __init__(self, path: Path) -> None:
        self._numbers = Numbers(path, "I", STEP)
        self._lock = threading.Lock()

    def enter(self, first: int, count: int, minute: int) -> None:
        """Notes that `count` entries, from serial `first` on, were written at `minute`.

        Raises NoSpace when the file cannot grow.
        """
        numbers = self._numbers
        with self._lock:
            end = first + count
            if end > len(numbers.view):
                numbers.reach(end - 1)
            numbers.view[first:end] = memoryview(array("I", (minute,)) * count)

    def store(self, serials: Iterable[int], minute: int) -> None:
        """Notes that the entries with these serials were used at `minute`.

        Raises NoSpace when the file cannot grow; what fitted was stored.
        """
        with self._lock:
            times = self._numbers.view
            known = len(times)
            for serial in serials:
                if serial >= known:
                    self._numbers.reach(serial)
                    times = self._numbers.view
                    known = len(times)
                times[serial] = minute

    def clear(self, serials: Iterable[int]) -> None:
        """Forgets entries that are gone."""
        with self._lock:
            known = self._numbers.grown()
            times = self._numbers.view
            for serial in serials:
                # Not where there is 0 already: that would fill holes.
                if serial < known and times[serial]:
                    times[serial] = 0

    def load(self, serial: int) -> int:
        """The minute of the entry's last use; 0 where none was stored."""
        numbers = self._numbers
        with self._lock:
            if serial >= len(numbers.view):
                numbers.grown()
            return numbers.view[serial] if serial < len(numbers.view) else 0

    # --- for the janitor ---------------------------------------------------------------

    def chunks(self) -> Iterator[tuple[int, memoryview]]:
        """All times but those in holes: (first serial, its and the following minutes), in
        ascending order.  For one thread that calls nothing else that may grow the map; a view
        is of no use once the next one is asked for."""
        numbers = self._numbers
        with self._lock:
            end = numbers.grown() * numbers.width
        at = 0
        while at < end:
            try:
                start = os.lseek(numbers.fd, at, os.SEEK_DATA)
            except OSError as error:
                # Only a hole is left.
                if error.errno == errno.ENXIO:
                    return
                raise
            stop = min(end, os.lseek(numbers.fd, start, os.SEEK_HOLE))
            first, last = start // numbers.width, stop // numbers.width
            while first < last:
                next_first = min(first + CHUNK, last)
                with numbers.view[first:next_first] as view:
                    yield first, view
                first = next_first
            at = max(stop, at + 1)

    def punch(self, first: int, count: int) -> bool:
        """Gives back the room of `count` serials from `first` on, multiples of `PAGE`; False
        where the file system cannot."""
        return self._numbers.punch(first, count)

    def disk_bytes(self) -> int:
        """What the file takes on disk."""
        return self._numbers.disk_bytes()

    def close(self) -> None:
        with self._lock:
            self._numbers.close()
