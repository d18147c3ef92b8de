"""The queue of what is to be sent upstream, as those see it who fill, empty and heed it.

Rule: transactions are `lmdb`'s, which queues (`Changes.unsent`) and takes off (`Index.sent`).  A
row of the table `unsent` stands under its entry's serial: it is written in the entry's own
transaction, goes with the entry, and says with `order` and `meta` what is to be sent, in the order
of writing.
"""

from __future__ import annotations

from typing import NamedTuple

from cas.index.lmdb import Index
from cas.index.records import unpack_record
from cas.index.tables import PLACE, UNSENT_BYTES, UNSENT_ROW, counted, entry_at, number

PAGE = 256
"""Rows in one snapshot."""


class Unsent(NamedTuple):
    """An entry that waits to be sent."""

    serial: int
    key: bytes | None
    """None where there is no such entry: nothing is to be sent then."""
    since: int = 0
    """Seconds since the epoch."""
    came_then: bool = False
    """Whether the entry was written when it began to wait, to a minute: it came from a client.
    Others were here before, and wait because somebody relies on them."""


class Waiting(NamedTuple):
    """How much waits to be sent."""

    entries: int
    bytes: int
    """As they are stored."""


def waiting(index: Index) -> Waiting:
    """How much."""
    with index.reading() as tables:
        if tables.unsent is None:
            return Waiting(0, 0)
        entries: int = tables.txn.stat(tables.unsent)["entries"]
        return Waiting(entries, counted(tables.txn, UNSENT_BYTES))


def page(index: Index, after: int = -1) -> list[Unsent]:
    """A page of the queue, behind serial `after`, in the order of writing."""
    out: list[Unsent] = []
    with index.reading() as tables:
        if tables.unsent is None:
            return out
        with tables.txn.cursor(tables.unsent) as cursor:
            found = cursor.set_range(PLACE.pack(after + 1))
            while found and len(out) < PAGE:
                place = cursor.key()
                entry = entry_at(tables, place)
                if entry is None:
                    out.append(Unsent(number(place), None))
                else:
                    key, record = entry
                    since, _ = UNSENT_ROW.unpack(cursor.value())
                    came_then = since // 60 - unpack_record(record).written in (0, 1)
                    out.append(Unsent(number(place), key, since, came_then))
                found = cursor.next()
    return out


def forget(index: Index) -> int:
    """Has nothing wait any more; how many did."""
    forgotten = 0
    while found := page(index):
        index.sent([entry.serial for entry in found])
        forgotten += len(found)
    return forgotten


def serials(index: Index) -> set[int]:
    """Of all that waits: what eviction leaves alone.  About 0.5 µs and 60 bytes each."""
    with index.reading() as tables:
        if tables.unsent is None:
            return set()
        with tables.txn.cursor(tables.unsent) as cursor:
            return {number(place) for place in cursor.iternext(keys=True, values=False)}


def oldest(index: Index) -> int | None:
    """Since when the longest of all waits, seconds since the epoch; looks at each, 0.6 µs."""
    with index.reading() as tables:
        if tables.unsent is None:
            return None
        with tables.txn.cursor(tables.unsent) as cursor:
            rows = cursor.iternext(keys=False, values=True)
            return min((UNSENT_ROW.unpack(row)[0] for row in rows), default=None)
