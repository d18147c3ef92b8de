"""Free pages of the index's file, given back to the file system.

Rule: reads LMDB's list of free pages by itself, since its library tells nobody, and turns long runs
of them into holes; writes nothing.  LMDB never reads a free page before it has written it, and its
file never shrinks: without this, a reader that held old pages alive for a while, or a cache whose
small blobs gave way to large ones, would cost that room for ever.

Which pages are free for good is LMDB's own rule (mdb.c, mdb_page_alloc): those that were freed by
a transaction older than the last one and than every reader's snapshot.  It may use them at any
time but while somebody else holds the write lock, so all of this happens under it, for a
few milliseconds at a time.

Format (LMDB 0.9, data version 1; mdb.c): page 0 and 1 are meta pages, the one with the higher
transaction number counts.  The table of free pages maps a transaction's number to a count and as
many page numbers, 64 bits each.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from array import array
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from cas.errors import DataLoss
from cas.index.environment import DATA_FILE
from cas.index.lmdb import Index
from cas.index.mapped import punch_hole

RUNS = (16, 4, 1)
"""Pages in a row that are worth a hole, for three passes: long ones first, since short ones are
what small values are put into, and cost as much for less."""

HOLD_SECONDS = 0.003
"""For how long the write lock is held."""

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_META = Struct("=16xIIQQ")
"""Behind a page's header: magic, version, address, size of the map; then two tables, …"""
_TABLE = Struct("=IHHQQQQQ")
"""… each: padding (of the first: the page size), flags, depth, branch, leaf and overflow pages,
entries, root; …"""
_TAIL = Struct("=QQ")
"""… then last page, transaction."""
_HEADER = Struct("=QHHHH")
"""Page number, padding, flags, end of the pointers, start of the nodes."""
_NODE = Struct("=HHHH")
"""Two halves of a size or page number, flags or its third part, key size."""
_NUMBER = Struct("=Q")
_BRANCH, _BIG = 0x01, 0x01
_NO_ROOT = 2**64 - 1


class Meta(NamedTuple):
    """The last commit."""

    page_size: int
    transaction: int
    last_page: int
    free_root: int
    own_pages: int
    """Pages of the table of free pages and of the table of tables."""


class GivenBack(NamedTuple):
    """What one call did."""

    bytes: int
    after: int | None
    """Where the next call goes on; None at the end."""


def give_back(index: Index, after: int = -1, min_run: int = 1) -> GivenBack:
    """Makes holes of runs of `min_run` free pages, of those that a transaction behind `after`
    has freed.

    Returns after `HOLD_SECONDS`; raises DataLoss where the file is not as LMDB 0.9 writes it.
    """
    with index.writing(), closing(_Pages(index.path)) as pages:
        until = time.perf_counter() + HOLD_SECONDS
        meta = pages.meta()
        oldest = min([meta.transaction, *index.reader_transactions()])
        before = pages.disk_bytes()
        for transaction, free in pages.free(meta):
            if transaction >= oldest:
                break
            if transaction <= after:
                continue
            for first, count in runs(free):
                if count >= min_run:
                    pages.punch(first * meta.page_size, count * meta.page_size)
                if time.perf_counter() > until:
                    # The next call passes over these holes.
                    return GivenBack(before - pages.disk_bytes(), transaction - 1)
            after = transaction
        return GivenBack(before - pages.disk_bytes(), None)


def count_free(index: Index) -> tuple[Meta, int]:
    """The last commit, and how many pages are free after it.  For tests: with the live ones and
    two meta pages they are all of the file."""
    with index.writing(), closing(_Pages(index.path)) as pages:
        meta = pages.meta()
        return meta, sum(len(free) for _, free in pages.free(meta))


class _Pages:
    """The file, mapped to be read."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path / DATA_FILE, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._map = mmap.mmap(self._fd, 0, prot=mmap.PROT_READ)
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        self._map.close()
        os.close(self._fd)

    def meta(self) -> Meta:
        first = self._meta(0)
        second = self._meta(first.page_size)
        return max(first, second, key=lambda meta: meta.transaction)

    def _meta(self, at: int) -> Meta:
        magic, version, _, _ = _META.unpack_from(self._map, at)
        if (magic, version) != (_MAGIC, _VERSION):
            raise DataLoss(f"the index's file is not LMDB's: magic {magic:#x}, version {version}")
        tables = at + _META.size
        free = _TABLE.unpack_from(self._map, tables)
        main = _TABLE.unpack_from(self._map, tables + _TABLE.size)
        last_page, transaction = _TAIL.unpack_from(self._map, tables + 2 * _TABLE.size)
        return Meta(free[0], transaction, last_page, free[7], sum(free[3:6]) + sum(main[3:6]))

    def free(self, meta: Meta) -> Iterator[tuple[int, array[int]]]:
        """(transaction, the pages that it freed), in order."""
        if meta.free_root != _NO_ROOT:
            yield from self._walk(meta.free_root, meta.page_size)

    def _walk(self, page: int, size: int) -> Iterator[tuple[int, array[int]]]:
        at = page * size
        _, _, flags, end, _ = _HEADER.unpack_from(self._map, at)
        for place in range(at + _HEADER.size, at + end, 2):
            node = at + int.from_bytes(self._map[place : place + 2], "little")
            low, high, more, key_size = _NODE.unpack_from(self._map, node)
            if flags & _BRANCH:
                yield from self._walk(low | high << 16 | more << 32, size)
                continue
            (transaction,) = _NUMBER.unpack_from(self._map, node + _NODE.size)
            data = node + _NODE.size + key_size
            if more & _BIG:
                data = _NUMBER.unpack_from(self._map, data)[0] * size + _HEADER.size
            (count,) = _NUMBER.unpack_from(self._map, data)
            numbers = array("Q")
            numbers.frombytes(self._map[data + 8 : data + 8 + 8 * count])
            yield transaction, numbers

    def punch(self, start: int, length: int) -> None:
        """Makes a hole, unless there is one."""
        try:
            if os.lseek(self._fd, start, os.SEEK_DATA) < start + length:
                punch_hole(self._fd, start, length)
        except OSError as error:
            # There is only a hole from here on.
            if error.errno != errno.ENXIO:
                raise

    def disk_bytes(self) -> int:
        return os.fstat(self._fd).st_blocks * 512


def runs(pages: array[int]) -> Iterator[tuple[int, int]]:
    """(first page, count) of each run of consecutive numbers among `pages`, which descend."""
    if not pages:
        return
    first = last = pages[0]
    for page in pages[1:]:
        if page != first - 1:
            yield first, last - first + 1
            last = page
        first = page
    yield first, last - first + 1
