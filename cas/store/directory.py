"""A store's directory before it is opened: its format, and who may use it.

Rule: needs neither LMDB nor anything above files, because a supervisor that opens no
index prepares the directory for its workers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from cas.digest import ENABLED, SHA256, Function
from cas.errors import CasError, FormatMismatch, StoreInUse
from cas.index import hints
from cas.store.files import Files
from cas.store.layout import FORMAT_VERSION, Layout

_PASSED_OVER = frozenset(
    ("lock", "index", "blobs", "staging", "quarantine", "format.new", "lost+found")
)
"""What an interrupted first start may have left before there was a format line, and what an
empty file system holds by itself."""


class DirectoryLock:
    """The exclusive use of a store's directory by one server, until `close` or its end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)


def prepare(
    directory: Path, functions: Iterable[Function] = ENABLED.all, *, files: Files | None = None
) -> DirectoryLock:
    """Makes `directory` a store's, if it is new or empty, and locks it for this server.

    It gets room for blobs of those digest functions, and of SHA-256, by which the store itself
    names what comes without a digest.

    Raises FormatMismatch when it holds another format or foreign files, which are left
    untouched; StoreInUse when another server runs on it; OSError naming the path when it
    cannot be made or written.
    """
    layout = Layout(directory)
    files = files or Files()
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    check_format(layout)
    lock = _lock(layout, files)
    try:
        for path in made:
            files.sync_directory(path.parent)
        shards = [*layout.shards({SHA256, *functions}), *layout.staging_shards()]
        for path in (layout.index, layout.staging, layout.quarantine, layout.blobs, *shards):
            files.make_directory(path)
        for path in sorted({shard.parent for shard in shards} | {directory}):
            files.sync_directory(path)
        # What an earlier server promised, and saw, is of no meaning to this one.
        files.remove(str(layout.space))
        hints.clear(layout.index)
        if not layout.format.exists():
            files.write_file(layout.format, f"{FORMAT_VERSION}\n".encode())
    except BaseException:
        lock.close()
        raise
    return lock


def occupy(directory: Path) -> DirectoryLock:
    """Locks a store that is there, for a command that no server may run beside.

    Raises CasError when there is none; else as `prepare`.
    """
    layout = Layout(directory)
    check_store(layout)
    return _lock(layout, Files())


def check_store(layout: Layout) -> None:
    """Raises CasError unless the directory holds a store of this format."""
    if not layout.root.is_dir():
        raise CasError(f"{layout.root} is no directory; expected a cas directory")
    check_format(layout)
    if not layout.format.exists():
        raise CasError(f"{layout.root} holds no store yet; expected a cas directory")


def check_format(layout: Layout) -> None:
    """Raises FormatMismatch unless the directory is a store's of this format, or empty."""
    try:
        found = layout.format.read_text("utf-8", "replace").strip()
    except FileNotFoundError:
        foreign = sorted(
            path.name for path in layout.root.iterdir() if path.name not in _PASSED_OVER
        )
        if foreign:
            raise FormatMismatch(
                f"{layout.root} is no cas directory and not empty (it holds {foreign[0]}); "
                "expected an empty or new directory"
            ) from None
        return
    if found != FORMAT_VERSION:
        raise FormatMismatch(
            f"{layout.root} holds format {found[:40]!r}, this release reads {FORMAT_VERSION!r}; "
            "it was left untouched"
        )


def _lock(layout: Layout, files: Files) -> DirectoryLock:
    fd = files.open_lock(layout.lock)
    if not files.hold(fd):
        holder = os.pread(fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
        files.close(fd)
        raise StoreInUse(
            f"{layout.root} is in use by another server (pid {holder}); "
            "stop it or choose another directory"
        )
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return DirectoryLock(fd)
