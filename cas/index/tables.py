"""What the index's tables are keyed by, and what their rows hold.

Rule: pure; LMDB is known by its transactions and cursors only, which others begin and give.  A
record's own layout is `records`'.
"""

from __future__ import annotations

from itertools import islice
from struct import Struct
from typing import Any, NamedTuple

from cas.index.records import SERIAL, cut_action

PLACE = Struct("=Q")
"""An entry's place, which is its key in `data`, `order`, `condemned` and `unsent`: its serial, as
LMDB compares integer keys, in the machine's byte order.  Counts are stored so too."""

UNSENT_ROW = Struct("<QQ")
"""A row of `unsent`: since when, seconds since the epoch, and the bytes that it takes here."""

# Counts, under these keys of the table that has no name.
NEXT_SERIAL = b"next serial"
FILE_BYTES = b"file bytes"
UNSENT_BYTES = b"unsent bytes"


class Tables(NamedTuple):
    """An open transaction and the tables in it; of no use behind its block."""

    txn: Any
    meta: Any
    data: Any
    order: Any
    condemned: Any
    unsent: Any
    """None where nothing was ever queued."""


def number(raw: bytes) -> int:
    """The serial of a place, or a count."""
    found: int = PLACE.unpack(raw)[0]
    return found


def counted(txn: Any, what: bytes) -> int:
    """A count; 0 where it was never stored."""
    raw = txn.get(what)
    found: int = 0 if raw is None else PLACE.unpack(raw)[0]
    return found


def entry_at(tables: Tables, place: bytes) -> tuple[bytes, bytes] | None:
    """The key and the record of the entry at a place; None where no record names it."""
    key: bytes | None = tables.txn.get(place, db=tables.order)
    record: bytes | None = None if key is None else tables.txn.get(key, db=tables.meta)
    if key is None or record is None or record[SERIAL] != place:
        return None
    return key, record


def key_at(tables: Tables, place: bytes) -> bytes | None:
    """As `entry_at`, the key alone."""
    entry = entry_at(tables, place)
    return None if entry is None else entry[0]


def waits(tables: Tables, place: bytes) -> bool:
    """Whether the entry at a place is to be sent upstream."""
    unsent = tables.unsent
    return unsent is not None and tables.txn.get(place, db=unsent) is not None


def is_dead(tables: Tables, place: bytes, packed: bytes) -> bool:
    """Whether an action result or a value, which is stored at `place`, lacks a blob."""
    if waits(tables, place):
        # What it lacks here may have been sent upstream already.
        return False
    references = cut_action(packed).references
    with tables.txn.cursor(tables.meta) as cursor:
        return len(cursor.getmulti(references, values=False)) < len(references)


def rows_from(tables: Tables, start: int, most: int) -> list[tuple[int, bytes]]:
    """Up to so many rows (serial, key) of `order`, from that serial on."""
    with tables.txn.cursor(tables.order) as cursor:
        if not cursor.set_range(PLACE.pack(start)):
            return []
        return [(number(place), key) for place, key in islice(cursor.iternext(), most)]


def seek_behind(cursor: Any, after: bytes) -> bool:
    """Puts the cursor on the first row behind the key `after`, on the first of all for b"";
    whether there is one."""
    found: bool = cursor.set_range(after)
    if found and cursor.key() == after:
        found = cursor.next()
    return found
