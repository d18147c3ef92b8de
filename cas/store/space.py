"""Room on disk: who was promised how much of it, among all processes of a store.

Rule: numbers only, in one small file that every process maps; which bytes are removed to make
room is `janitor`'s.  What is written is promised room first, so that the limit holds although
several processes write.

A measurer (`usage.Meter`: the janitor, or a worker where there is none) looks at what is on
disk and publishes what may be added to it.  Between two looks each process keeps count of what
it took, in a slot of its own; bytes that a look may have seen and a slot counts still are
counted twice, never not at all.  A process that dies leaves its slot unlocked: its promises end
with it, the bytes that it wrote are found by the next look.

Layout: 64-bit numbers in the machine's order; a header (`_MEASURED`, …), then the slots
(`_TAKEN`, …), eight numbers each.
"""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cas.errors import NoRoomYet, NoSpace, StoreClosed
from cas.store.files import Files

SLOTS = 2047
"""Processes at once."""

STALE_SECONDS = 3.0
"""A look older than this is not the janitor's: it looks once a second."""

UNLIMITED = 1 << 62

_WIDTH = 8
_MEASURED, _ALLOWED, _MOST, _STUCK, _FLUSH, _USED = range(6)
"""When there was a look (monotonic ms, 0 never); what all slots together may have taken; the
most that can ever fit; when it was found that nothing more can be freed (monotonic ms, 0 never);
the number of the last request for last-use times; slots that were ever used."""
_TAKEN, _RESERVED, _WANTED, _FLUSHED = range(4)
"""Bytes promised or written, ever; those of them that are not on disk yet; bytes that wait for
room; the last request that was met."""

_HEADER_LOCK = 0
"""The byte of the file whose lock guards promises; byte 1 + n marks slot n as living."""


class Space:
    """One process's account.  Any thread may call any method."""

    def __init__(self, path: Path, files: Files, *, takes: bool = True) -> None:
        """Opens or makes the file at `path`.  `takes` False for one that only looks on."""
        self._files = files
        self._fd = files.open_lock(path)
        self._mutex = threading.Lock()
        self._closed = False
        try:
            size = (1 + SLOTS) * 8 * _WIDTH
            files.allocate(self._fd, size)
            self._map = mmap.mmap(self._fd, size)
        except BaseException:
            files.close(self._fd)
            raise
        self._words = memoryview(self._map).cast("q")
        self._slot = self._claim() if takes else 0

    # --- taking room ---------------------------------------------------------------------

    def room(self) -> int:
        """Bytes that may be taken now; negative when too much is on disk.  About 1 µs."""
        words = self._words
        if self._closed:
            raise StoreClosed("the store is closed")
        return words[_ALLOWED] - sum(words[8 + _TAKEN : 8 + 8 * words[_USED] : 8])

    def reserve(self, count: int) -> None:
        """Takes room for `count` bytes that are to be written.  Raises NoRoomYet; NoSpace where
        they never fit."""
        with self._exclusive():
            if not self._take(count):
                refusal = self.refusal(count)
                if count > self._words[_MOST]:
                    raise refusal
                raise NoRoomYet(str(refusal), count)

    def take(self, count: int) -> bool:
        """As `reserve`, for what is written at once: two processes may both get the last of
        the room, which is less than a commit's."""
        with self._mutex:
            return self._take(count)

    def written(self, count: int) -> None:
        """`count` reserved bytes are on disk now."""
        with self._mutex:
            if not self._closed:
                self._words[self._slot + _RESERVED] -= count

    def release(self, count: int) -> None:
        """Gives back room that was reserved and not used."""
        if count and not self._closed:
            with self._exclusive():
                self._words[self._slot + _TAKEN] -= count
                self._words[self._slot + _RESERVED] -= count

    def refusal(self, count: int) -> NoSpace:
        """The error for `count` bytes that do not fit."""
        most = self._words[_MOST]
        if count > most:
            return NoSpace(f"{count} bytes never fit: at most {max(0, most)} may be stored in all")
        return NoSpace(f"no room for {count} bytes: {max(0, self.room())} are free")

    def hopeless(self, count: int) -> bool:
        """Whether waiting for room is of no use.  That nothing can be freed is believed as long
        as a look is: a janitor that was killed cannot take it back."""
        stuck = self._words[_STUCK]
        return count > self._words[_MOST] or (
            stuck > 0 and time.monotonic() - stuck / 1000 < STALE_SECONDS
        )

    def want(self, count: int) -> None:
        """Says how many bytes of this process wait for room."""
        if self._words[self._slot + _WANTED] != count:
            self._words[self._slot + _WANTED] = count

    def _take(self, count: int) -> bool:
        if self.room() < count:
            return False
        # In this order: a look between the two takes the bytes for not written yet.
        self._words[self._slot + _RESERVED] += count
        self._words[self._slot + _TAKEN] += count
        return True

    # --- last-use times --------------------------------------------------------------------

    def flush_wanted(self) -> int:
        """The request for last-use times that this process has not met yet, or 0."""
        asked = self._words[_FLUSH]
        return asked if asked != self._words[self._slot + _FLUSHED] else 0

    def flushed(self, request: int) -> None:
        self._words[self._slot + _FLUSHED] = request

    # --- looking ---------------------------------------------------------------------------

    @property
    def age(self) -> float:
        """Seconds since somebody looked at what is on disk."""
        measured = self._words[_MEASURED]
        return time.monotonic() - measured / 1000 if measured else float("inf")

    def begin_look(self) -> int:
        """The bytes that were written so far, for `publish`.  Before looking at the disk: what
        is written between the two is counted twice."""
        with self._exclusive():
            self._reclaim()
            words = self._words
            end = 8 + 8 * words[_USED]
            return sum(words[8 + _TAKEN : end : 8]) - sum(words[8 + _RESERVED : end : 8])

    def publish(self, room: int, most: int, before: int) -> None:
        """`room` bytes may be written beside what was written `before`; `most` could if all
        were removed that can be."""
        self._words[_ALLOWED] = min(room, UNLIMITED) + before
        self._words[_MOST] = min(most, UNLIMITED)
        self._words[_MEASURED] = max(1, int(time.monotonic() * 1000))

    # --- the janitor's side ------------------------------------------------------------------

    def wanted(self) -> int:
        """Bytes that wait for room, in all processes."""
        words = self._words
        return sum(words[8 + _WANTED : 8 + 8 * words[_USED] : 8])

    def set_stuck(self, stuck: bool) -> None:
        """Tells whether nothing more can be freed."""
        self._words[_STUCK] = max(1, int(time.monotonic() * 1000)) if stuck else 0

    def request_flush(self) -> int:
        """Asks all processes to store the last-use times that they hold."""
        self._words[_FLUSH] += 1
        return self._words[_FLUSH]

    def all_flushed(self, request: int) -> bool:
        """Whether every living process has met the request."""
        return all(
            self._words[slot + _FLUSHED] >= request or not self._lives(slot)
            for slot in self._slots()
        )

    def close(self) -> None:
        if self._closed:
            return
        with self._exclusive():
            self._closed = True
            if self._slot:
                self._end(self._slot)
        with self._mutex:
            self._words.release()
            self._map.close()
            self._files.close(self._fd)

    # --- inside ----------------------------------------------------------------------------

    def _claim(self) -> int:
        with self._exclusive():
            for number in range(SLOTS):
                if self._files.lock_byte(self._fd, 1 + number):
                    self._words[_USED] = max(self._words[_USED], number + 1)
                    slot = 8 + 8 * number
                    self._end(slot)
                    self._words[slot + _FLUSHED] = self._words[_FLUSH]
                    return slot
        raise NoSpace(f"{SLOTS} processes use the store already")

    def _reclaim(self) -> None:
        """Ends the promises of processes that died."""
        for slot in self._slots():
            if (self._words[slot + _RESERVED] or self._words[slot + _WANTED]) and not self._lives(
                slot
            ):
                self._end(slot)

    def _end(self, slot: int) -> None:
        """What a slot took stays counted: it may be on disk, and sums must never fall."""
        self._words[slot + _TAKEN] -= self._words[slot + _RESERVED]
        self._words[slot + _RESERVED] = 0
        self._words[slot + _WANTED] = 0

    def _slots(self) -> range:
        return range(8, 8 + 8 * self._words[_USED], 8)

    def _lives(self, slot: int) -> bool:
        return slot == self._slot or self._files.is_byte_locked(self._fd, slot // 8)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._mutex:
            if self._closed:
                raise StoreClosed("the store is closed")
            self._files.lock_byte(self._fd, _HEADER_LOCK, wait=True)
            try:
                yield
            finally:
                self._files.unlock_byte(self._fd, _HEADER_LOCK)
