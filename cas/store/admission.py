"""Whether what a process is to write has room, and the waiting for it.

Rule: nothing is written that was not admitted.  What goes to a file takes room before its first
byte; what goes into the index takes it as it is committed, and waits in the committer's thread
where there is none, so that neither a call nor a helper thread is held up.  Waiting makes the
janitor hurry (`Space.want`), and ends after `WAIT_SECONDS`, or at once where it is of no use.
Of those that wait to write a file one after the other is told, as far as the room goes; who finds
it taken nevertheless comes back (`store.room`).
Where writes are sent upstream later, they wait in the same way while too much waits for that
(`Backlog`).

Costs about 2 µs for a commit, 5 µs for an upload; 4 µs more for a commit with a backlog.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from cas.errors import CasError, StoreClosed
from cas.store.space import STALE_SECONDS, Space
from cas.store.usage import Meter, index_cost

if TYPE_CHECKING:
    from cas.store.backlog import Backlog
    from cas.store.commit import Work

WAIT_SECONDS = 10.0
"""For room; the janitor needs a tenth of a second to begin, and frees a gigabyte in less than
one where blobs are large."""
RETRY_SECONDS = 0.01
IDLE_SECONDS = 0.25
"""How often a committer without work looks whether the janitor asks for last-use times."""

log = logging.getLogger("cas.store")


class _Waiting(NamedTuple):
    work: Work
    size: int
    until: float


class Admission:
    """One process's.  `reserve` and its like from any thread, the rest for the committer's."""

    def __init__(self, space: Space, meter: Meter, *, backlog: Backlog | None = None) -> None:
        self.space = space
        self._backlog = backlog
        self._meter = meter
        self._meter_lock = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._admitted = 0
        self.crowded = False
        """Whether anybody waits; for any thread."""
        if space.age == float("inf"):
            meter.measure()

    # --- files -----------------------------------------------------------------------------

    def reserve(self, count: int) -> None:
        """Takes room for `count` bytes of a file.  Raises NoSpace."""
        if self.space.room() < count:
            self._look_again()
        self.space.reserve(count)

    def written(self, count: int) -> None:
        """`count` reserved bytes are in the file."""
        self.space.written(count)

    def release(self, count: int) -> None:
        """`count` reserved bytes will not come."""
        self.space.release(count)

    # --- the committer ---------------------------------------------------------------------

    def poll(self) -> float:
        """Seconds after which `admit` wants to be called even without new works."""
        return RETRY_SECONDS if self._waiting else IDLE_SECONDS

    def admit(self, works: list[Work]) -> list[Work]:
        """Those of `works`, and of those that waited, that may be committed now; the rest waits.
        `settle` follows."""
        waits = bool(self._waiting)
        total = 0
        for work in works:
            total += _cost(work)
            waits = waits or work.room > 0
        if self._backlog is not None:
            self._backlog.look()
            waits = waits or not self._backlog.takes(works)
        if not waits and self.space.take(total):
            self._admitted = total
            return works
        return self._admit_each(works)

    def settle(self) -> None:
        """What was admitted last is in the index, or will never be."""
        if self._admitted:
            self.space.written(self._admitted)
            self._admitted = 0

    def close(self) -> None:
        for waiting in self._waiting:
            waiting.work.pending.fail(StoreClosed("the store is closing"))
        self._waiting.clear()

    def _admit_each(self, works: list[Work]) -> list[Work]:
        now = time.monotonic()
        self._look_again()
        new = [
            _Waiting(work, work.room or _cost(work), now + WAIT_SECONDS - work.waited)
            for work in works
        ]
        todo, self._waiting = [*self._waiting, *new], []
        admitted = []
        wanted = 0
        room = self.space.room()
        if self._backlog is not None:
            self._backlog.look()
        for waiting in todo:
            work, size, until = waiting
            fits = room >= size
            if work.room and fits and (now < until or not work.waited):
                # Who is told takes it in a moment; the next one is told of what is left.
                room -= size
                work.pending.resolve(None)
            elif self._backlog is not None and not self._backlog.takes([work]):
                if now >= until:
                    work.pending.fail(self._backlog.refusal())
                else:
                    self._waiting.append(waiting)
            elif not work.room and fits and self.space.take(size):
                self._admitted += size
                room -= size
                admitted.append(work)
            elif now >= until or self.space.hopeless(size):
                work.pending.fail(self.space.refusal(size))
            else:
                self._waiting.append(waiting)
                wanted += size
        self.crowded = bool(self._waiting)
        self.space.want(wanted)
        return admitted

    def _look_again(self) -> None:
        """Where no janitor looks, we do."""
        if self.space.age > STALE_SECONDS and self._meter_lock.acquire(blocking=False):
            try:
                self._meter.measure()
            except (CasError, OSError) as error:
                log.error("the store's size is unknown", extra={"error": str(error)})
            finally:
                self._meter_lock.release()


def _cost(work: Work) -> int:
    """What a work adds to the index; 0 for one that only removes."""
    count = len(work.blobs)
    size = sum([len(blob.data) for blob in work.blobs if blob.data is not None])
    if work.action is not None:
        count += 1
        size += len(work.action.packed)
    return index_cost(count, size) if count else 0
