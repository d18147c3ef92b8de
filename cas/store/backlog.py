"""How much may wait to be sent upstream, and whether a write may still join it.

Rule: for the committer's thread.  A write is taken while less waits than the limits say, as the
index knows it, so that one group of each process may go beyond them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cas.errors import NoSpace
from cas.index import unsent
from cas.index.lmdb import Index
from cas.index.records import ACTION
from cas.index.unsent import Waiting

if TYPE_CHECKING:
    from cas.store.commit import Work


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What an operator chooses."""

    entries: int = 100_000
    """A row of about 40 bytes each, and 60 in the janitor's memory while it makes room."""
    bytes: int = 8 << 30
    """Of content, which eviction leaves alone meanwhile."""


class Backlog:
    """One process's view of the queue."""

    def __init__(self, index: Index, limits: QueueLimits) -> None:
        self._index = index
        self._limits = limits
        self._known = Waiting(0, 0)

    def look(self) -> None:
        """Has `takes` begin with what waits now."""
        self._known = unsent.waiting(self._index)

    def takes(self, works: Sequence[Work]) -> bool:
        """Whether these may be committed; if so, they count from now on, until the next look."""
        known = self._known
        for work in works:
            entries, size = _added(work)
            if entries:
                if known.entries >= self._limits.entries or known.bytes >= self._limits.bytes:
                    return False
                known = Waiting(known.entries + entries, known.bytes + size)
        self._known = known
        return True

    def refusal(self) -> NoSpace:
        """What a write gets that waited in vain."""
        return NoSpace(
            f"{self._known.entries} entries of {self._known.bytes} bytes wait to be sent upstream, "
            f"which is slow or fails; expected fewer than {self._limits.entries} "
            f"(upstream_queue) and {self._limits.bytes} bytes (upstream_queue_size)"
        )


def _added(work: Work) -> tuple[int, int]:
    """Entries and bytes that a work adds to the queue, at most and about."""
    if work.fetched:
        return 0, 0
    size = sum([blob.stored if blob.data is None else len(blob.data) for blob in work.blobs])
    entries = len(work.blobs) + len(work.unsent)
    if work.action is not None and work.action.where == ACTION:
        entries += 1
        size += len(work.action.packed)
    return entries, size
