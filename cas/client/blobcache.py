"""Blobs in files on this machine, to be linked into directories that are pulled.

Rule: a file here is what its name says, or is not used: each has one fixed modification time,
which any writing to it, also by way of a hard link, changes.  The name holds hash and mode,
since hard links share their mode.  Everything here can be had again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from cas.client.below import Below, Names
from cas.digest import Digest

Links = Literal["hard", "reflink"]

STAMP_NS = 1_000_000_000 * 1_000_000_000
"""The modification time of an untouched file: 2001-09-09."""

MAX_BYTES = 20 << 30
"""What is kept; the least recently used goes first."""

_FICLONE = 0x40049409
_CANNOT = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EMLINK, errno.EPERM}


class BlobCache:
    """Files below `directory`.  Threads and processes may share it."""

    def __init__(self, directory: Path, links: Links) -> None:
        self._directory = directory
        self._links = links

    def path(self, digest: Digest, mode: int) -> str:
        # A reflink is a file of its own, with a mode of its own.
        suffix = f"-{mode:o}" if self._links == "hard" else ""
        name = digest.hex
        return os.path.join(self._directory, name[:2], f"{name}-{digest.size}{suffix}")

    def holds(self, digest: Digest, mode: int) -> bool:
        """Whether it has the blob, untouched; what was touched is dropped."""
        path = self.path(digest, mode)
        try:
            status = os.stat(path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        # A hard link's mode is the file's.
        same_mode = self._links != "hard" or stat.S_IMODE(status.st_mode) == mode
        if status.st_mtime_ns == STAMP_NS and status.st_size == digest.size and same_mode:
            return True
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return False

    @contextmanager
    def add(self, digest: Digest, mode: int) -> Iterator[int]:
        """A descriptor to write the blob to; it is kept when the block ends well."""
        path = self.path(digest, mode)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.{secrets.token_hex(4)}"
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                yield fd
                os.fchmod(fd, mode)
                os.utime(fd, ns=(time.time_ns(), STAMP_NS))
            finally:
                os.close(fd)
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise

    def place(self, digest: Digest, mode: int, below: Below, path: Names) -> None:
        """Puts the blob there as a hard link or a reflink, or as a copy where neither can be."""
        source = self.path(digest, mode)
        os.utime(source, ns=(time.time_ns(), STAMP_NS))
        if self._links == "hard":
            try:
                below.hard_link(path, source)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
            else:
                return
        below.write(path, mode, _copier(source))

    def trim(self, most: int = MAX_BYTES) -> None:
        """Removes what was not used for longest, until at most `most` bytes are kept."""
        found = []
        for folder, _, names in os.walk(self._directory):
            for name in names:
                path = os.path.join(folder, name)
                with contextlib.suppress(FileNotFoundError):
                    status = os.stat(path, follow_symlinks=False)
                    found.append((status.st_atime_ns, status.st_size, path))
        total = sum(size for _, size, _ in found)
        found.sort()
        for _, size, path in found:
            if total <= most:
                return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            total -= size


def _copier(source: str) -> Callable[[int], None]:
    def copy(fd: int) -> None:
        with open(source, "rb") as file:
            try:
                fcntl.ioctl(fd, _FICLONE, file.fileno())
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
                with open(fd, "wb", closefd=False) as out:
                    shutil.copyfileobj(file, out, 1 << 20)

    return copy
