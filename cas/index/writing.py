"""What is done inside a write transaction: the tables kept in step with one another.

Rule: transactions are `lmdb`'s, which begins and ends each; here an entry gets its rows in all
tables, or loses them all.  What else must follow (sums of sizes before the commit, times of use
behind it) is noted as it goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cas.index.changes import Changes, NewBlob, on_disk
from cas.index.hints import Hints
from cas.index.records import (
    FILE,
    IN_FILES,
    INLINE,
    PACKED,
    PACKED_INLINE,
    SERIAL,
    STORED,
    Record,
    pack_record,
    unpack_record,
)
from cas.index.tables import (
    FILE_BYTES,
    NEXT_SERIAL,
    PLACE,
    UNSENT_BYTES,
    UNSENT_ROW,
    Tables,
    counted,
    is_dead,
    number,
    waits,
)
from cas.index.uses import UseTimes


@dataclass(slots=True)
class Writing:
    """One transaction's work."""

    tables: Tables
    uses: UseTimes
    hints: Hints
    recount: bool = False
    """Whether to sum up `file_bytes` of all entries anew, and `unsent_bytes`."""
    file_bytes: int = 0
    """By how much the blobs' files grow."""
    unsent_bytes: int = 0
    """By how much what waits to be sent upstream grows."""
    gone: list[int] = field(default_factory=list)
    """Serials of entries that were removed."""

    # --- entries

    def put(self, changes: Changes) -> list[NewBlob]:
        """Enters blobs and actions; the blobs that were there before."""
        # Serials ascend, so `data` and `order` grow at their ends: pages fill up one after
        # another and few are touched, where random keys would touch one page each.
        txn, meta, in_data, in_order, _, _ = self.tables
        known: list[NewBlob] = []
        data: list[tuple[bytes, bytes]] = []
        order: list[tuple[bytes, bytes]] = []
        minute = changes.minute
        # Not 0, which is no entry to `hints`; a store's first is a pinned one.
        serial = first = counted(txn, NEXT_SERIAL) or 1
        for blob in changes.blobs:
            key, content, generation, stored, packed = blob
            if content is not None:
                where = PACKED_INLINE if packed else INLINE
                record = Record(where, minute, serial, 0, len(content))
            else:
                where = PACKED if packed else FILE
                record = Record(where, minute, serial, generation, stored)
            if not txn.put(key, pack_record(record), overwrite=False, db=meta):
                known.append(blob)
                continue
            place = PLACE.pack(serial)
            if content is not None:
                data.append((place, content))
            else:
                self.file_bytes += on_disk(stored)
            order.append((place, key))
            serial += 1
        # Of several results for one action in this transaction, the last one counts.
        for key, value, where in {entry.key: entry for entry in changes.actions}.values():
            record = Record(where, minute, serial, 0, len(value))
            old = txn.replace(key, pack_record(record), db=meta)
            if old is not None:
                self._forget(unpack_record(old))
            place = PLACE.pack(serial)
            data.append((place, value))
            order.append((place, key))
            serial += 1
        if serial != first:
            txn.put(NEXT_SERIAL, PLACE.pack(serial))
            # Before the commit: an entry without a time would never be evicted.
            self.uses.enter(first, serial - first, minute)
            self.hints.enter(first, [key for _, key in order])
            with txn.cursor(in_data) as cursor:
                cursor.putmulti(data, append=True)
            with txn.cursor(in_order) as cursor:
                cursor.putmulti(order, append=True)
        return known

    def pin(self, blobs: Iterable[NewBlob]) -> None:
        """Enters blobs that eviction never sees: they have no place in `order`."""
        txn, meta, data, *_ = self.tables
        serial = counted(txn, NEXT_SERIAL)
        for key, content, generation, stored, _ in blobs:
            record = pack_record(Record(INLINE, 0, serial, generation, stored))
            if txn.put(key, record, overwrite=False, db=meta):
                txn.put(PLACE.pack(serial), content or b"", db=data)
                serial += 1
        txn.put(NEXT_SERIAL, PLACE.pack(serial))

    def remove(self, key: bytes) -> None:
        raw = self.tables.txn.pop(key, db=self.tables.meta)
        if raw is not None:
            self._forget(unpack_record(raw))

    def remove_same(self, key: bytes, record: Record) -> bool:
        """Removes an entry if it is still this one; whether it was."""
        raw = self.tables.txn.get(key, db=self.tables.meta)
        if raw is None or raw[SERIAL] != PLACE.pack(record.serial):
            return False
        self.remove(key)
        return True

    def evict(
        self, key: bytes, record: Record, unused_since: int, *, unsent_too: bool = False
    ) -> bool:
        """Removes an entry if it is still this one, was not used after minute `unused_since`, and,
        unless `unsent_too`, does not wait to be sent; whether it did.  Its file is condemned."""
        place = PLACE.pack(record.serial)
        if self.uses.load(record.serial) > unused_since:
            return False
        if not unsent_too and waits(self.tables, place):
            return False
        if not self.remove_same(key, record):
            return False
        if record.where in IN_FILES:
            txn, condemned = self.tables.txn, self.tables.condemned
            txn.put(place, pack_record(record) + key, db=condemned)
        return True

    def files_are_gone(self, serials: Iterable[int]) -> None:
        """Of entries that were evicted."""
        for serial in serials:
            self.tables.txn.delete(PLACE.pack(serial), db=self.tables.condemned)

    def drop_dead(self, key: bytes, packed: bytes) -> None:
        """Drops an action result or a value, unless it is another now, or not dead any more: its
        blobs may have come meanwhile, and somebody may have been told so."""
        txn, meta, data, *_ = self.tables
        raw = txn.get(key, db=meta)
        if raw is None or txn.get(raw[SERIAL], db=data) != packed:
            return
        if is_dead(self.tables, raw[SERIAL], packed):
            self.remove(key)

    def _forget(self, record: Record) -> None:
        """Removes what other tables hold of an entry that is gone from `meta`."""
        txn, _, data, order, _, unsent = self.tables
        place = PLACE.pack(record.serial)
        txn.delete(place, db=order)
        if record.where in IN_FILES:
            self.file_bytes -= on_disk(record.stored)
        else:
            txn.delete(place, db=data)
        if unsent is not None:
            self.unqueue(place)
        self.gone.append(record.serial)

    # --- the queue of what is to be sent upstream

    def queue(self, keys: Sequence[bytes], second: int) -> None:
        """Has entries wait to be sent upstream; under their serials, so that what becomes of an
        entry becomes of its place in the queue."""
        txn, meta, _, _, _, unsent = self.tables
        with txn.cursor(meta) as cursor:
            # Empty blobs have nothing to send.
            sizes = {raw[SERIAL]: raw[STORED] for _, raw in cursor.getmulti(keys)}
        with txn.cursor(unsent) as cursor:
            for place in cursor.getmulti(list(sizes), values=False):
                del sizes[place]
            since = PLACE.pack(second)
            rows = [(place, since + size) for place, size in sizes.items() if any(size)]
            cursor.putmulti(rows)
        self.unsent_bytes += sum([UNSENT_ROW.unpack(row)[1] for _, row in rows])

    def unqueue(self, place: bytes) -> None:
        raw = self.tables.txn.pop(place, db=self.tables.unsent)
        if raw is not None:
            self.unsent_bytes -= UNSENT_ROW.unpack(raw)[1]

    # --- sums

    def count_files(self) -> None:
        """Keeps the sum of what the blobs' files take on disk."""
        txn, meta = self.tables.txn, self.tables.meta
        raw = txn.get(FILE_BYTES)
        if raw is not None and not self.recount:
            total = max(0, number(raw) + self.file_bytes)
        else:
            with txn.cursor(meta) as cursor:
                records = (unpack_record(raw) for raw in cursor.iternext(keys=False, values=True))
                total = sum(on_disk(found.stored) for found in records if found.where in IN_FILES)
        txn.put(FILE_BYTES, PLACE.pack(total))

    def count_unsent(self) -> None:
        """Keeps the sum of what waits to be sent upstream."""
        txn, unsent = self.tables.txn, self.tables.unsent
        if unsent is None:
            return
        if self.recount:
            with txn.cursor(unsent) as cursor:
                rows = cursor.iternext(keys=False, values=True)
                total = sum(UNSENT_ROW.unpack(row)[1] for row in rows)
        else:
            total = max(0, counted(txn, UNSENT_BYTES) + self.unsent_bytes)
        txn.put(UNSENT_BYTES, PLACE.pack(total))
