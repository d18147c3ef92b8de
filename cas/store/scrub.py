"""Everything that is stored, read again and compared with its digest.

Rule: runs beside a server, and takes no lock.  What is bad is dropped from the index and kept in
quarantine (`quarantine.condemn`); to clients it is NOT_FOUND, so that they send it again.

A file's pages are dropped from the system's cache first: what is to be checked is the disk.
Action results have no digest; of them it is checked that they can be read.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cas import digest as digests
from cas.digest import FUNCTIONS
from cas.errors import CasError, DataLoss
from cas.index import upkeep
from cas.index.lmdb import Index
from cas.index.records import (
    ACTION_PREFIX,
    IN_FILES,
    INLINE,
    PACKED,
    PACKED_INLINE,
    VALUE,
    Record,
    cut_action,
    cut_value,
)
from cas.index.upkeep import Mending, Row
from cas.metrics.instruments import Metrics
from cas.store.adopt import verify_bytes, verifying
from cas.store.counts import ScrubCounts
from cas.store.files import Files
from cas.store.layout import Layout
from cas.store.packed import unpack_stored
from cas.store.quarantine import Quarantine, describe

SAVE_SECONDS = 60.0
"""How often the position is written down: how much is read again after a restart."""
STEP_SECONDS = 0.05
"""Longest time that one `PacedScrub.step` reads, but for the slice that it is at."""
SHARE = 0.05
"""Of the time, for reading and hashing: steps that come sooner do nothing."""

log = logging.getLogger("cas.store")


class Piece(NamedTuple):
    """A piece of the work: an entry, or a slice of a large one."""

    key: bytes
    """The entry at which the walk is."""
    bytes: int
    ends: bool
    """Whether the entry was checked to its end with this piece."""
    bad: str
    """What is wrong with it; it was dropped.  Empty when all is well."""


def walk(layout: Layout, index: Index, files: Files, after: bytes | None = None) -> Iterator[Piece]:
    """Checks every entry behind the key `after`, in key order, a slice at a time.

    Raises OSError when files cannot be read for reasons that say nothing of what they hold
    (EMFILE), DataLoss when the index is too damaged to be walked.
    """
    quarantine = Quarantine(layout, files)
    for row in upkeep.rows(index, after or b""):
        bad = ""
        try:
            for size in slices(layout, index, files, row):
                yield Piece(row.key, size, False, "")
        except DataLoss as error:
            if _drop(quarantine, index, row, str(error)):
                bad = f"{describe(row.key)}: {error}"
        yield Piece(row.key, 0, True, bad)


def _drop(quarantine: Quarantine, index: Index, row: Row, reason: str) -> bool:
    """False when the entry was gone, or another, before."""
    if row.record is not None:
        return quarantine.condemn(index, row.key, row.record, reason)
    upkeep.mend(index, Mending(drop=[row.key]))
    log.error("an unreadable record was dropped", extra={"entry": row.key.hex(), "reason": reason})
    return True


def slices(layout: Layout, index: Index, files: Files, row: Row) -> Iterator[int]:
    """Checks one entry, giving way between slices: the bytes of each.  Raises DataLoss."""
    record = row.record
    if row.wrong or record is None:
        raise DataLoss(row.wrong)
    if record.where in IN_FILES:
        yield from _file_slices(layout, files, row.key, record)
    elif record.where == INLINE:
        data = index.inline(row.key)
        if data is not None:
            verify_bytes(digests.from_key(row.key), data)
            yield len(data)
    elif record.where == PACKED_INLINE:
        data = index.stored(record)
        if data is not None:
            blob = digests.from_key(row.key)
            verify_bytes(blob, unpack_stored(blob, data))
            yield len(data)
    elif record.where == VALUE:
        packed = index.packed_action(row.key)
        if packed is not None:
            digest, _, content = cut_value(cut_action(packed))
            if content is not None:
                verify_bytes(digests.from_key(digest), content)
            yield len(packed)


def _file_slices(layout: Layout, files: Files, key: bytes, record: Record) -> Iterator[int]:
    digest = digests.from_key(key)
    fd = files.open_blob(layout.copy(digest, record))
    if fd is None:
        raise DataLoss("has no file")
    try:
        files.forget_cached(fd)
        yield from verifying(files, fd, digest, packed=record.where == PACKED)
        files.forget_cached(fd)
    finally:
        files.close(fd)


def used(index: Index) -> list[bytes]:
    """What begins the keys of those digest functions that have blobs, the empty one aside."""
    prefixes = []
    for function in FUNCTIONS:
        prefix, empty = function.prefix, digests.empty(function).key
        try:
            behind = [key for key, _ in index.keys(prefix, 2)]
        except DataLoss:
            # It is the walk that deals with what is bad.
            behind = [prefix]
        if any(key.startswith(prefix) and key != empty for key in behind):
            prefixes.append(prefix)
    return prefixes


def position(key: bytes, used: Sequence[bytes]) -> float:
    """How far a walk is, from 0 to 1: keys ascend, and hashes are spread evenly; among the
    functions that are `used` as well, for want of anything better."""
    code = key[:1]
    # Action results come first and values last; both take no time, nor do empty blobs.
    if code == ACTION_PREFIX:
        return 0.0
    if not used:
        return 1.0
    within = int.from_bytes(key[1:9].ljust(8, b"\0"), "big") / 2**64 if code in used else 0.0
    return (sum(prefix < code for prefix in used) + within) / len(used)


@dataclass(slots=True)
class Totals:
    """What was done since the start of the process."""

    entries: int = 0
    bytes: int = 0
    bad: int = 0
    rounds: int = 0


class PacedScrub:
    """Checks everything once in each period, evenly, for as long as `step` is called.

    The position outlives the process, in DIR/scrub.
    """

    def __init__(
        self,
        layout: Layout,
        index: Index,
        files: Files,
        period: float,
        *,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
        metrics: Metrics | None = None,
    ) -> None:
        """`period` is seconds.  `clock` is the time of day, which outlives a restart."""
        self.totals = Totals()
        self._counts = ScrubCounts(metrics or Metrics())
        self._layout = layout
        self._index = index
        self._files = files
        self._period = period
        self._clock = clock
        self._timer = timer
        self._saved = timer()
        self._idle_until = 0.0
        self._started, self._after = self._load()
        self._used = used(index)
        self._pieces = walk(layout, index, files, self._after)

    def step(self) -> None:
        """Reads what is due by now, for `STEP_SECONDS` at most.  A fault of the store is logged,
        and waits for the next step."""
        began = self._timer()
        if began < self._idle_until:
            return
        now = self._clock()
        if now < self._started:
            # The clock was set back.
            self._started = now
        until = began + STEP_SECONDS
        try:
            while self._behind(now) and self._timer() < until:
                self._take(now)
            if self._timer() - self._saved >= SAVE_SECONDS:
                self.save()
        except (CasError, OSError) as error:
            log.error("the scrub cannot go on for now", extra={"error": str(error)})
            self._pieces = walk(self._layout, self._index, self._files, self._after)
        ended = self._timer()
        self._idle_until = ended + (ended - began) * (1 / SHARE - 1)

    def save(self) -> None:
        """Writes the position down."""
        self._saved = self._timer()
        after = None if self._after is None else self._after.hex()
        state = {"started": self._started, "after": after}
        self._files.write_file(self._layout.scrub, json.dumps(state).encode())

    def _behind(self, now: float) -> bool:
        due = (now - self._started) / self._period
        return due >= 1 or due > (0.0 if self._after is None else position(self._after, self._used))

    def _take(self, now: float) -> None:
        piece = next(self._pieces, None)
        if piece is None:
            log.info(
                "everything was scrubbed",
                extra={"since_start": {"entries": self.totals.entries, "bad": self.totals.bad}},
            )
            self.totals.rounds += 1
            self._counts.round_is_over(self._clock())
            # The next round begins when this one was to end; at once if it came late.
            self._started = min(now, self._started + self._period)
            if now - self._started >= self._period:
                self._started = now
            self._after = None
            self._used = used(self._index)
            self._pieces = walk(self._layout, self._index, self._files)
            self.save()
            return
        self._counts.took(piece.bytes, ends=piece.ends, bad=bool(piece.bad))
        self.totals.bytes += piece.bytes
        if piece.ends:
            self._after = piece.key
            self.totals.entries += 1
            self.totals.bad += bool(piece.bad)

    def _load(self) -> tuple[float, bytes | None]:
        try:
            state = json.loads(self._layout.scrub.read_bytes())
            after = state["after"]
            return float(state["started"]), None if after is None else bytes.fromhex(after)
        except (OSError, ValueError, KeyError, TypeError):
            # None yet, or not readable: a round begins.
            return self._clock(), None
