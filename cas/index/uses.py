"""When each entry was used last: one number per serial, in a file that all processes map.

Rule: times only, and only whole minutes; nothing here is needed for correctness.  A use is
one store into shared memory: kept in LMDB, a busy cache would rewrite pages of its index
all day for having been read.  A killed process loses nothing that it stored; a power loss may
lose some of it, and an entry then counts as used when it was written.

Layout: minutes since the epoch, 32 bits in the machine's order, at 4 × serial; 0 where there
was no use since the entry was written.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from pathlib import Path

STEP = 1 << 20
"""Serials by which the file grows: 4 MiB, allocated at once, so that storing into the map
can never find the disk full (the system would end the process)."""

_WIDTH = 4


class UseTimes:
    """The file at `path`, made if absent.  For one thread at a time in each process."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._map: mmap.mmap | None = None
        self._times = memoryview(b"").cast("I")

    def store(self, serials: Iterable[int], minute: int) -> None:
        """Notes that the entries with these serials were used at `minute`.

        Raises OSError (ENOSPC) when the file cannot grow; what fitted was stored.
        """
        times = self._times
        known = len(times)
        for serial in serials:
            if serial >= known:
                self._reach(serial)
                times = self._times
                known = len(times)
            times[serial] = minute

    def load(self, serial: int) -> int:
        """The minute of the entry's last use; 0 where none was stored."""
        if serial >= len(self._times):
            self._remap()
        return self._times[serial] if serial < len(self._times) else 0

    def close(self) -> None:
        self._unmap()
        os.close(self._fd)

    def _reach(self, serial: int) -> None:
        size = (serial // STEP + 1) * STEP * _WIDTH
        if os.fstat(self._fd).st_size < size:
            os.posix_fallocate(self._fd, 0, size)
        self._remap()

    def _remap(self) -> None:
        """Maps the file as large as it is now; another process may have grown it."""
        size = os.fstat(self._fd).st_size // _WIDTH * _WIDTH
        if size > len(self._times) * _WIDTH:
            self._unmap()
            self._map = mmap.mmap(self._fd, size)
            self._times = memoryview(self._map).cast("I")

    def _unmap(self) -> None:
        self._times.release()
        self._times = memoryview(b"").cast("I")
        if self._map is not None:
            self._map.close()
            self._map = None
