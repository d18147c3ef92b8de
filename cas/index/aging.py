"""What the janitor asks of the index: ages, dead action results, and room given back.

Rule: transactions are `lmdb`'s; here is what the janitor looks for in them.  Nothing here holds
a snapshot for longer than `PAGE` entries take.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cas.errors import NoSpace
from cas.index.lmdb import Index
from cas.index.records import (
    ACTION_PREFIX,
    RECORD_BYTES,
    VALUE_PREFIX,
    Record,
    unpack_action,
    unpack_record,
)
from cas.index.tables import (
    NEXT_SERIAL,
    PLACE,
    Tables,
    counted,
    is_dead,
    rows_from,
    seek_behind,
)
from cas.index.uses import PAGE as USES_PAGE

PAGE = 1000
"""Entries in one snapshot."""

ACTIONS_PAGE = 100
"""Action results in one snapshot: each may reference thousands of blobs."""

REFERRING = (ACTION_PREFIX, VALUE_PREFIX)
"""What the keys of all that references blobs open with."""


def ages(index: Index) -> Iterator[tuple[int, memoryview]]:
    """(first serial, minutes of last use of it and its followers), 0 for no entry."""
    return index.uses.chunks()


def entries(index: Index, serials: Sequence[int]) -> list[tuple[bytes, Record]]:
    """The entries with these serials, in that order; those of no entry are passed over, and
    have their time cleared."""
    places = [PLACE.pack(serial) for serial in serials]
    out = []
    with index.reading() as tables:
        with tables.txn.cursor(tables.order) as cursor:
            keys = dict(cursor.getmulti(places))
        with tables.txn.cursor(tables.meta) as cursor:
            raws = dict(cursor.getmulti(list(keys.values())))
        for place, key in keys.items():
            raw = raws.get(key)
            if raw is not None:
                record = unpack_record(raw)
                if PLACE.pack(record.serial) == place:
                    out.append((key, record))
    living = {record.serial for _, record in out}
    # A use that was noted after its entry had gone; or the empty blob, which has no age.
    index.uses.clear([serial for serial in serials if serial not in living])
    return out


class DeadActions(NamedTuple):
    """A page of a walk over all action results, or all values."""

    dead: list[tuple[bytes, bytes]]
    """(key, packed) of those that lack a blob, as `Changes.dropped_actions` takes them."""
    seen: int
    last: bytes | None
    """Where the next page begins; None at the end of the walk."""


def dead_actions(index: Index, prefix: bytes, after: bytes, written_before: int) -> DeadActions:
    """Looks over a page of what is under `prefix`, one of `REFERRING`, behind key `after`, b""
    for the first page.

    One written at `written_before` (ms since the epoch) or later is let be: what it references
    may be on its way.
    """
    dead = []
    seen = 0
    key = after
    with index.reading() as tables, tables.txn.cursor(tables.meta) as cursor:
        found = seek_behind(cursor, after or prefix)
        while found and seen < ACTIONS_PAGE and cursor.key().startswith(prefix):
            key = cursor.key()
            seen += 1
            place = _place(cursor.value())
            packed = tables.txn.get(place, db=tables.data)
            if (
                packed is not None
                and is_dead(tables, place, packed)
                and unpack_action(packed).written_at < written_before
            ):
                dead.append((key, packed))
            found = cursor.next()
    return DeadActions(dead, seen, key if seen == ACTIONS_PAGE else None)


def _place(raw: bytes) -> bytes:
    return PLACE.pack(unpack_record(raw).serial)


def condemned(index: Index) -> list[tuple[bytes, Record]]:
    """Evicted blobs whose files may still be there."""
    out = []
    with index.reading() as tables, tables.txn.cursor(tables.condemned) as cursor:
        for row in cursor.iternext(keys=False, values=True):
            record, key = unpack_record(row[:RECORD_BYTES]), row[RECORD_BYTES:]
            # Unless the same file was taken into the index anew, as `fsck` may do.
            raw = tables.txn.get(key, db=tables.meta)
            if raw is None or unpack_record(raw).generation != record.generation:
                out.append((key, record))
    return out


def mend_times(index: Index, after: int) -> int | None:
    """Gives the times of writing to entries that have no time of use, in a page behind serial
    `after` (-1 for the first); where the next page begins, None at the end.

    A power loss may take times that were stored, and an entry without one is never evicted.
    """
    with index.reading() as tables:
        rows = rows_from(tables, after + 1, PAGE)
        times = []
        for serial, key in rows:
            if index.uses.load(serial):
                continue
            raw = tables.txn.get(key, db=tables.meta)
            record = None if raw is None else unpack_record(raw)
            if record is not None and record.serial == serial:
                times.append((serial, record.written))
    for serial, minute in times:
        index.uses.store([serial], minute)
    return rows[-1][0] if len(rows) == PAGE else None


def enter_hints(index: Index) -> bool:
    """Has the hints follow the index by a page; whether there is more to do.  Where they have no
    table, or a full one, a new one is begun and used once it has everything."""
    hints = index.hints
    try:
        building = hints.renew(index.entries)
    except NoSpace:
        return False
    if building:
        with index.writing() as tables:
            start = hints.reached()
            rows, end = _page(tables, start)
            hints.build(rows, start, end)
            if end == counted(tables.txn, NEXT_SERIAL):
                hints.adopt()
        return True
    with index.reading() as tables:
        next_free = counted(tables.txn, NEXT_SERIAL)
        behind = hints.behind(next_free)
        if behind is None:
            return False
        rows, end = _page(tables, behind)
    return hints.follow(rows, behind, end) and end < next_free


def _page(tables: Tables, start: int) -> tuple[list[tuple[int, bytes]], int]:
    """Rows of `order` from serial `start` on, and the serial behind them."""
    rows = rows_from(tables, start, PAGE)
    return rows, rows[-1][0] + 1 if len(rows) == PAGE else counted(tables.txn, NEXT_SERIAL)


def lower(index: Index, now: int) -> None:
    """Has uses that lie in the future be as of now: a clock that was ahead would keep what was
    used then for as long as it was."""
    for _, view in ages(index):
        for place, minute in enumerate(view):
            if minute > now:
                view[place] = now


def next_serial(index: Index) -> int:
    """Above every serial that was ever given."""
    with index.reading() as tables:
        return counted(tables.txn, NEXT_SERIAL)


def dead_pages(first: int, times: memoryview, end: int) -> list[tuple[int, int]]:
    """Runs (first serial, count) of whole pages of `uses` that hold no entry, in a chunk of
    `ages`; up to serial `end`, above which none was given yet."""
    runs: list[tuple[int, int]] = []
    nothing = bytes(4 * USES_PAGE)
    stop = min(len(times), end - first) - USES_PAGE + 1
    for at in range(-first % USES_PAGE, stop, USES_PAGE):
        if times[at : at + USES_PAGE].tobytes() != nothing:
            continue
        if runs and sum(runs[-1]) == first + at:
            runs[-1] = (runs[-1][0], runs[-1][1] + USES_PAGE)
        else:
            runs.append((first + at, USES_PAGE))
    return runs
