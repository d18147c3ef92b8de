"""A file of numbers that every process maps: how it grows, and how its room is given back.

Rule: knows nothing of what the numbers mean.  Not for several threads at once: whoever has one
has a lock.

Room is allocated by steps before anything is stored there, so that storing into the map can
never find the disk full (the system would end the process).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from pathlib import Path
from typing import Literal

from cas.errors import NoSpace


class Numbers:
    """The file at `path`, made if absent: unsigned numbers of 32 bits ("I") or of 64 ("Q"), in the
    machine's order; `step` of them are allocated at a time."""

    def __init__(self, path: Path, kind: Literal["I", "Q"], step: int) -> None:
        self._path = path
        self._kind: Literal["I", "Q"] = kind
        self._step = step
        self.width = {"I": 4, "Q": 8}[kind]
        """Bytes of a number."""
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._map: mmap.mmap | None = None
        self.view = memoryview(b"").cast(kind)
        """What is mapped: nothing at first.  Replaced by whatever maps more."""

    def reach(self, number: int) -> None:
        """Makes room up to the number at this place.

        Raises NoSpace when the file cannot grow.
        """
        size = (number // self._step + 1) * self._step * self.width
        old = os.fstat(self.fd).st_size
        if old < size:
            try:
                # What is there already has its room, or holes that are to stay.
                os.posix_fallocate(self.fd, old, size - old)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise NoSpace(f"no room on disk for {self._path}: {error}") from error
                raise
        self.grown()

    def grown(self) -> int:
        """Maps the file as large as it is now, since another process may have grown it; how many
        numbers it holds."""
        size = os.fstat(self.fd).st_size // self.width * self.width
        if size > len(self.view) * self.width:
            self._unmap()
            self._map = mmap.mmap(self.fd, size)
            self.view = memoryview(self._map).cast(self._kind)
        return len(self.view)

    def punch(self, first: int, count: int) -> bool:
        """Gives back the room of `count` numbers from `first` on, of whole blocks of the file
        system: they are 0 then.  False where it cannot."""
        return punch_hole(self.fd, first * self.width, count * self.width)

    def clear(self) -> None:
        """Has all numbers be 0, and keeps their room."""
        size = os.fstat(self.fd).st_size
        if _fallocate is None or _fallocate(self.fd, _ZERO_RANGE, 0, size) != 0:
            for at in range(0, size, len(_ZEROS)):
                os.pwrite(self.fd, _ZEROS[: size - at], at)

    def disk_bytes(self) -> int:
        """What the file takes on disk."""
        return os.fstat(self.fd).st_blocks * 512

    def close(self) -> None:
        self._unmap()
        os.close(self.fd)

    def _unmap(self) -> None:
        self.view.release()
        self.view = memoryview(b"").cast(self._kind)
        if self._map is not None:
            self._map.close()
            self._map = None


# Not in os before Python 3.14.
_fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
if _fallocate is not None:
    _fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10
_ZEROS = bytes(1 << 20)


def punch_hole(fd: int, offset: int, length: int) -> bool:
    """Gives the bytes' room back to the file system: they read as zeros then.  False where it
    cannot be done."""
    if _fallocate is None:
        return False
    return bool(_fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length) == 0)
