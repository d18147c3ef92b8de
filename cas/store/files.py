"""Every operation on files that the store makes.

Rule: the only caller of open, write, fsync, rename and unlink below a store's
directory.  Each operation is one method, and each passes the seam first, so that a
test can stop a process, or fail an operation, exactly there.  Errors of the
system become `NoSpace` where room is what lacks, and stay OSError otherwise.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cas.errors import NoSpace

BLOCK = 4096
"""What `Files.write_past_cache` counts in, bytes: no disk in use has larger blocks."""

Seam = Callable[[str, str], None]
"""Called with (operation, path) before each operation; may raise, or never return."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# struct flock: type, whence, start, length, pid; a length of 0 covers the whole file.
_FLOCK = struct.Struct("hhqqi4x")
_WRITE_LOCK = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
_NO_LOCK = _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0)


class Files:
    """The operations; stateless but for the seam."""

    def __init__(self, seam: Seam | None = None) -> None:
        self._seam = seam

    # --- directories -------------------------------------------------------------------

    def make_directory(self, path: Path) -> None:
        """Makes `path` unless it is there.  Durable once its parent is synced."""
        self._reach("mkdir", path)
        path.mkdir(exist_ok=True)

    def sync_directory(self, path: str | Path) -> None:
        """Makes the names in `path` durable."""
        self._reach("sync-directory", path)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    # --- whole small files -------------------------------------------------------------

    def write_file(self, path: Path, content: bytes) -> None:
        """Replaces `path` with `content`, durably and at once or not at all."""
        self._reach("write-file", path)
        beside = f"{path}.new"
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)
        self._reach("rename", path)
        os.rename(beside, path)
        self.sync_directory(path.parent)

    # --- staging -----------------------------------------------------------------------

    def create(self, path: str) -> int | None:
        """A new empty file open for reading and writing, or None if `path` exists."""
        self._reach("create", path)
        with _room(path):
            try:
                return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            except FileExistsError:
                return None

    def open_staging(self, path: str) -> int | None:
        """The file open for reading and writing, or None if there is none."""
        self._reach("open", path)
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None

    def write(self, fd: int, buffers: Sequence[bytes | bytearray | memoryview], offset: int) -> int:
        """Writes all of `buffers` at `offset`; the offset behind them."""
        self._reach("write", str(fd))
        with _room("staging"):
            todo = list(buffers)
            while todo:
                written = os.pwritev(fd, todo[:_IOV_MAX], offset)
                offset += written
                while todo and written >= len(todo[0]):
                    written -= len(todo.pop(0))
                if written:
                    todo[0] = memoryview(todo[0])[written:]
        return offset

    def write_past_cache(self, fd: int, view: memoryview, offset: int) -> int:
        """As `write`, but not by way of the system's cache, as far as that goes: whole blocks,
        from memory and to an offset that are multiples of `BLOCK`.

        The cache takes memory that nothing has touched yet for every page, which on a virtual
        machine costs several times what the bytes themselves do.
        """
        blocks = view[: len(view) // BLOCK * BLOCK] if offset % BLOCK == 0 else view[:0]
        if blocks and self._bypass_cache(fd, on=True):
            try:
                offset = self.write(fd, [blocks], offset)
                view = view[len(blocks) :]
            except OSError as error:
                # Wants larger blocks, or broke off within one.
                if error.errno != errno.EINVAL:
                    raise
            finally:
                self._bypass_cache(fd, on=False)
        return self.write(fd, [view], offset) if view else offset

    def _bypass_cache(self, fd: int, *, on: bool) -> bool:
        try:
            # Of the flags that can be set, a file here has no other.
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT if on else 0)
        except OSError:
            return False
        return True

    def start_writing_back(self, fd: int) -> None:
        """Has the system begin to write a file's bytes to the disk; waits for nothing.

        Room on disk is found for them then, so that files which are synced together
        share one commit of the file system's journal.
        """
        self._reach("write-back", str(fd))
        if _sync_file_range is not None:
            _sync_file_range(fd, 0, 0, _SYNC_FILE_RANGE_WRITE)

    def sync(self, fd: int) -> None:
        """Makes a file's bytes and size durable."""
        self._reach("sync", str(fd))
        with _room("staging"):
            os.fdatasync(fd)

    def publish(self, staging: str, blob: str) -> None:
        """Gives a staged file its blob's name too, which nothing else has."""
        self._reach("publish", blob)
        with _room(blob):
            os.link(staging, blob)

    def replace(self, new: str, staging: str) -> None:
        """Puts `new` in the place of the staging file."""
        self._reach("replace", staging)
        os.rename(new, staging)

    def move(self, path: str | Path, target: str | Path) -> None:
        """Gives a file or directory another name, in the place of any file that has it.
        Durable once both parents are synced."""
        self._reach("move", path)
        os.rename(path, target)

    def remove(self, path: str) -> None:
        """Removes a file, which may be gone already."""
        self._reach("remove", path)
        with suppress(FileNotFoundError):
            os.unlink(path)

    def open_lock(self, path: Path) -> int:
        """A file to hold that is made if need be and whose content does not matter."""
        self._reach("open-lock", path)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def allocate(self, fd: int, size: int) -> None:
        """Gives a file that is to be mapped its size, and all of its room: a store into the map
        of a file on a full disk would end the process."""
        self._reach("allocate", str(fd))
        with _room("the index"):
            os.posix_fallocate(fd, 0, size)

    # --- locks -------------------------------------------------------------------------

    def lock_byte(self, fd: int, at: int, *, wait: bool = False) -> bool:
        """Locks one byte of a file against other opens of it, those of this process included,
        until it is unlocked or `fd` closed; False when it is taken and `wait` is false."""
        lock = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, at, 1, 0)
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, lock)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def unlock_byte(self, fd: int, at: int) -> None:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, at, 1, 0))

    def is_byte_locked(self, fd: int, at: int) -> bool:
        """Whether another open of the file locks the byte."""
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, at, 1, 0)
        found = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
        return bool(found[0] != fcntl.F_UNLCK)

    def hold(self, fd: int) -> bool:
        """Marks the file as having a living writer: until `fd` is closed or its process
        ends.  False when another one has marked it."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def guard(self, fd: int, *, wait: bool) -> bool:
        """Takes the file's guard, held for the length of one operation only; False when it
        is taken and `wait` is false.  Independent of `hold`."""
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, _WRITE_LOCK)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def unguard(self, fd: int) -> None:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _NO_LOCK)

    def names(self, path: str, fd: int) -> bool:
        """Whether `path` still names the open file."""
        try:
            named = os.stat(path)
        except FileNotFoundError:
            return False
        opened = os.fstat(fd)
        return (named.st_ino, named.st_dev) == (opened.st_ino, opened.st_dev)

    # --- reads -------------------------------------------------------------------------

    def open_blob(self, path: str) -> int | None:
        """The file open for reading, or None if there is none."""
        self._reach("open-blob", path)
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None

    def read_into(self, fd: int, view: memoryview, offset: int) -> int:
        """Reads at `offset`; the count, 0 at the end.  May wait for the disk."""
        self._reach("read", str(fd))
        return os.preadv(fd, [view], offset)

    def read_cached(self, fd: int, view: memoryview, offset: int) -> int:
        """As `read_into`, but -1 instead of waiting for the disk."""
        self._reach("read", str(fd))
        try:
            return os.preadv(fd, [view], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return -1
        except OSError as error:
            # A filesystem without the flag: every read may wait.
            if error.errno == errno.EOPNOTSUPP:
                return -1
            raise

    def forget_cached(self, fd: int) -> None:
        """Drops the file's pages from the system's cache: the next read comes from the disk."""
        with suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def close(self, fd: int) -> None:
        os.close(fd)

    def _reach(self, operation: str, path: str | Path) -> None:
        if self._seam is not None:
            self._seam(operation, str(path))


_IOV_MAX = 1024

_SYNC_FILE_RANGE_WRITE = 2
# Not in os.  Called without the interpreter's lock, as ctypes does.
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def entries(directory: str | Path) -> list[os.DirEntry[str]]:
    """What is in a directory; nothing if it is not there."""
    try:
        with os.scandir(directory) as found:
            return list(found)
    except FileNotFoundError:
        return []


@contextmanager
def _room(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise NoSpace(f"no room on disk for {path}: {error.strerror}") from error
        raise
