"""The last hour and day: samples of what was counted.

Rule: bounded, and on no request's way.  One process, the HTTP front, takes a sample each minute
of what all have counted, 0.6 ms of work, and writes it into memory that belongs to the server,
not to it: whoever takes a dead front's place goes on.  As counters do, samples end with the
server.  They hold running sums; what happened between two of them is the difference.

Two rings: the minutes of an hour, and every ten minutes of a day.  A sample's place follows from
its time, so nothing says where a ring begins.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from cas.metrics import families, slots
from cas.metrics.board import Board, Page
from cas.metrics.readiness import Totals, total
from cas.metrics.recent import EXPECTED

SLOT: Final = 8 << 10
"""Bytes of a sample."""
MAX_NAMES: Final = 48
"""Tools, and instances, that a sample keeps: those with the most requests."""

PAGE: Final = "page"
"""As the method of requests that come from the page itself, which are not shown on it."""


class Ring(NamedTuple):
    """Samples at a distance of `step` seconds."""

    name: str
    step: int
    places: int
    start: int
    """Where it begins, in bytes."""

    @property
    def span(self) -> int:
        """Seconds."""
        return (self.places - 2) * self.step


# Two more than an hour and a day have: the one being made, and the one before the first.
HOUR: Final = Ring("hour", 60, 62, 0)
DAY: Final = Ring("day", 600, 146, 62 * SLOT)
RINGS: Final = (HOUR, DAY)

SUMS: Final = (
    "requests", "errors", "hits", "misses", "received", "sent", "reads", "writes",
    "evicted", "evicted_bytes",
)  # fmt: skip
"""What only grows."""
LEVELS: Final = ("used", "limit", "free", "entries")
"""What is at a moment."""


class Sample(NamedTuple):
    """What was counted until a moment."""

    at: float
    """Seconds since the epoch."""
    numbers: dict[str, float]
    """By `SUMS` and `LEVELS`."""
    tools: dict[str, float]
    """Requests by tool."""
    instances: dict[str, float]
    """Requests by instance."""


def sample(pages: Sequence[Page], now: float) -> Sample:
    """What `pages` of the board hold."""
    totals = total(pages)
    instances: dict[str, float] = {}
    requests = errors = 0.0
    for (_, method, code, instance), (count,) in totals[families.REQUESTS.name].items():
        if method == PAGE:
            continue
        requests += count
        if code not in EXPECTED and not code.startswith(("2", "3")):
            errors += count
        instances[instance] = instances.get(instance, 0.0) + count
    numbers = {
        "requests": requests,
        "errors": errors,
        "hits": _sum(totals, "hit"),
        "misses": _sum(totals, "miss"),
        "received": _bytes(totals[families.RECEIVED_BYTES.name]),
        "sent": _bytes(totals[families.SENT_BYTES.name]),
        "reads": _counted(totals, families.READ_SIZES.name) + totals.value(families.BATCH_READS),
        "writes": _counted(totals, families.WRITTEN_SIZES.name)
        + totals.value(families.BATCH_WRITES),
        "evicted": totals.sum(families.EVICTED),
        "evicted_bytes": totals.value(families.EVICTED_BYTES),
        "used": totals.value(families.STORE_USED_BYTES),
        "limit": totals.value(families.STORE_LIMIT_BYTES),
        "free": totals.value(families.DISK_FREE_BYTES),
        "entries": totals.value(families.STORE_ENTRIES),
    }
    tools = {tool: n[0] for (tool,), n in totals[families.TOOL_REQUESTS.name].items()}
    return Sample(now, numbers, most(tools, MAX_NAMES), most(instances, MAX_NAMES))


class History:
    """The samples of one board."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._memory: memoryview | None = None
        self._last = 0

    def keep(self, now: float) -> None:
        """Takes a sample if this minute has none.  For one process of the server only."""
        minute = int(now) // HOUR.step
        if minute == self._last:
            return
        self._last = minute
        if self._memory is None:
            self._memory = self._board.samples()
        data = b""
        for ring in RINGS:
            tick = int(now) // ring.step
            start = ring.start + tick % ring.places * SLOT
            place = self._memory[start : start + SLOT]
            known = _decoded(place)
            if known is None or int(known.at) // ring.step != tick:
                data = data or encoded(sample(self._board.read(), now))
                slots.write(place, data)

    def read(self, ring: Ring, now: float) -> list[Sample]:
        """The samples of the time that `ring` spans, the oldest first."""
        memory = self._board.read_samples(ring.start, ring.places * SLOT)
        found = [_decoded(memory[at : at + SLOT]) for at in range(0, len(memory), SLOT)]
        since = now - ring.span - ring.step
        kept = [one for one in found if one is not None and since <= one.at <= now]
        return sorted(kept, key=lambda one: one.at)


def encoded(made: Sample) -> bytes:
    """As a place holds it; names go, those with the least first, until it fits."""
    kept = MAX_NAMES
    while True:
        fitting = made._replace(tools=most(made.tools, kept), instances=most(made.instances, kept))
        data = json.dumps(fitting, separators=(",", ":")).encode()
        if len(data) <= slots.capacity(SLOT):
            return data
        kept = kept * 3 // 4


def most(counts: Mapping[str, float], number: int) -> dict[str, float]:
    """The `number` largest, in their order."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return dict(ordered[:number])


def since(before: Mapping[str, float], now: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """By how much each has grown, those that have not left out, the largest first."""
    grown = {name: count - before.get(name, 0.0) for name, count in now.items()}
    return ((n, c) for n, c in most(grown, len(grown)).items() if c > 0)


def _decoded(place: bytes | memoryview) -> Sample | None:
    data = slots.read(place)
    if data is None:
        return None
    fields = json.loads(data)
    if len(fields) != len(Sample._fields):
        return None
    found = Sample(*fields)
    # Of another release, started after an upgrade in place: it would not be what is asked for.
    return found if set(found.numbers) == {*SUMS, *LEVELS} else None


def _sum(totals: Totals, result: str) -> float:
    lookups = (families.ACTION_LOOKUPS, families.VALUE_LOOKUPS)
    return sum(totals.value(family, result) for family in lookups)


def _bytes(series: Mapping[tuple[str, ...], Sequence[float]]) -> float:
    return sum(count for (_, method), (count,) in series.items() if method != PAGE)


def _counted(totals: Totals, histogram: str) -> float:
    return sum(sum(numbers[:-1]) for numbers in totals[histogram].values())
