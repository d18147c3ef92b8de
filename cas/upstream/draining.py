"""The queue of what is to be sent upstream, emptied.

Rule: one process of a node does it, the janitor's: there is just one of that, it ends and begins
with the server, it shares no interpreter with calls, and the queue may have been filled by any
process.  An entry leaves the queue once upstream has acknowledged it, so that whoever is killed
meanwhile leaves it there; sending twice is one request more.  What goes before what is
`Target.send_action`'s to keep.

The queue is walked in a circle, so that an entry which cannot be sent holds up no other.  While
upstream fails one entry at a time is tried.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from cas import digest as digests
from cas.digest import BY_CODE, Digest
from cas.errors import CasError, DataLoss, InvalidArgument, NotFound, StoreClosed, Unavailable
from cas.index import unsent
from cas.index.lmdb import Index
from cas.index.records import ACTION_PREFIX, cut_action, split_action_key
from cas.index.unsent import Unsent
from cas.metrics import families
from cas.metrics.instruments import Metrics
from cas.store.pending import Pending, failed
from cas.store.quarantine import describe

IDLE_SECONDS = 0.1
"""Between two looks at an empty queue, …"""
BUSY_SECONDS = 0.005
"""… and while something is under way."""
GATHER_SECONDS = 0.05
"""For which what was sent waits to leave the queue together, …"""
BATCH = 256
"""… unless there is so much of it."""
MIN_PAUSE, MAX_PAUSE = 0.25, 2.0
"""Seconds between two trials while upstream fails; the breaker has its own, longer ones."""
NEW_SECONDS = 60.0
"""For which a blob that came from a client is taken to be lacking upstream: clients send what
FindMissingBlobs lacked, which asked upstream.  Where that is wrong it is sent in vain."""
TELL_SECONDS = 1.0
TELL_SHARE = 0.01
"""Of the time, for finding the oldest entry."""

log = logging.getLogger("cas.upstream")


class Target(Protocol):
    """Where to send it: `tier.Tier`."""

    def send(self, keys: list[bytes], /, *, sure: bool, new: bool) -> Pending[None]:
        """Resolved once these blobs are upstream.  Fails with NotFound where one is neither here
        nor there, Unavailable where upstream fails.  `sure` has upstream asked whatever was known
        of it, but of those that are `new`, which are taken to be lacking there."""

    def send_action(
        self, instance: str, digest: Digest, references: list[bytes], result: bytes, /
    ) -> Pending[None]:
        """As `send`, for an action result, once all that it names is upstream."""


class _UnderWay(NamedTuple):
    key: bytes
    pending: Pending[None]


class Drain:
    """For one thread of one process; `step` again and again."""

    def __init__(
        self,
        index: Index,
        target: Target,
        *,
        width: int = 64,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`width` entries are under way at once."""
        self._index = index
        self._target = target
        self._width = width
        self._counts = _Counts(metrics or Metrics())
        self._clock = clock
        self._ended: deque[int] = deque()
        """Serials; filled by other threads."""
        self._under_way: dict[int, _UnderWay] = {}
        self._keys: set[bytes] = set()
        """Of what is under way: two results of one action go one after the other."""
        self._done: list[int] = []
        """Serials that are to leave the queue, …"""
        self._done_due = 0.0
        """… by then."""
        self._page: deque[Unsent] = deque()
        self._after = -1
        self._is_failing = False
        self._pause = MIN_PAUSE
        self._resume_at = 0.0
        self._rests_until = 0.0
        self._tell_due = 0.0

    def step(self) -> float:
        """Does what is due, without waiting for upstream; seconds until the next.  A fault of the
        index's is logged, and tried again after a while."""
        if time.monotonic() < self._rests_until:
            return IDLE_SECONDS
        try:
            self._collect()
            self._leave()
            self._tell()
            now = time.monotonic()
            if now < self._resume_at and not self._under_way:
                return min(IDLE_SECONDS, self._resume_at - now)
            if now >= self._resume_at:
                self._start()
        except (CasError, OSError) as error:
            log.error("what waits for upstream cannot be seen to", extra={"error": str(error)})
            self._rests_until = time.monotonic() + MAX_PAUSE
        return BUSY_SECONDS if self._under_way or self._done else IDLE_SECONDS

    # --- what has come about ---------------------------------------------------------------

    def _collect(self) -> None:
        while self._ended:
            serial = self._ended.popleft()
            key, pending = self._under_way.pop(serial)
            self._keys.discard(key)
            try:
                pending.result()
            except (Unavailable, StoreClosed) as error:
                self._failed(error)
            except (NotFound, DataLoss, InvalidArgument) as error:
                # Removed by hand, or damaged here: nobody can send it any more.
                self._counts.lost.add()
                self._is_over(serial)
                facts = {"entry": describe(key), "error": str(error)}
                log.error("what was to be sent upstream cannot be any more", extra=facts)
            except Exception as error:  # noqa: BLE001 - a fault of the disk's, which may pass
                self._failed(error)
            else:
                self._counts.sent.add()
                self._is_over(serial)
                self._is_failing = False
                self._pause = MIN_PAUSE

    def _is_over(self, serial: int) -> None:
        if not self._done:
            self._done_due = time.monotonic() + GATHER_SECONDS
        self._done.append(serial)

    def _failed(self, error: Exception) -> None:
        now = time.monotonic()
        if not self._is_failing:
            entries, size = unsent.waiting(self._index)
            facts = {"entries": entries, "bytes": size, "error": str(error)}
            log.warning("what is written waits here until upstream takes it", extra=facts)
            self._is_failing = True
        if now >= self._resume_at:
            self._resume_at = now + self._pause
            self._pause = min(MAX_PAUSE, 2 * self._pause)

    def _leave(self) -> None:
        if not self._done:
            return
        if len(self._done) >= BATCH or time.monotonic() >= self._done_due or not self._under_way:
            self._index.sent(self._done)
            self._done = []

    # --- what is begun -----------------------------------------------------------------------

    def _start(self) -> None:
        width = 1 if self._is_failing else self._width
        passed = False
        while len(self._under_way) < width:
            if not self._page:
                self._page.extend(unsent.page(self._index, self._after))
            if not self._page:
                if passed or self._after < 0:
                    return
                passed, self._after = True, -1
                continue
            entry = self._page.popleft()
            self._after = entry.serial
            self._begin(entry)

    def _begin(self, entry: Unsent) -> None:
        serial, key = entry.serial, entry.key
        if serial in self._under_way or serial in self._done:
            return
        if key is None:
            self._is_over(serial)
            return
        if key in self._keys:
            return
        pending = self._send(key, entry)
        self._under_way[serial] = _UnderWay(key, pending)
        self._keys.add(key)
        pending.add_done_callback(lambda: self._ended.append(serial))

    def _send(self, key: bytes, entry: Unsent) -> Pending[None]:
        if key[:1] != ACTION_PREFIX:
            new = entry.came_then and self._clock() < entry.since + NEW_SECONDS
            # Another process may have found its object damaged since, and removed it.
            return self._target.send([key], sure=True, new=new)
        packed = self._index.packed_action(key)
        if packed is None:
            return failed(NotFound("the action result was removed"))
        try:
            action = cut_action(packed)
        except DataLoss as error:
            return failed(error)
        instance, hashed = split_action_key(key)
        # No name of an action has its size.
        digest = digests.make(BY_CODE[hashed[0]], hashed[1:], 0)
        return self._target.send_action(instance, digest, action.references, action.result)

    # --- what is told --------------------------------------------------------------------------

    def _tell(self) -> None:
        begun = time.monotonic()
        if begun < self._tell_due:
            return
        entries, size = unsent.waiting(self._index)
        oldest = unsent.oldest(self._index) if entries else None
        age = 0.0 if oldest is None else max(0.0, self._clock() - oldest)
        self._counts.waits(entries, size, age)
        now = time.monotonic()
        self._tell_due = now + max(TELL_SECONDS, (now - begun) / TELL_SHARE)


class _Counts:
    """What is told of the queue."""

    def __init__(self, metrics: Metrics) -> None:
        self._entries = metrics.gauge(families.UNSENT)
        self._bytes = metrics.gauge(families.UNSENT_BYTES)
        self._age = metrics.gauge(families.UNSENT_AGE)
        self.sent = metrics.counter(families.UNSENT_ENDED, "sent")
        self.lost = metrics.counter(families.UNSENT_ENDED, "lost")

    def waits(self, entries: int, size: int, age: float) -> None:
        self._entries.set(entries)
        self._bytes.set(size)
        self._age.set(age)
