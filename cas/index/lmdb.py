"""The index on disk: an LMDB environment and every transaction on it.

Rule: the only place where a transaction begins or ends.  Callers see keys and
records; they never hold a cursor, and a snapshot only by way of `Lent`.  What a write does to
the tables is `writing`'s.

One environment per process, opened after the process started (LMDB's rule).
Readers never wait: a read is a snapshot.  Writers take LMDB's process-shared lock
one after another; it is a robust mutex, so a killed writer does not keep it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import lmdb

from cas.errors import CasError, NoSpace, StoreClosed
from cas.index.changes import Changes, NewBlob, Totals
from cas.index.environment import DATA_FILE, USES_FILE, open_environment, translate, translated
from cas.index.hints import Hints
from cas.index.records import (
    INLINE,
    SERIAL,
    WHERE,
    PackedAction,
    Record,
    cut_action,
    serials,
    unpack_record,
)
from cas.index.tables import (
    FILE_BYTES,
    NEXT_SERIAL,
    PLACE,
    Tables,
    counted,
    number,
    rows_from,
    seek_behind,
)
from cas.index.uses import UseTimes
from cas.index.writing import Writing

FOLLOWED = 1000
"""Most serials that a look-up has the hints follow: 2 ms."""

LENT_BYTES = 8 << 10
"""Values from this size on are lent where a caller can do with that: to copy less costs less."""

P = ParamSpec("P")
R = TypeVar("R")


def _reads(method: Callable[P, R]) -> Callable[P, R]:
    """`method`, whose reads may find the file damaged; costs 0.1 µs."""

    @wraps(method)
    def read(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except lmdb.Error as error:
            raise translate(error) from error

    return read


class Lent:
    """A value where it lies in the index, and the snapshot that keeps it there.

    LMDB writes no page anew that a snapshot shows, so whoever is lent one gives it back soon."""

    __slots__ = ("_txn", "view")

    def __init__(self, txn: Any, view: memoryview) -> None:
        self._txn = txn
        self.view = view
        """Of no use once it was given back."""

    def release(self) -> None:
        """Gives it back; what still is a view of `view` must be released before."""
        self.view.release()
        self._txn.abort()


class Index:
    """The open environment.  Any thread may call any method."""

    def __init__(
        self,
        path: Path,
        *,
        sync: bool = True,
        seam: Callable[[str], None] | None = None,
        queue: bool = False,
    ) -> None:
        """Opens or makes the index in `path`, an existing directory.  `queue` makes the table of
        what is to be sent upstream where there is none; one that is there is always opened.

        `sync` False leaves the write-back to `flush` (durability batch and none).  `seam` is
        called with "before-put" (`apply`) or "before-remove" (`remove`, `evict`, `sent`),
        "before-commit" and "after-commit"; tests stop a process there.

        Raises DataLoss when the file is damaged; the message names the way out.
        """
        self._seam = seam
        self._closed = False
        self._pinned: frozenset[bytes] = frozenset()
        self.path = path
        self._env = open_environment(path, sync)
        try:
            with translated(path):
                self._meta = self._env.open_db(b"meta")
                self._data = self._env.open_db(b"data", integerkey=True)
                self._order = self._env.open_db(b"order", integerkey=True)
                self._condemned = self._env.open_db(b"condemned", integerkey=True)
                self._unsent = self._open_unsent(create=queue)
                self._begin_counting()
        except BaseException:
            self._env.close()
            raise
        self.uses = UseTimes(path / USES_FILE)
        """For this package's other modules."""
        self.hints = Hints(path)
        """As `uses`."""

    # --- reads -----------------------------------------------------------------------

    @_reads
    def present(self, keys: Sequence[bytes]) -> list[bytes]:
        """Those of `keys` that name a blob, in the order asked."""
        with self._read() as txn:
            return self._present(txn, keys)

    def check(self) -> None:
        """Raises CasError when this process can use the index no more: after a fault at the one
        write that LMDB cannot undo it refuses everything, and only opening it anew helps."""
        try:
            self._env.begin().abort()
        except lmdb.PanicError as error:
            raise translate(error, self.path) from error
        except lmdb.Error:
            return  # May pass; whoever reads is told.

    @_reads
    def contains(self, key: bytes) -> bool:
        with self._read() as txn:
            return txn.get(key, db=self._meta) is not None

    @_reads
    def inline(self, key: bytes) -> bytes | None:
        """The bytes of a blob that is kept inline; None says nothing of other blobs."""
        with self._read() as txn:
            raw = txn.get(key, db=self._meta)
            if raw is None or raw[WHERE] != INLINE:
                return None
            data: bytes | None = txn.get(raw[SERIAL], db=self._data)
            return data

    @_reads
    def stored(self, record: Record) -> bytes | None:
        """What the index keeps of an entry as it is; None if it is gone."""
        with self._read() as txn:
            data: bytes | None = txn.get(PLACE.pack(record.serial), db=self._data)
            return data

    @_reads
    def inline_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """As `inline`, for many keys in one snapshot."""
        with self._read() as txn:
            with txn.cursor(self._meta) as cursor:
                serials = {
                    raw[SERIAL]: key for key, raw in cursor.getmulti(keys) if raw[WHERE] == INLINE
                }
            with txn.cursor(self._data) as cursor:
                return {serials[serial]: data for serial, data in cursor.getmulti(serials)}

    @_reads
    def record(self, key: bytes) -> Record | None:
        with self._read() as txn:
            raw = txn.get(key, db=self._meta)
        return None if raw is None else unpack_record(raw)

    @_reads
    def find(self, prefix: bytes) -> bytes | None:
        """The first key that begins with `prefix`: a function's code and a hash, where a
        protocol names no size."""
        with self._read() as txn, txn.cursor(self._meta) as cursor:
            if cursor.set_range(prefix):
                key: bytes = cursor.key()
                return key if key.startswith(prefix) else None
        return None

    @_reads
    def find_inline(self, prefix: bytes) -> tuple[bytes, bytes | Lent | None] | None:
        """As `find`, with the blob's bytes when they are kept inline: a copy, or from
        `LENT_BYTES` on the bytes themselves."""
        # A transaction that is dropped ends, as py-lmdb has it.
        txn = self._read_views()
        cursor = txn.cursor(self._meta)
        if not cursor.set_range(prefix):
            return None
        key = bytes(cursor.key())
        if not key.startswith(prefix):
            return None
        raw = cursor.value()
        view = txn.get(raw[SERIAL], None, self._data) if raw[WHERE] == INLINE else None
        if view is None:
            return key, None
        return key, bytes(view) if len(view) < LENT_BYTES else Lent(txn, view)

    @_reads
    def complete_action(self, key: bytes) -> tuple[PackedAction | None, bool]:
        """The action result, and whether every blob it references is present: one snapshot,
        no message parsed.  (None, False) when there is none."""
        with self._read() as txn:
            packed = self._action(txn, key)
            if packed is None:
                return None, False
            action = cut_action(packed)
            return action, len(self._present(txn, action.references)) == len(action.references)

    @_reads
    def packed_action(self, key: bytes) -> bytes | None:
        """The whole stored action, for those who decode it with `records.unpack_action`."""
        with self._read() as txn:
            return self._action(txn, key)

    @_reads
    def use(self, keys: Sequence[bytes], minute: int) -> list[bytes]:
        """`present`, and `touch` of what is: in one look-up for each, where many keys that are
        seldom the same would cost two, and most of either is waiting for memory."""
        with self._read() as txn, txn.cursor(self._meta) as cursor:
            found = cursor.getmulti(keys)
        # What is here is here, whether or not its use can be noted.
        with suppress(NoSpace):
            self.uses.store(serials([raw for _, raw in found]), minute)
        return [key for key, _ in found]

    @_reads
    def find_missing(self, keys: Sequence[bytes], minute: int) -> list[int] | None:
        """Positions, ascending, of those keys that name no blob, by `hints` as far as they go;
        the others are noted as used at `minute`.  None, and nothing done, without hints."""
        if not self.hints.ready():
            return None
        with self._read() as txn:
            told = self.hints.tell(keys, self._followed(txn))
            if told is None:
                return None
            used, missing, unknown = told
            if unknown:
                with txn.cursor(self._meta) as cursor:
                    raws = dict(cursor.getmulti([keys[position] for position in unknown]))
                used += serials(raws.values())
                missing += [position for position in unknown if keys[position] not in raws]
                missing.sort()
        with suppress(NoSpace):
            self.uses.store(used, minute)
        pinned = self._pinned
        return [position for position in missing if keys[position] not in pinned]

    def _followed(self, txn: Any) -> int | None:
        """Has the hints follow what was committed since, if that is little; above the serials
        that they know then, None where that is not all of the snapshot."""
        end = counted(txn, NEXT_SERIAL)
        start = self.hints.behind(end)
        if start is None:
            return end
        if end - start > FOLLOWED:
            return None
        rows = rows_from(self._tables(txn), start, FOLLOWED)
        return end if self.hints.follow(rows, start, end) else None

    def _present(self, txn: Any, keys: Sequence[bytes]) -> list[bytes]:
        with txn.cursor(self._meta) as cursor:
            # One call for all keys: a loop of lookups would take and release the GIL for each.
            found: list[bytes] = cursor.getmulti(keys, values=False)
            return found

    def _action(self, txn: Any, key: bytes) -> bytes | None:
        raw = txn.get(key, db=self._meta)
        if raw is None:
            return None
        packed: bytes | None = txn.get(raw[SERIAL], db=self._data)
        return packed

    @_reads
    def keys(self, after: bytes = b"", limit: int = 1000) -> list[tuple[bytes, Record]]:
        """Up to `limit` entries of `meta` behind key `after`, in key order: a page of a walk
        that holds no snapshot between pages."""
        out: list[tuple[bytes, Record]] = []
        with self._read() as txn, txn.cursor(self._meta) as cursor:
            found = seek_behind(cursor, after)
            while found and len(out) < limit:
                out.append((cursor.key(), unpack_record(cursor.value())))
                found = cursor.next()
        return out

    @_reads
    def entries(self) -> int:
        """How many there are."""
        with self._read() as txn:
            count: int = txn.stat(self._meta)["entries"]
            return count

    @_reads
    def totals(self) -> Totals:
        with self._read() as txn:
            raw = txn.get(FILE_BYTES)
            if raw is not None or not txn.stat(self._meta)["entries"]:
                return self._totals(txn, raw)
        # An index from before they were counted.
        with self._write() as writing:
            writing.recount = True
        with self._read() as txn:
            return self._totals(txn, txn.get(FILE_BYTES))

    def _totals(self, txn: Any, file_bytes: bytes | None) -> Totals:
        size = self._env.stat()["psize"]
        used = (self._env.info()["last_pgno"] + 1) * size
        found = txn.stat(self._meta)
        live = _pages(found)
        for table in (self._data, self._order, self._condemned, self._unsent):
            if table is not None:
                live += _pages(txn.stat(table))
        disk = os.stat(self.path / DATA_FILE).st_blocks * 512
        files = 0 if file_bytes is None else number(file_bytes)
        beside = self.uses.disk_bytes() + self.hints.disk_bytes()
        return Totals(found["entries"], used, live * size, disk, beside, files)

    # --- writes ----------------------------------------------------------------------

    def remove(self, entries: Sequence[tuple[bytes, Record]]) -> list[tuple[bytes, Record]]:
        """Removes those of `entries` that are still the same (their serial tells), in one
        transaction, and returns them: nothing names their files any more.

        Raises NoSpace when the disk or the map is full; nothing was changed then.
        """
        with self._write("before-remove") as writing:
            return [entry for entry in entries if writing.remove_same(*entry)]

    def evict(
        self,
        entries: Sequence[tuple[bytes, Record]],
        unused_since: int,
        done: Iterable[int] = (),
        *,
        unsent_too: bool = False,
    ) -> list[tuple[bytes, Record]]:
        """As `remove`, for those of `entries` that were not used after minute `unused_since`, and,
        unless `unsent_too`, do not wait to be sent upstream.

        Notes in the same transaction which files are to go, so that a process that is killed
        before it removed them leaves no orphans: see `aging.condemned`.  `done` are the serials of
        earlier ones whose files are gone.
        """
        with self._write("before-remove") as writing:
            writing.files_are_gone(done)
            return [
                entry
                for entry in entries
                if writing.evict(*entry, unused_since, unsent_too=unsent_too)
            ]

    def apply(self, changes: Changes) -> list[NewBlob]:
        """Commits `changes` whole and returns those of its blobs that were there before:
        nothing was written for them.

        Raises NoSpace when the disk or the map is full; nothing was changed then.
        """
        with self._write("before-put") as writing:
            for key in changes.dropped:
                writing.remove(key)
            known = writing.put(changes)
            if changes.unsent:
                writing.queue(changes.unsent, changes.second)
            for key, packed in changes.dropped_actions:
                writing.drop_dead(key, packed)
        return known

    def sent(self, serials: Iterable[int]) -> None:
        """Takes entries off the queue."""
        with self._write("before-remove") as writing:
            for serial in serials:
                writing.unqueue(PLACE.pack(serial))

    def pin(self, blobs: Sequence[NewBlob]) -> None:
        """Enters blobs, unless they are there, that neither eviction nor the hints ever see."""
        keys = [blob.key for blob in blobs]
        if len(self.present(keys)) < len(keys):
            with self._write() as writing:
                writing.pin(blobs)
        self._pinned = frozenset(keys)

    def touch(self, keys: Iterable[bytes], minute: int) -> None:
        """Notes that these entries were used at `minute`; absent ones are passed over.

        No transaction but a read: see `uses`.
        """
        with self._read() as txn, txn.cursor(self._meta) as cursor:
            found = cursor.getmulti(keys)
        self.uses.store(serials([raw for _, raw in found]), minute)

    def last_use(self, record: Record) -> int:
        """The minute of an entry's last use, or of its writing."""
        return max(record.written, self.uses.load(record.serial))

    def flush(self) -> None:
        """Writes back what commits left to the system (durability batch and none)."""
        with translated():
            self._env.sync(True)

    def clear_dead_readers(self) -> int:
        """Frees the slots of readers whose process died: such a slot keeps old pages alive."""
        with translated():
            return int(self._env.reader_check())

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.uses.close()
        self.hints.close()
        self._env.close()

    # --- for this package's other modules ----------------------------------------------

    def reader_transactions(self) -> list[int]:
        """The numbers of the transactions whose state somebody reads just now."""
        with translated():
            rows = [line.split() for line in str(self._env.readers()).splitlines()]
        return [int(row[2]) for row in rows if len(row) == 3 and row[2].isdigit()]

    @contextmanager
    def reading(self) -> Iterator[Tables]:
        """One snapshot."""
        with translated(), self._read() as txn:
            yield self._tables(txn)

    @contextmanager
    def writing(self, *, recount: bool = False) -> Iterator[Tables]:
        """One transaction, committed at the end of the block, undone by an error.  `recount`
        where it may change which blobs have files."""
        with self._write("") as writing:
            writing.recount = recount
            yield writing.tables

    def _tables(self, txn: Any) -> Tables:
        return Tables(txn, self._meta, self._data, self._order, self._condemned, self._unsent)

    # --- transactions ----------------------------------------------------------------

    @contextmanager
    def _write(self, phase: str | None = None) -> Iterator[Writing]:
        """One transaction.  The seam is called with `phase`, unless that is "", and for its
        commit; for None not at all."""
        if self._closed:
            raise StoreClosed("the index is closed")
        seam = None if phase is None else self._seam
        try:
            with self._env.begin(write=True) as txn:
                writing = Writing(self._tables(txn), self.uses, self.hints)
                if seam is not None and phase:
                    seam(phase)
                yield writing
                if writing.gone:
                    self.hints.doubt(writing.gone)
                if seam is not None:
                    seam("before-commit")
                if writing.file_bytes or writing.recount:
                    writing.count_files()
                if writing.unsent_bytes or writing.recount:
                    writing.count_unsent()
        except lmdb.Error as error:
            raise translate(error, self.path) from error
        if writing.gone:
            self.hints.bury(writing.gone)
            # After the commit: an entry that stays keeps its time.
            self.uses.clear(writing.gone)
        if seam is not None:
            seam("after-commit")

    def _open_unsent(self, *, create: bool) -> Any:
        try:
            return self._env.open_db(b"unsent", integerkey=True, create=create)
        except lmdb.NotFoundError:
            return None

    def _begin_counting(self) -> None:
        # Else the first file, or the first look of the janitor, would have all entries counted.
        with self._env.begin() as txn:
            begun = txn.get(FILE_BYTES) is not None or txn.stat(self._meta)["entries"]
        if not begun:
            with self._env.begin(write=True) as txn:
                if not txn.stat(self._meta)["entries"]:
                    txn.put(FILE_BYTES, PLACE.pack(0), overwrite=False)

    # Any: without `buffers` every key and value is bytes, which lmdb's types cannot say.
    def _read(self) -> Any:
        try:
            return self._env.begin()
        except lmdb.Error as error:
            raise self._unreadable(error) from error

    def _read_views(self) -> Any:
        """As `_read`; keys and values are views into the map, good until it ends."""
        try:
            return self._env.begin(None, None, False, True)
        except lmdb.Error as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: lmdb.Error) -> CasError:
        return StoreClosed("the index is closed") if self._closed else translate(error)


def _pages(stat: dict[str, int]) -> int:
    return stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
