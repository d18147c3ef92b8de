"""Files below one directory, and never anywhere else.

Rule: every operation goes through directory descriptors opened one name at a time with
O_NOFOLLOW, so neither ``..`` nor a symlink that someone puts in the way can lead out.  Names
were checked before (`cas.client.tree.check_name`).  A file appears whole or not at all.
Blocking; one user at a time for each `Below`, except where it says otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Self

from cas.client.errors import BadTree

Names = tuple[str, ...]

OPEN_FOLDERS = 128

TEMPORARY = ".cas-"
"""How the name of a file that is not whole yet begins."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Below:
    """`root` is made if it is absent.  `with` closes it.  Threads may share it for `write`,
    `status`, `open` and `chmod`."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        # The user's own way to the directory may lead over symlinks.
        self._fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._open: OrderedDict[Names, int] = OrderedDict()
        self._lock = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._forget()
        os.close(self._fd)

    def status(self, path: Names) -> os.stat_result | None:
        """What is there, a symlink as itself; None if nothing is."""
        try:
            with self._parent(path) as (fd, name):
                return os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def list(self, path: Names) -> dict[str, os.stat_result]:
        """What a directory holds, symlinks as themselves."""
        with self._folder(path) as fd, os.scandir(fd) as entries:
            return {entry.name: entry.stat(follow_symlinks=False) for entry in entries}

    def read_link(self, path: Names) -> str:
        with self._parent(path) as (fd, name):
            return os.readlink(name, dir_fd=fd)

    def open(self, path: Names) -> int:
        """A descriptor to read a regular file from."""
        with self._parent(path) as (fd, name):
            return os.open(
                name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd
            )

    def make_folder(self, path: Names, mode: int) -> None:
        with self._parent(path) as (fd, name):
            os.mkdir(name, 0o700, dir_fd=fd)
        self.chmod(path, mode, folder=True)

    def chmod(self, path: Names, mode: int, folder: bool = False) -> None:
        """Of a file or a directory, and never through a symlink."""
        with self._parent(path) as (fd, name):
            flags = _FOLDER if folder else os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                opened = os.open(name, flags, dir_fd=fd)
            except PermissionError:
                # Unreadable for us, and yet ours. Only its owner can exchange it meanwhile.
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISLNK(status.st_mode):
                    raise
                os.chmod(name, mode, dir_fd=fd)
                return
            try:
                os.fchmod(opened, mode)
            finally:
                os.close(opened)

    def link_to(self, path: Names, target: str) -> None:
        """Puts a symlink there, in place of what is no directory."""
        with self._parent(path) as (fd, name):
            temporary = _temporary()
            os.symlink(target, temporary, dir_fd=fd)
            _put(fd, temporary, name)

    def write(self, path: Names, mode: int, fill: Callable[[int], object]) -> None:
        """Makes a file whose content `fill` writes to a descriptor, in place of what is no
        directory."""
        with self._parent(path) as (fd, name):
            temporary = _temporary()
            file = os.open(
                temporary,
                os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o600,
                dir_fd=fd,
            )
            try:
                try:
                    fill(file)
                    os.fchmod(file, mode)
                finally:
                    os.close(file)
            except BaseException:
                os.unlink(temporary, dir_fd=fd)
                raise
            _put(fd, temporary, name)

    def hard_link(self, path: Names, source: str) -> None:
        """Makes the file at `source` (outside) appear there as well."""
        with self._parent(path) as (fd, name):
            temporary = _temporary()
            os.link(source, temporary, dst_dir_fd=fd, follow_symlinks=False)
            _put(fd, temporary, name)
            # Linking a file to where it is already renames nothing.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=fd)

    @contextmanager
    def temporary(self, path: Names, mode: int) -> Iterator[int]:
        """A descriptor to write the file's content to; the file is there when the block ends
        well."""
        with self._parent(path) as (parent, name):
            fd = os.dup(parent)
        try:
            temporary = _temporary()
            file = os.open(
                temporary,
                os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o600,
                dir_fd=fd,
            )
            try:
                try:
                    yield file
                    os.fchmod(file, mode)
                finally:
                    os.close(file)
            except BaseException:
                os.unlink(temporary, dir_fd=fd)
                raise
            _put(fd, temporary, name)
        finally:
            os.close(fd)

    def remove(self, path: Names, whole_folders: bool) -> None:
        """Removes what is there; a directory with content only with `whole_folders`, otherwise
        raises BadTree."""
        with self._parent(path) as (fd, name):
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                os.unlink(name, dir_fd=fd)
                return
            self._forget()
            if whole_folders:
                shutil.rmtree(name, dir_fd=fd)
                return
            try:
                os.rmdir(name, dir_fd=fd)
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
                raise BadTree(
                    f"{self.root.joinpath(*path)} is a directory with something in it, and "
                    "none in the tree; move it away, or allow deletion"
                ) from None

    @contextmanager
    def _parent(self, path: Names) -> Iterator[tuple[int, str]]:
        with self._folder(path[:-1]) as fd:
            yield fd, path[-1]

    @contextmanager
    def _folder(self, path: Names) -> Iterator[int]:
        if not path:
            yield self._fd
            return
        with self._lock:
            fd = self._descend(path)
            # Its own descriptor: another thread may push this one out.
            fd = os.dup(fd)
        try:
            yield fd
        finally:
            os.close(fd)

    def _descend(self, path: Names) -> int:
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        parent = self._descend(path[:-1]) if len(path) > 1 else self._fd
        try:
            fd = os.open(path[-1], _FOLDER, dir_fd=parent)
        except OSError as error:
            # ELOOP or ENOTDIR: something else stands where the directory was.
            if error.errno in {errno.ELOOP, errno.ENOTDIR}:
                raise BadTree(
                    f"{self.root.joinpath(*path)} is not a directory of its own; what lies "
                    "behind it is not touched"
                ) from None
            raise
        self._open[path] = fd
        if len(self._open) > OPEN_FOLDERS:
            # Never the parents of what was just opened: they were used last.
            os.close(self._open.popitem(last=False)[1])
        return fd

    def _forget(self) -> None:
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])


def _temporary() -> str:
    return TEMPORARY + secrets.token_hex(8)


def _put(fd: int, temporary: str, name: str) -> None:
    try:
        os.rename(temporary, name, src_dir_fd=fd, dst_dir_fd=fd)
    except BaseException:
        os.unlink(temporary, dir_fd=fd)
        raise
