"""What key each entry has and where a key's entry is, told without the tree.

Rule: a shortcut to what `meta` says; without it everything is as right, and slower.  For
FindMissingBlobs, which asks for thousands of keys of millions: a look-up in a tree of that size
waits for memory twenty times, here three times.

Two files, mapped by every process:

* `tags`, at 8 × serial: 61 bits that stand for all of the entry's key, `GONE` where the entry was
  removed, 0 where nothing is known.  Written under LMDB's write lock only: the entry's tag before
  the commit that enters it; before the commit that removes it 0, and after it `GONE`.
* `hints`, a table of serials: a key's entry is at the place that the key's first bytes choose, or
  at one of the `PROBES` behind it, before the first that is free.  `follow` puts entries there in
  the order of their serials, under a lock of its own, and notes how far it came: whoever looks up
  has it follow what was committed since.

So of a snapshot that holds no serial beyond what `follow` has reached, a key is here whose tag one
of its places has, and not here where a free place comes first: as true as the index itself, but for
a key that is another one with the same tag, which comes about once in 10^18 looks unless
somebody makes one up for it.  Whoever acknowledges a write asks the index itself.  Where neither
comes about, as behind a place with tag 0, it is asked too.

Neither file is synced, and a power loss may leave anything in them: each server begins by
clearing them (`clear`), and its janitor enters everything anew (`cas.index.aging`).
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import compress, repeat
from operator import not_
from pathlib import Path
from struct import Struct
from typing import Literal, NamedTuple

from cas.errors import NoSpace
from cas.index.mapped import Numbers

TAGS_FILE = "tags"
HINTS_FILE = "hints"
"""Beside LMDB's."""
_NEXT_FILE = "hints.new"
"""The table that is to be the next."""

GONE = 2**64 - 1

TAGS_STEP = 1 << 14
"""Serials by which `tags` grows."""

LEAST_ENTRIES = 100_000
"""Of an index that gets a table; a look-up in the tree of a smaller one takes as long."""

LEAST_PLACES = 1 << 17
"""Of a table."""

LEAST_BYTES = 8 * TAGS_STEP
"""What `tags` takes on disk once an entry is in it."""

PLACES_PER_ENTRY = 3
"""At least, in a new table.  With fewer there is more to look at behind a key's first place, with
more a larger table is waited for longer."""

FULL = 0.6
"""Share of places that are taken, by entries that were removed since too, above which the next
table is wanted."""

PROBES = 8

LOOK_SECONDS = 1.0
"""How often a process looks whether there is another table than the one it uses."""

# In front of the places, eight numbers; of them:
_REACHED, _TAKEN = 0, 1
_HEADER = 8

# Python promises that an int's hash is the int modulo this; elsewhere than on 64 bits it is less.
_WIDE = sys.hash_info.modulus.bit_length() >= 61

_head = Struct("<xI").unpack_from
"""Of a key: four bytes of its hash."""


def tags_of(keys: Iterable[bytes]) -> list[int]:
    """What stands for each key."""
    order: repeat[Literal["little"]] = repeat("little")
    return list(map(hash, map(int.from_bytes, keys, order)))


class Told(NamedTuple):
    """What is known of some keys."""

    serials: list[int]
    """Of those that are here."""
    absent: list[int]
    """Positions, ascending, of those that are not, …"""
    unknown: list[int]
    """… and of those of which nothing is known."""


class _Table:
    """A file of `hints`; its places are a power of two."""

    def __init__(self, path: Path, places: int = 0) -> None:
        """Opens the one at `path`, or makes it for so many places."""
        self._numbers = Numbers(path, "Q", _HEADER)
        self.inode = os.fstat(self._numbers.fd).st_ino
        try:
            if places:
                self._numbers.reach(_HEADER + places - 1)
            count = self._numbers.grown() - _HEADER
        except BaseException:
            self._numbers.close()
            raise
        self.header = self._numbers.view[:_HEADER]
        self.places = self._numbers.view[_HEADER:]
        self.mask = count - 1

    @property
    def usable(self) -> bool:
        return self.mask >= 0 and not self.mask & (self.mask + 1)

    @property
    def full(self) -> bool:
        return self.header[_TAKEN] > FULL * len(self.places)

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Whether nobody else follows or clears; held for the block if so."""
        try:
            fcntl.flock(self._numbers.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EINTR):
                raise
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(self._numbers.fd, fcntl.LOCK_UN)

    def put(self, serial: int, key: bytes, tags: memoryview) -> None:
        """For who has it locked."""
        places, mask, known = self.places, self.mask, len(tags)
        (head,) = _head(key)
        for at in range(head, head + PROBES):
            old = places[at & mask]
            if old == serial:
                return
            # Not where nothing is known: that entry may be there, and found here only.
            if not old or (old < known and tags[old] == GONE):
                self.header[_TAKEN] += not old
                places[at & mask] = serial
                return

    def find(self, head: int, tag: int, tags: memoryview) -> int | None:
        """The serial with this tag; 0 where there is none, None where nothing is known."""
        places, mask, known = self.places, self.mask, len(tags)
        for at in range(head, head + PROBES):
            serial: int = places[at & mask]
            if not serial:
                return 0
            there = tags[serial] if serial < known else 0
            if there == tag:
                return serial
            if not there:
                return None
        return None

    def close(self) -> None:
        self.header.release()
        self.places.release()
        self._numbers.close()


class Hints:
    """Both files, in `directory`; `tags` is made if absent.  Any thread may call any method."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._tags = Numbers(directory / TAGS_FILE, "Q", TAGS_STEP)
        self._table: _Table | None = None
        self._next: _Table | None = None
        self._look_due = 0.0

    # --- entries, under LMDB's write lock

    def enter(self, first: int, keys: Sequence[bytes]) -> None:
        """These keys' entries have, or are to have, the serials from `first` on; not after their
        commit."""
        end = first + len(keys)
        with self._lock:
            if end > len(self._tags.view):
                try:
                    self._tags.reach(end - 1)
                except NoSpace:
                    return
            self._tags.view[first:end] = memoryview(array("Q", tags_of(keys)))

    def doubt(self, serials: Iterable[int]) -> None:
        """Entries that are to be removed: before the commit."""
        self._set(serials, 0)

    def bury(self, serials: Iterable[int]) -> None:
        """Entries that were removed: after the commit, when the lock may be another's."""
        self._set(serials, GONE)

    def _set(self, serials: Iterable[int], tag: int) -> None:
        with self._lock:
            # Another process may have entered them.
            known = self._tags.grown()
            tags = self._tags.view
            for serial in serials:
                if serial < known:
                    tags[serial] = tag

    # --- the table

    def ready(self) -> bool:
        """Whether there is one."""
        with self._lock:
            return self._latest() is not None

    def behind(self, end: int) -> int | None:
        """The first serial, of those below `end`, that is not in the table yet; None if all are, or
        where there is no table."""
        with self._lock:
            table = self._latest()
            reached: int = end if table is None else table.header[_REACHED]
            return None if reached >= end else reached

    def follow(self, rows: Sequence[tuple[int, bytes]], start: int, end: int) -> bool:
        """Enters all entries (serial, key) of a snapshot whose serials are from `start` below
        `end`; False where that was not to be done just now."""
        with self._lock:
            table = self._latest()
            return table is not None and self._follow(table, rows, start, end)

    def _follow(
        self, table: _Table, rows: Sequence[tuple[int, bytes]], start: int, end: int
    ) -> bool:
        with table.locked() as mine:
            if not mine or table.header[_REACHED] < start:
                return False
            self._tags.grown()
            for serial, key in rows:
                table.put(serial, key, self._tags.view)
            table.header[_REACHED] = max(end, table.header[_REACHED])
        return True

    def tell(self, keys: Sequence[bytes], end: int | None) -> Told | None:
        """What is known of these keys, at a time when the table has all serials below `end`; None
        where it may not.  None where there is no table.

        0.15 µs for a key that is absent, 0.25 for one that is here, where the processor's caches
        hold it all.
        """
        with self._lock:
            table = self._table
            if table is None:
                return None
            told = self._tell(table, keys)
            # Looked at behind the look-ups: a server that begins may have cleared it meanwhile.
            if end is None or table.header[_REACHED] < end:
                return Told(told.serials, [], sorted(told.absent + told.unknown))
            return told

    def _tell(self, table: _Table, keys: Sequence[bytes]) -> Told:
        places, mask = table.places, table.mask
        heads = [head & mask for (head,) in map(_head, keys)]
        serials = [places[head] for head in heads]
        absent: list[int] = []
        taken: Sequence[int] = range(len(keys))
        if 0 in serials:
            absent = list(compress(taken, map(not_, serials)))
            taken = list(compress(taken, serials))
            keys = list(compress(keys, serials))
            serials = list(filter(None, serials))
        wanted = tags_of(keys)
        tags = self._tags.view
        try:
            found = [tags[serial] for serial in serials]
        except IndexError:
            # Entered by another process, which had the file grow.
            known = self._tags.grown()
            tags = self._tags.view
            found = [tags[serial] if serial < known else 0 for serial in serials]
        if found == wanted:
            return Told(serials, absent, [])
        unknown: list[int] = []
        for at, position in enumerate(taken):
            if found[at] == wanted[at]:
                continue
            serial = table.find(heads[position], wanted[at], tags)
            if serial is None:
                unknown.append(position)
            elif not serial:
                absent.append(position)
            serials[at] = serial or 0
        absent.sort()
        return Told(list(filter(None, serials)), absent, unknown)

    def _latest(self) -> _Table | None:
        """The table there is, which may be another than before."""
        now = time.monotonic()
        if now < self._look_due or not _WIDE:
            return self._table
        self._look_due = now + LOOK_SECONDS
        path = self._directory / HINTS_FILE
        try:
            inode = path.stat().st_ino
        except FileNotFoundError:
            return self._table
        if self._table is None or self._table.inode != inode:
            table = _Table(path)
            if self._table is not None:
                self._table.close()
            self._table = table if table.usable else None
        return self._table

    # --- for the janitor

    def renew(self, entries: Callable[[], int]) -> bool:
        """Begins the next table, for so many entries, where one is wanted: there is none and they
        are many, or it is full; whether one is begun.

        Raises NoSpace where there is no room for it.
        """
        with self._lock:
            if self._next is not None:
                return True
            self._look_due = 0.0
            table = self._latest()
            if not _WIDE or (table is not None and not table.full):
                return False
            count = entries()
            if table is None and count < LEAST_ENTRIES:
                return False
            places = 1 << (PLACES_PER_ENTRY * count).bit_length()
            path = self._directory / _NEXT_FILE
            with suppress(FileNotFoundError):
                path.unlink()
            self._next = _Table(path, max(LEAST_PLACES, places))
            return True

    def reached(self) -> int:
        """The first serial that is not in the next table."""
        with self._lock:
            return 0 if self._next is None else self._next.header[_REACHED]

    def build(self, rows: Sequence[tuple[int, bytes]], start: int, end: int) -> None:
        """As `follow`, for the next table, and with tags: under LMDB's write lock, so that each of
        these is an entry."""
        if rows:
            first = rows[0][0]
            if rows[-1][0] - first == len(rows) - 1:
                self.enter(first, [key for _, key in rows])
            else:
                for serial, key in rows:
                    self.enter(serial, [key])
        with self._lock:
            if self._next is not None:
                self._follow(self._next, rows, start, end)

    def adopt(self) -> None:
        """Makes the next table the one that all use."""
        with self._lock:
            if self._next is not None:
                # A janitor that ends yet, when its successor has begun, may have done so with this.
                with suppress(FileNotFoundError):
                    os.replace(self._directory / _NEXT_FILE, self._directory / HINTS_FILE)
                self._next.close()
                self._next = None
                self._look_due = 0.0

    def punch(self, first: int, count: int) -> bool:
        """Gives back the room of tags of serials that have no entry; False where the file system
        cannot."""
        return self._tags.punch(first, count)

    def disk_bytes(self) -> int:
        """What all of it takes on disk."""
        taken = self._tags.disk_bytes()
        for name in (HINTS_FILE, _NEXT_FILE):
            with suppress(FileNotFoundError):
                taken += (self._directory / name).stat().st_blocks * 512
        return taken

    def close(self) -> None:
        with self._lock:
            for table in (self._table, self._next):
                if table is not None:
                    table.close()
            self._table = self._next = None
            self._look_due = math.inf
            self._tags.close()


def clear(directory: Path) -> None:
    """Forgets everything: where a server begins, whatever the last one left.  In place, for what
    yet ends of that one."""
    with suppress(FileNotFoundError):
        (directory / _NEXT_FILE).unlink()
    hints, tags = directory / HINTS_FILE, directory / TAGS_FILE
    if hints.exists():
        with closing(Numbers(hints, "Q", _HEADER)) as places:
            fcntl.flock(places.fd, fcntl.LOCK_EX)
            # First of all that it has reached nothing.
            os.pwrite(places.fd, bytes(8 * _HEADER), 0)
            places.clear()
            hints.unlink()
    if tags.exists():
        with closing(Numbers(tags, "Q", TAGS_STEP)) as numbers:
            numbers.clear()
