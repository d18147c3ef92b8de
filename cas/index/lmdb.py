"""The index on disk: an LMDB environment and every transaction on it.

Rule: the only importer of `lmdb`, and the only place where a transaction begins
or ends.  Callers see keys and records; they never hold a cursor.

One environment per process, opened after the process started (LMDB's rule).
Readers never wait: a read is a snapshot.  Writers take LMDB's process-shared lock
one after another; it is a robust mutex, so a killed writer does not keep it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import lmdb

from cas.errors import CasError, DataLoss, NoSpace, StoreClosed
from cas.index.records import (
    ACTION,
    BlobRecord,
    PackedAction,
    action_meta_key,
    cut_action,
    lru_key,
    pack_blob,
    unpack_blob,
)

MAP_SIZES = tuple(1 << power for power in (40, 38, 36, 34, 32))
"""Address space to reserve, in bytes, largest first: the first one that the system grants is
used.  It is a limit on the file's growth, not memory taken."""

MAX_READERS = 1024
SPARE_TRANSACTIONS = 8

PHASES = ("before-put", "before-commit", "after-commit")
"""Where `Index.apply` calls its seam; tests stop a process there."""


class NewBlob(NamedTuple):
    """A blob to enter: its record, and its bytes when they go inline."""

    key: bytes
    record: BlobRecord
    data: bytes | None


class NewAction(NamedTuple):
    """An action result to enter, replacing what is there."""

    key: bytes
    """As `records.action_key` gives it."""
    packed: bytes
    """As `records.pack_action` gives it."""


@dataclass(slots=True)
class Changes:
    """What one write transaction is to do; all of it or nothing."""

    minute: int
    """The time of this transaction, as records hold it."""
    blobs: list[NewBlob] = field(default_factory=list)
    actions: list[NewAction] = field(default_factory=list)
    touched: Iterable[bytes] = ()
    """`meta` keys in use at `minute`; those that are gone meanwhile are passed over."""
    dropped_actions: list[tuple[bytes, bytes]] = field(default_factory=list)
    """(key, `ac` record) of action results found dead: dropped if they are still the same."""


class Totals(NamedTuple):
    """How much the index knows of."""

    blobs: int
    actions: int
    used_bytes: int
    """Pages of the index's file that hold anything, in bytes."""


class Index:
    """The open environment.  Any thread may call any method."""

    def __init__(
        self,
        path: Path,
        *,
        sync: bool = True,
        seam: Callable[[str], None] | None = None,
    ) -> None:
        """Opens or makes the index in `path`, an existing directory.

        `sync` False leaves the write-back to `flush` (durability batch and none).
        """
        self._seam = seam
        self._closed = False
        self._env = _open(path, sync)
        self._meta = self._env.open_db(b"meta")
        self._data = self._env.open_db(b"data")
        self._lru = self._env.open_db(b"lru")
        self._ac = self._env.open_db(b"ac")

    # --- reads -----------------------------------------------------------------------

    def present(self, keys: Sequence[bytes]) -> list[bytes]:
        """Those of `keys` that name a blob, in the order asked."""
        with self._read() as txn, txn.cursor(self._meta) as cursor:
            # One call for all keys: a loop of lookups would take and release the GIL for each.
            found: list[bytes] = cursor.getmulti(keys, values=False)
            return found

    def contains(self, key: bytes) -> bool:
        with self._read() as txn:
            return txn.get(key, db=self._meta) is not None

    def inline(self, key: bytes) -> bytes | None:
        """The bytes of a blob that is kept inline; None says nothing of other blobs."""
        with self._read() as txn:
            data: bytes | None = txn.get(key, db=self._data)
            return data

    def inline_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """As `inline`, for many keys in one snapshot."""
        with self._read() as txn, txn.cursor(self._data) as cursor:
            return dict(cursor.getmulti(keys))

    def blob(self, key: bytes) -> BlobRecord | None:
        with self._read() as txn:
            raw = txn.get(key, db=self._meta)
        return None if raw is None else unpack_blob(raw)

    def find(self, prefix: bytes) -> bytes | None:
        """The first key that begins with `prefix`: a function's code and a hash, where a
        protocol names no size."""
        with self._read() as txn, txn.cursor(self._meta) as cursor:
            if cursor.set_range(prefix):
                key: bytes = cursor.key()
                return key if key.startswith(prefix) else None
        return None

    def action(self, key: bytes) -> PackedAction | None:
        """The action result, whether or not its blobs are there."""
        with self._read() as txn:
            raw = txn.get(key, db=self._ac)
        return None if raw is None else cut_action(raw)

    def complete_action(self, key: bytes) -> tuple[PackedAction | None, bool]:
        """The action result, and whether every blob it references is present: one snapshot,
        no message parsed.  (None, False) when there is none."""
        with self._read() as txn:
            raw = txn.get(key, db=self._ac)
            if raw is None:
                return None, False
            action = cut_action(raw)
            meta = self._meta
            for reference in action.references:
                if txn.get(reference, db=meta) is None:
                    return action, False
        return action, True

    def packed_action(self, key: bytes) -> bytes | None:
        """The whole `ac` record, for those who decode it with `records.unpack_action`."""
        with self._read() as txn:
            packed: bytes | None = txn.get(key, db=self._ac)
            return packed

    def keys(self, after: bytes = b"", limit: int = 1000) -> list[tuple[bytes, BlobRecord]]:
        """Up to `limit` entries of `meta` behind key `after`, in key order: a page of a walk
        that holds no snapshot between pages."""
        out: list[tuple[bytes, BlobRecord]] = []
        with self._read() as txn, txn.cursor(self._meta) as cursor:
            found = cursor.set_range(after) if after else cursor.first()
            if found and after and cursor.key() == after:
                found = cursor.next()
            while found and len(out) < limit:
                out.append((cursor.key(), unpack_blob(cursor.value())))
                found = cursor.next()
        return out

    def totals(self) -> Totals:
        with self._read() as txn:
            actions = txn.stat(self._ac)["entries"]
            return Totals(
                txn.stat(self._meta)["entries"] - actions,
                actions,
                (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"],
            )

    # --- writes ----------------------------------------------------------------------

    def apply(self, changes: Changes) -> list[NewBlob]:
        """Commits `changes` whole and returns those of its blobs that were there before:
        nothing was written for them.

        Raises NoSpace when the disk or the map is full; nothing was changed then.
        """
        known: list[NewBlob] = []
        with self._write() as txn:
            self._reach("before-put")
            self._put_blobs(txn, changes, known)
            self._put_actions(txn, changes)
            for key, packed in changes.dropped_actions:
                if txn.get(key, db=self._ac) == packed:
                    self._drop(txn, key)
            self._touch(txn, changes.touched, changes.minute)
            self._reach("before-commit")
        self._reach("after-commit")
        return known

    def flush(self) -> None:
        """Writes back what commits left to the system (durability batch and none)."""
        with _translated():
            self._env.sync(True)

    def clear_dead_readers(self) -> int:
        """Frees the slots of readers whose process died: such a slot keeps old pages alive."""
        with _translated():
            return int(self._env.reader_check())

    def close(self) -> None:
        self._closed = True
        self._env.close()

    # --- inside a write transaction ---------------------------------------------------

    def _put_blobs(self, txn: Any, changes: Changes, known: list[NewBlob]) -> None:
        data: list[tuple[bytes, bytes]] = []
        lru: list[tuple[bytes, bytes]] = []
        for blob in changes.blobs:
            key, record, content = blob
            if not txn.put(key, pack_blob(record), overwrite=False, db=self._meta):
                known.append(blob)
                continue
            if content is not None:
                data.append((key, content))
            lru.append((lru_key(record.last_use, key), b""))
        if data:
            with txn.cursor(self._data) as cursor:
                cursor.putmulti(data)
        if lru:
            with txn.cursor(self._lru) as cursor:
                cursor.putmulti(lru)

    def _put_actions(self, txn: Any, changes: Changes) -> None:
        minute = changes.minute
        for key, packed in changes.actions:
            size = len(packed)
            meta_key = action_meta_key(key)
            old = txn.replace(
                meta_key, pack_blob(BlobRecord(ACTION, 0, minute, size, size)), db=self._meta
            )
            txn.put(key, packed, db=self._ac)
            if old is not None:
                last_use = unpack_blob(old).last_use
                if last_use == minute:
                    continue
                txn.delete(lru_key(last_use, meta_key), db=self._lru)
            txn.put(lru_key(minute, meta_key), b"", db=self._lru)

    def _touch(self, txn: Any, keys: Iterable[bytes], minute: int) -> None:
        for key in keys:
            raw = txn.get(key, db=self._meta)
            if raw is None:
                continue
            record = unpack_blob(raw)
            if record.last_use >= minute:
                continue
            # What is not in the lru table is pinned (the empty blob) and stays so.
            if txn.delete(lru_key(record.last_use, key), db=self._lru):
                txn.put(lru_key(minute, key), b"", db=self._lru)
                txn.put(key, pack_blob(record._replace(last_use=minute)), db=self._meta)

    def _drop(self, txn: Any, action: bytes) -> None:
        meta_key = action_meta_key(action)
        raw = txn.pop(meta_key, db=self._meta)
        if raw is not None:
            txn.delete(lru_key(unpack_blob(raw).last_use, meta_key), db=self._lru)
        txn.delete(action, db=self._ac)

    def pin(self, blobs: Sequence[NewBlob]) -> None:
        """Enters blobs that eviction never sees: they have no place in the lru table."""
        with self._write() as txn:
            for key, record, content in blobs:
                if txn.put(key, pack_blob(record), overwrite=False, db=self._meta):
                    txn.put(key, content or b"", db=self._data)

    # --- transactions ----------------------------------------------------------------

    @contextmanager
    def _write(self) -> Iterator[Any]:
        if self._closed:
            raise StoreClosed("the index is closed")
        with _translated(), self._env.begin(write=True) as txn:
            yield txn

    # Any: without `buffers` every key and value is bytes, which lmdb's types cannot say.
    def _read(self) -> Any:
        try:
            return self._env.begin()
        except lmdb.Error as error:
            if self._closed:
                raise StoreClosed("the index is closed") from None
            raise _translate(error) from error

    def _reach(self, phase: str) -> None:
        if self._seam is not None:
            self._seam(phase)


def _open(path: Path, sync: bool) -> lmdb.Environment:
    for size in MAP_SIZES:
        try:
            return lmdb.open(
                str(path),
                map_size=size,
                max_dbs=8,
                max_readers=MAX_READERS,
                max_spare_txns=SPARE_TRANSACTIONS,
                subdir=True,
                sync=sync,
                metasync=sync,
                readahead=False,
                meminit=False,
            )
        except (MemoryError, lmdb.MemoryError):
            continue
        except lmdb.Error as error:
            raise _translate(error, path) from error
    raise NoSpace(f"the system grants no {MAP_SIZES[-1]} bytes of address space for {path}")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except lmdb.Error as error:
        raise _translate(error) from error


def _translate(error: lmdb.Error, path: Path | None = None) -> CasError:
    where = f" in {path}" if path is not None else ""
    if isinstance(error, (lmdb.MapFullError, lmdb.DiskError)):
        return NoSpace(f"the index{where} has no room left: {error}")
    if isinstance(error, (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError)):
        return DataLoss(f"the index{where} is damaged: {error}")
    return CasError(f"the index{where} failed: {error}")
