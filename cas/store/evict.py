"""Which entries make room: approximate LRU, exact to the minute.

Rule: pure; minutes and sizes in, serials and amounts out.  No clock, no index, no file.

An entry's age is the minute of its last use (`cas.index.uses`), an array over serials.  A pass
counts the minutes in it, finds the minute up to which entries must go, and gathers those:
three walks in C over four bytes per entry, and nothing is kept per entry between passes.
Within a minute the one that was written first goes first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

T = TypeVar("T")

Batch = Sequence[tuple[int, int]]
"""(minute, serial) of entries, oldest first."""


@dataclass(frozen=True, slots=True)
class Watermarks:
    """When eviction begins and how far it goes, in percent of the limit.  low < high < 98."""

    high: int = 95
    """Eviction begins above it.  Lower leaves more room for bursts of writes."""
    low: int = 90
    """It goes down to here.  Further apart: rarer and longer rounds, more evicted than need be."""


BRIM = 0.02
"""Share of the limit that is kept free when all else fails: eviction begins within it whatever
the age of what must go, in time for writes not to be refused."""


class Demand(NamedTuple):
    """Bytes to free."""

    gentle: int
    """Of entries that have reached the minimum age."""
    urgent: int
    """Of any entry."""


def demand(used: int, wanted: int, limit: int, marks: Watermarks) -> Demand:
    """What is to be freed where `used` bytes of `limit` are taken and `wanted` more wait."""
    gentle = used - limit * marks.low // 100 if used > limit * marks.high // 100 else 0
    brim = int(limit * BRIM)
    excess = used + wanted - (limit - brim // 2)
    # Down to twice the point where it began: not again for each further write.
    urgent = excess + brim // 2 if excess > 0 else 0
    return Demand(max(0, gentle, urgent), urgent)


def count(chunks: Iterable[memoryview]) -> Counter[int]:
    """How many entries were used last in each minute; 0 counts what is no entry."""
    counts: Counter[int] = Counter()
    for minutes in chunks:
        counts.update(minutes)
    return counts


def cutoff(counts: Counter[int], wanted: int, newest: int) -> int:
    """The last minute up to which entries must be taken so that they are `wanted` in number, or
    all of them up to minute `newest`.  0 where there is none."""
    total = 0
    last = 0
    for minute in sorted(counts):
        if minute > newest:
            break
        if minute:
            total += counts[minute]
            last = minute
            if total >= wanted:
                break
    return last


def gather(first: int, minutes: memoryview, until: int) -> list[tuple[int, int]]:
    """(minute, serial) of the entries in a chunk that were used last at minute `until` or
    before; `first` is its first serial."""
    return [(minute, serial) for serial, minute in enumerate(minutes, first) if 0 < minute <= until]


def until_enough(sizes: Iterable[tuple[T, int]], need: int) -> Iterator[T]:
    """The first of the (item, bytes) that bring `need` bytes together."""
    for item, size in sizes:
        if need <= 0:
            return
        yield item
        need -= size


def entries_for(need: int, used: int, entries: int) -> int:
    """How many entries to gather for `need` bytes, where `entries` take `used`: half as many
    again as the average says, since the oldest may be smaller."""
    return need * entries * 3 // (max(1, used) * 2) + 1000


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """`items` in pieces of at most `size`."""
    return (items[at : at + size] for at in range(0, len(items), size))
