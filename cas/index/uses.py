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

import ctypes
import errno
import mmap
import os
import threading
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

from cas.errors import NoSpace

STEP = 1 << 20
"""Serials by which the file grows: 4 MiB, allocated at once, so that storing into the map
can never find the disk full (the system would end the process)."""

_WIDTH = 4

STEP_BYTES = STEP * _WIDTH

PAGE = 1024
"""Serials in a page of the file: what a hole is made of."""

CHUNK = 1 << 18
"""Most serials that `UseTimes.chunks` gives at a time."""


class UseTimes:
    """The file at `path`, made if absent.  Any thread may call any method but `chunks`."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._lock = threading.Lock()
        self._map: mmap.mmap | None = None
        self._times = memoryview(b"").cast("I")

    def enter(self, first: int, count: int, minute: int) -> None:
        """Notes that `count` entries, from serial `first` on, were written at `minute`.

        Raises NoSpace when the file cannot grow.
        """
        with self._lock:
            end = first + count
            if end > len(self._times):
                self._reach(end - 1)
            self._times[first:end] = memoryview(array("I", (minute,)) * count)

    def store(self, serials: Iterable[int], minute: int) -> None:
        """Notes that the entries with these serials were used at `minute`.

        Raises NoSpace when the file cannot grow; what fitted was stored.
        """
        with self._lock:
            times = self._times
            known = len(times)
            for serial in serials:
                if serial >= known:
                    self._reach(serial)
                    times = self._times
                    known = len(times)
                times[serial] = minute

    def clear(self, serials: Iterable[int]) -> None:
        """Forgets entries that are gone."""
        with self._lock:
            known = self._grown()
            times = self._times
            for serial in serials:
                # Not where there is 0 already: that would fill holes.
                if serial < known and times[serial]:
                    times[serial] = 0

    def load(self, serial: int) -> int:
        """The minute of the entry's last use; 0 where none was stored."""
        with self._lock:
            if serial >= len(self._times):
                self._grown()
            return self._times[serial] if serial < len(self._times) else 0

    # --- for the janitor ---------------------------------------------------------------

    def chunks(self) -> Iterator[tuple[int, memoryview]]:
        """All times but those in holes: (first serial, its and the following minutes), in
        ascending order.  For one thread that calls nothing else that may grow the map; a view
        is of no use once the next one is asked for."""
        with self._lock:
            end = self._grown() * _WIDTH
        at = 0
        while at < end:
            try:
                start = os.lseek(self._fd, at, os.SEEK_DATA)
            except OSError as error:
                # Only a hole is left.
                if error.errno == errno.ENXIO:
                    return
                raise
            stop = min(end, os.lseek(self._fd, start, os.SEEK_HOLE))
            first, last = start // _WIDTH, stop // _WIDTH
            while first < last:
                next_first = min(first + CHUNK, last)
                with self._times[first:next_first] as view:
                    yield first, view
                first = next_first
            at = max(stop, at + 1)

    def punch(self, first: int, count: int) -> bool:
        """Gives back the room of `count` serials from `first` on, multiples of `PAGE`; False
        where the file system cannot."""
        return punch_hole(self._fd, first * _WIDTH, count * _WIDTH)

    def disk_bytes(self) -> int:
        """What the file takes on disk."""
        return os.fstat(self._fd).st_blocks * 512

    def close(self) -> None:
        with self._lock:
            self._unmap()
            os.close(self._fd)

    # --- inside, under the lock ----------------------------------------------------------

    def _reach(self, serial: int) -> None:
        size = (serial // STEP + 1) * STEP * _WIDTH
        old = os.fstat(self._fd).st_size
        if old < size:
            try:
                # What is there already has its room, or holes that are to stay.
                os.posix_fallocate(self._fd, old, size - old)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise NoSpace(f"no room on disk for last-use times: {error}") from error
                raise
        self._grown()

    def _grown(self) -> int:
        """Maps the file as large as it is now, since another process may have grown it; the
        serials that it holds."""
        size = os.fstat(self._fd).st_size // _WIDTH * _WIDTH
        if size > len(self._times) * _WIDTH:
            self._unmap()
            self._map = mmap.mmap(self._fd, size)
            self._times = memoryview(self._map).cast("I")
        return len(self._times)

    def _unmap(self) -> None:
        self._times.release()
        self._times = memoryview(b"").cast("I")
        if self._map is not None:
            self._map.close()
            self._map = None


# Not in os before Python 3.14.
_fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
if _fallocate is not None:
    _fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_KEEP_SIZE, _PUNCH_HOLE = 1, 2


def punch_hole(fd: int, offset: int, length: int) -> bool:
    """Gives the bytes' room back to the file system: they read as zeros then.  False where it
    cannot be done."""
    if _fallocate is None:
        return False
    return bool(_fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length) == 0)
