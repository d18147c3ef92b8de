"""What `fsck` asks of the index's tables, and how they are mended.

Rule: transactions are `lmdb`'s; here is what to look for in them.  Walks go page by page, so
that they may run beside a server, and hold nothing per entry.

What must hold: each `meta` record has its row in `order`, except the empty blobs, which
nothing may evict; one that is not in a file has its bytes in `data`; no other rows are in
either, nor in `unsent`; and the next serial is above every one in use.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cas import digest as digests
from cas.digest import FUNCTIONS
from cas.errors import DataLoss
from cas.index.lmdb import Index
from cas.index.records import (
    BLOBS,
    IN_FILES,
    INLINE,
    PACKED_INLINE,
    SERIAL,
    VALUE,
    Record,
    cut_action,
    cut_value,
    unpack_record,
)
from cas.index.tables import NEXT_SERIAL, PLACE, Tables, counted, key_at, number, seek_behind

PAGE = 1000
"""Rows in one snapshot."""

ORDER, DATA, UNSENT = "order", "data", "unsent"


class Row(NamedTuple):
    """An entry of `meta`, and what is wrong with it inside the index."""

    key: bytes
    record: Record | None
    """None when it cannot be read."""
    wrong: str
    """Empty when all is well; else as a sentence goes on after the entry's name."""
    unlisted: bool
    """Whether it lacks its row in `order`."""


class Stray(NamedTuple):
    """A row that no record names."""

    table: str
    serial: int


@dataclass(slots=True)
class Mending:
    """What one transaction is to mend."""

    drop: list[bytes] = field(default_factory=list)
    """Entries that are of no use."""
    enlist: list[tuple[bytes, Record]] = field(default_factory=list)
    strays: list[Stray] = field(default_factory=list)


def rows(index: Index, after: bytes = b"") -> Iterator[Row]:
    """Every entry behind the key `after`, in key order."""
    while True:
        page: list[Row] = []
        with index.reading() as tables, tables.txn.cursor(tables.meta) as cursor:
            found = seek_behind(cursor, after)
            while found and len(page) < PAGE:
                page.append(_row(tables, cursor.key(), cursor.value()))
                found = cursor.next()
        yield from page
        if len(page) < PAGE:
            return
        after = page[-1].key


def _row(tables: Tables, key: bytes, raw: bytes) -> Row:
    pinned = key in _PINNED
    try:
        record = unpack_record(raw)
        if record.where in BLOBS:
            digests.from_key(key)
    except DataLoss as error:
        return Row(key, None, f"cannot be read: {error}", unlisted=False)
    place = raw[SERIAL]
    wrong = ""
    if record.where not in IN_FILES:
        wrong = _judge_data(key, record, tables.txn.get(place, db=tables.data))
    listed = tables.txn.get(place, db=tables.order)
    if listed is not None and listed != key:
        wrong = f"has the number of another entry, {record.serial}"
    return Row(key, record, wrong, unlisted=not pinned and listed is None)


def _judge_data(key: bytes, record: Record, data: bytes | None) -> str:
    if data is None:
        return "has no bytes"
    if record.where == PACKED_INLINE:
        return "" if len(data) == record.stored else f"has {len(data)} bytes"
    if record.where != INLINE:
        try:
            action = cut_action(data)
            if record.where == VALUE:
                cut_value(action)
        except DataLoss as error:
            return f"cannot be read: {error}"
        return ""
    size = digests.from_key(key).size
    return "" if len(data) == size else f"has {len(data)} bytes"


def strays(index: Index, unlisted: Container[int] = ()) -> Iterator[Stray]:
    """Every row of `order`, `data` and `unsent` that no record names.  `unlisted` are the serials
    of entries that `rows` found so: their bytes are found by way of `order`."""
    with index.reading() as tables:
        raws = [tables.txn.get(key, db=tables.meta) for key in _PINNED]
    pinned = {raw[SERIAL] for raw in raws if raw is not None}
    looked_at = (ORDER, DATA) if tables.unsent is None else (ORDER, DATA, UNSENT)
    for table in looked_at:
        after = b""
        while True:
            page: list[tuple[bytes, bool]] = []
            with index.reading() as tables, tables.txn.cursor(getattr(tables, table)) as cursor:
                found = seek_behind(cursor, after)
                while found and len(page) < PAGE:
                    place = cursor.key()
                    page.append((place, place in pinned or key_at(tables, place) is not None))
                    found = cursor.next()
            for place, named in page:
                serial = number(place)
                if not named and serial not in unlisted:
                    yield Stray(table, serial)
            if len(page) < PAGE:
                break
            after = page[-1][0]


def mend(index: Index, mending: Mending) -> None:
    """One transaction; entries first, so that what they leave is no stray."""
    unsent = any(stray.table == UNSENT for stray in mending.strays)
    with index.writing(recount=unsent or bool(mending.drop)) as tables:
        for key in mending.drop:
            raw = tables.txn.pop(key, db=tables.meta)
            place = b"" if raw is None else raw[SERIAL]
            # An unreadable record may name another entry's serial; then what it leaves is stray.
            if len(place) == PLACE.size and tables.txn.get(place, db=tables.order) == key:
                tables.txn.delete(place, db=tables.order)
                tables.txn.delete(place, db=tables.data)
                if tables.unsent is not None:
                    tables.txn.delete(place, db=tables.unsent)
        for key, record in mending.enlist:
            tables.txn.put(PLACE.pack(record.serial), key, db=tables.order)
        for stray in mending.strays:
            tables.txn.delete(PLACE.pack(stray.serial), db=getattr(tables, stray.table))


def serials_behind(index: Index) -> int:
    """By how much the next serial must grow to be above every one in use; 0 when all is well."""
    with index.reading() as tables:
        return max(0, _highest(tables) + 1 - counted(tables.txn, NEXT_SERIAL))


def raise_serial(index: Index) -> None:
    """Puts the next serial above every one in use."""
    with index.writing() as tables:
        serial = max(counted(tables.txn, NEXT_SERIAL), _highest(tables) + 1)
        tables.txn.put(NEXT_SERIAL, PLACE.pack(serial))


def _highest(tables: Tables) -> int:
    highest = -1
    for table in (tables.order, tables.data):
        with tables.txn.cursor(table) as cursor:
            if cursor.last():
                highest = max(highest, number(cursor.key()))
    return highest


def count(index: Index) -> int:
    """Entries of `meta`, for a progress bar."""
    with index.reading() as tables:
        entries: int = tables.txn.stat(tables.meta)["entries"]
        return entries


_PINNED: Sequence[bytes] = tuple(digests.empty(function).key for function in FUNCTIONS)
