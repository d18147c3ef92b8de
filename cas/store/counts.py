"""What the store counts of itself.

Rule: instruments only, made once for each process; what they are for is `cas.metrics.families`'.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from cas.errors import CasError, NoSpace
from cas.index.changes import NewBlob
from cas.metrics import families
from cas.metrics.instruments import Metrics


class ReadCounts:
    """Reads and lookups."""

    __slots__ = ("_batches", "_hits", "_misses", "_sizes", "_value_hits", "_value_misses")

    def __init__(self, metrics: Metrics) -> None:
        self._hits = metrics.counter(families.ACTION_LOOKUPS, "hit")
        self._misses = metrics.counter(families.ACTION_LOOKUPS, "miss")
        self._value_hits = metrics.counter(families.VALUE_LOOKUPS, "hit")
        self._value_misses = metrics.counter(families.VALUE_LOOKUPS, "miss")
        self._sizes = metrics.histogram(families.READ_SIZES)
        self._batches = metrics.counter(families.BATCH_READS)

    def read(self, size: int) -> None:
        self._sizes.observe(size)

    def read_batch(self, count: int) -> None:
        # Not their sizes: to look at each would cost as much as the rest of the counting.
        self._batches.add(count)

    def looked_up(self, *, hit: bool) -> None:
        (self._hits if hit else self._misses).add()

    def looked_up_value(self, *, hit: bool) -> None:
        (self._value_hits if hit else self._value_misses).add()


class UploadCounts:
    """Uploads in progress."""

    __slots__ = ("new", "open", "resumed", "taken_over")

    def __init__(self, metrics: Metrics) -> None:
        self.open = metrics.gauge(families.UPLOADS_OPEN)
        self.new = metrics.counter(families.UPLOADS, "new")
        self.resumed = metrics.counter(families.UPLOADS, "resumed")
        self.taken_over = metrics.counter(families.UPLOADS, "taken_over")


class CommitCounts:
    """Commits; for the committer's thread."""

    def __init__(self, metrics: Metrics) -> None:
        self._writes = metrics.histogram(families.COMMIT_WRITES)
        self._sizes = metrics.histogram(families.WRITTEN_SIZES)
        self._batches = metrics.counter(families.BATCH_WRITES)
        self._files = metrics.histogram(families.COMMIT_SECONDS, "files")
        self._index = metrics.histogram(families.COMMIT_SECONDS, "index")
        self._no_space = metrics.counter(families.COMMIT_FAILURES, "no_space")
        self._errors = metrics.counter(families.COMMIT_FAILURES, "error")
        self._failed_at = metrics.gauge(families.COMMIT_FAILED_AT)
        self._done_at = metrics.gauge(families.COMMIT_DONE_AT)
        self._step = 0.0

    def begin(self) -> None:
        self._step = time.monotonic()

    def files_are_synced(self) -> None:
        now = time.monotonic()
        self._files.observe(now - self._step)
        self._step = now

    def done(self, writes: Sequence[Sequence[NewBlob]]) -> None:
        """A transaction is over; `writes` are the blobs that each of its writes entered."""
        self._index.observe(time.monotonic() - self._step)
        self._writes.observe(len(writes))
        for blobs in writes:
            if len(blobs) == 1:
                (blob,) = blobs
                self._sizes.observe(blob.stored if blob.data is None else len(blob.data))
            elif blobs:
                self._batches.add(len(blobs))
        self._done_at.set(time.time())

    def failed(self, error: Exception) -> None:
        """A write was not committed; not counted where its client alone is concerned."""
        if isinstance(error, NoSpace):
            self._no_space.add()
        elif isinstance(error, CasError):
            return
        else:
            self._errors.add()
        self._failed_at.set(time.time())


class ScrubCounts:
    """What the scrub has read."""

    def __init__(self, metrics: Metrics) -> None:
        self._entries = metrics.counter(families.SCRUBBED)
        self._bytes = metrics.counter(families.SCRUBBED_BYTES)
        self._bad = metrics.counter(families.SCRUB_BAD)
        self._over_at = metrics.gauge(families.SCRUBBED_AT)

    def took(self, size: int, *, ends: bool, bad: bool) -> None:
        """`size` bytes of an entry, which ends with them or goes on."""
        self._bytes.add(size)
        if ends:
            self._entries.add()
            self._bad.add(bad)

    def round_is_over(self, now: float) -> None:
        self._over_at.set(now)
