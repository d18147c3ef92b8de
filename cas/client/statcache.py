"""Which digest a file had when it looked like this: so that unchanged files are not read.

Rule: never wrong, at worst of no help.  An entry counts only if inode, size, modification and
status-change time are all the same, and it is only made for a file that had been left alone
for `SETTLED_NS` when it was read: a file that is changed twice within one tick of its file
system's clock looks the same both times (git calls that "racily clean").  The database may
be deleted at any time; a damaged or a locked one is done without.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Self

SETTLED_NS = 2_000_000_000
"""Coarser than any clock of a file system in use (FAT: 2 s), and than most skew to a file
server's clock."""

KEPT_DAYS = 60
"""Entries of a directory that was not pushed or pulled for so long are dropped."""

_SCHEMA = """
create table if not exists files (
    path blob primary key, inode integer, size integer, mtime integer, ctime integer, key blob
) without rowid;
create table if not exists roots (path blob primary key, day integer) without rowid;
"""

_VERSION = 1


class Look(NamedTuple):
    """What a file looks like."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    def settled(self, now_ns: int) -> bool:
        """Whether a later change is bound to show; `now_ns` is from before it was read."""
        return max(self.mtime_ns, self.ctime_ns) + SETTLED_NS < now_ns


def look(stat: os.stat_result) -> Look:
    return Look(stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


Known = dict[bytes, tuple[Look, bytes]]
"""Path relative to the root → what it looked like, and its digest's key."""


def default_path() -> Path:
    return cache_directory() / "files.sqlite"


def cache_directory() -> Path:
    """XDG's directory for what can be had again."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "cas-client"


class StatCache:
    """The database; `with` closes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._open()
        except sqlite3.OperationalError:
            pass  # Locked for long, or nowhere to write.
        except sqlite3.DatabaseError:
            # Damaged, or something else's file; it is ours by its place.
            with contextlib.suppress(OSError, sqlite3.Error):
                path.unlink()
                self._connection = self._open()
        except OSError:
            pass

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=5, check_same_thread=False)
        try:
            (version,) = connection.execute("pragma user_version").fetchone()
            if version != _VERSION:
                if version:
                    connection.executescript("drop table if exists files; drop table roots;")
                connection.execute(f"pragma user_version = {_VERSION}")
            # Losing the last entries to a crash costs hashing, nothing else.
            connection.execute("pragma synchronous = off")
            connection.executescript(_SCHEMA)
        except BaseException:
            connection.close()
            raise
        return connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        if self._connection is not None:
            self._connection.close()

    def load(self, root: bytes) -> Known:
        """All that is known of files below `root`, an absolute path."""
        if self._connection is None:
            return {}
        start = _prefix(root)
        try:
            rows = self._connection.execute(
                "select path, inode, size, mtime, ctime, key from files"
                " where path >= ? and path < ?",
                (start, _after(start)),
            ).fetchall()
        except sqlite3.Error:
            return {}
        skip = len(start)
        return {path[skip:]: (Look(*seen), key) for path, *seen, key in rows}

    def save(
        self,
        root: bytes,
        found: Iterable[tuple[bytes, Look, bytes]],
        gone: Iterable[bytes] = (),
    ) -> None:
        """Enters files below `root`, and forgets those that are gone; paths are relative."""
        if self._connection is None:
            return
        start = _prefix(root)
        day = int(time.time() // 86_400)
        with contextlib.suppress(sqlite3.Error), self._connection as transaction:
            transaction.executemany(
                "delete from files where path = ?", [(start + path,) for path in gone]
            )
            transaction.executemany(
                "insert or replace into files values (?, ?, ?, ?, ?, ?)",
                [(start + path, *seen, key) for path, seen, key in found],
            )
            transaction.execute("insert or replace into roots values (?, ?)", (start, day))
            old = transaction.execute(
                "select path from roots where day < ?", (day - KEPT_DAYS,)
            ).fetchall()
            for (path,) in old:
                transaction.execute(
                    "delete from files where path >= ? and path < ?", (path, _after(path))
                )
                transaction.execute("delete from roots where path = ?", (path,))


def _prefix(root: bytes) -> bytes:
    return root.rstrip(b"/") + b"/"


def _after(prefix: bytes) -> bytes:
    """The first path behind all that begin with `prefix`, whose last byte is a slash."""
    return prefix[:-1] + b"0"
