"""Group commit: many finished writes, one sync.

Rule: the only place where anything becomes visible.  One thread per process takes
everything that waits, and in this order (design: invariants 1 and 2):

1. gives the staged files their blobs' names beside the staging names,
2. syncs the files, and each directory concerned once,
3. enters all records in one index transaction, which LMDB syncs,
4. removes the staging names, and copies that turned out to be there already,
5. tells every waiter.

The staging name outlives 3 because a client may have been told its size: a crash
before 3 leaves the upload complete but unfinished, not gone.

Durability `strict` does all that.  `batch` leaves the syncs of 2 and 3 to a tick
at most `BATCH_SECONDS` later; `none` leaves them to the system.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from cas.errors import CasError, StoreClosed, UploadSuperseded
from cas.index.changes import Changes, NewAction, NewBlob
from cas.index.lmdb import Index
from cas.index.records import ACTION, minutes
from cas.metrics.instruments import Metrics
from cas.store.admission import Admission
from cas.store.counts import CommitCounts
from cas.store.files import Files
from cas.store.interface import Durability
from cas.store.later import Later
from cas.store.packed import pack_small
from cas.store.pending import Pending
from cas.store.syncing import Syncs
from cas.zstd import Packer

BATCH_SECONDS = 0.2
"""Longest time that durability `batch` leaves an acknowledged write unsynced."""
TOUCH_SECONDS = 30.0
"""How often last-use times are written; eviction may be wrong by so much."""
MAX_TOUCHES = 100_000
"""Keys in use that may wait to be written.  So many are not the same few again and again, so that
nothing is saved by waiting: beyond, they are written at once, or as they are found."""
GATHER_SECONDS = 100e-6
"""For each work of the last commit, how long the next one waits for more to come, …"""
MAX_GATHER_SECONDS = 1e-3
"""… at most: about as long as a sync takes.  Clients that wait for one commit come back together,
and would else be spread over several: with 16 of them a wait that ends in one commit takes 40 %
less CPU and lets a quarter more through.  A single client never waits."""
MAX_GROUP = 512
"""Works in one commit: bounds the time for which writers of other processes wait."""

log = logging.getLogger("cas.store")


@dataclass(frozen=True, slots=True)
class Staged:
    """A complete, verified file in staging, and the name that it is to get."""

    fd: int
    """Open, and held (`Files.hold`); closed here."""
    path: str | None
    """Its name in staging; None for a file that was written under its blob's name."""
    blob: str
    shard: str


@dataclass(slots=True)
class Work:
    """One write to commit; `pending` is resolved or failed exactly once."""

    pending: Pending[None]
    blobs: Sequence[NewBlob] = ()
    """With `staged`, exactly one, without data."""
    staged: Staged | None = None
    action: NewAction | None = None
    dropped: tuple[bytes, bytes] | None = None
    """(key, packed) of a dead action result or value."""
    drop: bytes | None = None
    """The key of a value to forget."""
    remove: str | None = None
    """A staging file that is of no use after the commit."""
    room: int = 0
    """Nothing to commit: `pending` waits until so many bytes have room."""
    waited: float = 0.0
    """Seconds that it waited for room before."""
    unsent: Sequence[bytes] = ()
    """Keys of further entries that are to be sent upstream."""
    fetched: bool = False
    """Whether it came from upstream, so that it is not to be sent there, and that nobody waits
    for it to be durable: it waits for others (`Later`)."""


_WAKE = Work(Pending())
"""Has the thread look at the clock."""


class Committer:
    """The thread and its queue.  `submit` from any thread; `close` once."""

    def __init__(
        self,
        index: Index,
        files: Files,
        durability: Durability,
        take_touches: Callable[[], Collection[bytes]],
        admission: Admission,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
        *,
        packer: Packer | None = None,
        queues: bool = False,
    ) -> None:
        """`take_touches` hands over the keys used since it was last called.  `packer` compresses
        what goes into the index, where that is wanted.  `queues` has blobs and action results wait
        to be sent upstream."""
        self._index = index
        self._files = files
        self._strict = durability == "strict"
        self._batch = durability == "batch"
        self._take_touches = take_touches
        self._admission = admission
        self._counts = CommitCounts(metrics)
        self._clock = clock
        self._packer = packer
        self._queues = queues
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._later: Later[Work] = Later()
        self._closed = False
        self._touches_wanted = False
        self._unsynced = _Unsynced()
        self._syncs = Syncs()
        self._expected = 0
        """Works that the next commit may hope for."""
        self._thread = threading.Thread(target=self._run, name="cas-commit", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> None:
        if self._closed:
            work.pending.fail(StoreClosed("the store is closing"))
            return
        if not work.fetched:
            self._queue.put(work)
        elif self._later.add(work):
            self._queue.put(_WAKE)

    def write_touches(self) -> None:
        """Has the last-use times written soon, not only when their time comes."""
        if not self._touches_wanted:
            self._touches_wanted = True
            self._queue.put(Work(Pending()))

    def close(self) -> None:
        """Commits what was submitted, syncs in every mode, ends the thread."""
        self._closed = True
        self._queue.put(None)
        self._thread.join()
        self._syncs.close()

    # --- the thread --------------------------------------------------------------------

    def _run(self) -> None:
        next_touch = time.monotonic() + TOUCH_SECONDS
        running = True
        while running:
            group = self._next_group(next_touch)
            if group and group[-1] is None:
                group.pop()
                running = False
            now = time.monotonic()
            touched: Collection[bytes] = ()
            # The janitor asks before it evicts: what was just used must not go.
            asked = self._admission.space.flush_wanted()
            if now >= next_touch or self._touches_wanted or asked or not running:
                self._touches_wanted = False
                touched = self._take_touches()
                next_touch = now + TOUCH_SECONDS
            works = [work for work in group if work is not None and work is not _WAKE]
            if works:
                self._expected = len(works)
            if works or not running or self._later.due(now):
                # First: what a client writes meanwhile takes the place of what was fetched.
                works = self._later.take() + works
            works = self._admission.admit(works)
            if works:
                self._commit(works)
                self._admission.settle()
            if touched:
                self._touch(touched)
            if asked:
                self._admission.space.flushed(asked)
            if self._unsynced.due(time.monotonic()) or not running:
                self._sync_batch()
        self._admission.close()
        left = self._later.take()
        while not self._queue.empty():
            late = self._queue.get()
            if late is not None and late is not _WAKE:
                left.append(late)
        for late in left:
            late.pending.fail(StoreClosed("the store is closing"))

    def _next_group(self, next_touch: float) -> list[Work | None]:
        """Everything that waits, in order, a None last if the thread is to end; empty when
        a timer is due first."""
        wake = time.monotonic() + self._admission.poll()
        deadline = min(next_touch, self._unsynced.deadline, wake, self._later.deadline)
        group: list[Work | None] = []
        with suppress(queue.Empty):
            group.append(self._queue.get(timeout=max(0.0, deadline - time.monotonic())))
            if self._strict and 1 < self._expected > self._queue.qsize() + 1:
                time.sleep(min(self._expected * GATHER_SECONDS, MAX_GATHER_SECONDS))
            while group[-1] is not None and len(group) < MAX_GROUP:
                group.append(self._queue.get_nowait())
        return group

    def _commit(self, works: list[Work]) -> None:
        changes = Changes(minutes(self._clock()))
        self._counts.begin()
        ready = self._prepare(works)
        if any(work.staged is not None for work in works):
            self._counts.files_are_synced()
        for work in ready:
            if self._packer is not None and work.staged is None:
                # Here, for no lock is held, and no call waits for it alone.
                work.blobs = [_packed(blob, self._packer) for blob in work.blobs]
            changes.blobs += work.blobs
            if work.action is not None:
                changes.put(work.action)
            if work.dropped is not None:
                changes.dropped_actions.append(work.dropped)
            if work.drop is not None:
                changes.drop(work.drop)
        if self._queues:
            changes.second = int(self._clock())
            changes.unsent = [key for work in ready for key in to_send(work)]
        try:
            known = self._index.apply(changes)
        except Exception as error:  # noqa: BLE001 - every waiter must hear of it
            self._fail_all(ready, error)
            return
        self._counts.done([work.blobs for work in ready])
        if known:
            self._remove_copies(ready, known)
        if self._batch:
            self._unsynced.add(time.monotonic(), [work.staged for work in ready if work.staged])
        for work in ready:
            if work.remove is not None:
                self._remove(work.remove)
            if work.staged is not None:
                if work.staged.path is not None:
                    self._remove(work.staged.path)
                if not self._batch:
                    self._files.close(work.staged.fd)
            work.pending.resolve(None)

    def _prepare(self, works: list[Work]) -> list[Work]:
        """Steps 1 and 2; the works that got through them.  Others have failed alone."""
        # Names first, then syncs: the first sync has the file system write down all of it,
        # and those that follow find little left to do.
        ready = self._each(works, self._name)
        return self._sync_all(ready) if self._strict else ready

    def _sync_all(self, works: list[Work]) -> list[Work]:
        """Syncs the files, and each directory once; the works that got through it."""
        files = [work.staged for work in works if work.staged is not None]
        if not files:
            return works
        shards = list(dict.fromkeys([staged.shard for staged in files]))
        outcomes = self._syncs.run(
            [
                *(partial(self._sync, staged) for staged in files),
                *(partial(self._files.sync_directory, shard) for shard in shards),
            ]
        )
        if not any(outcomes):
            return works
        of_file = dict(zip(map(id, files), outcomes, strict=False))
        of_shard = dict(zip(shards, outcomes[len(files) :], strict=True))
        ready = []
        for work in works:
            staged = work.staged
            error = staged and (of_file[id(staged)] or of_shard[staged.shard])
            if error:
                self._fail_all([work], error)
            else:
                ready.append(work)
        return ready

    def _each(self, works: list[Work], step: Callable[[Staged], None]) -> list[Work]:
        ready = []
        for work in works:
            if work.staged is not None:
                try:
                    step(work.staged)
                except Exception as error:  # noqa: BLE001 - the one waiter must hear of it
                    self._fail_all([work], error)
                    continue
            ready.append(work)
        return ready

    def _sync(self, staged: Staged) -> None:
        try:
            self._files.sync(staged.fd)
        except Exception:
            # The system tells once that bytes did not reach the disk, and lets them go: another
            # sync would succeed without them. The upload begins anew.
            if staged.path is not None:
                self._remove(staged.path)
            raise

    def _name(self, staged: Staged) -> None:
        if staged.path is not None:
            self._publish(staged.fd, staged.path, staged.blob)

    def _publish(self, fd: int, staging: str, blob: str) -> None:
        # A later stream may have taken the upload over: then its file, not this one, bears
        # the name, and must not be published unverified. Nobody keeps the guard of a
        # complete file for long.
        self._files.guard(fd, wait=True)
        try:
            if not self._files.names(staging, fd):
                raise UploadSuperseded("a later stream took this upload over")
            self._files.publish(staging, blob)
        finally:
            self._files.unguard(fd)

    def _remove_copies(self, ready: list[Work], known: list[NewBlob]) -> None:
        keys = {blob.key for blob in known}
        for work in ready:
            if work.staged is not None and work.blobs[0].key in keys:
                record = self._index.record(work.blobs[0].key)
                # Two copies of one blob in this very group: the first one is the record's.
                if record is None or record.generation != work.blobs[0].generation:
                    self._remove(work.staged.blob)

    def _remove(self, path: str) -> None:
        try:
            self._files.remove(path)
        except OSError as error:
            log.error("a file could not be removed", extra={"path": path, "error": str(error)})

    def _fail_all(self, works: Sequence[Work], error: Exception) -> None:
        for work in works:
            if work.staged is not None:
                self._remove(work.staged.blob)
            self._fail(work, error)

    def _fail(self, work: Work, error: Exception) -> None:
        self._counts.failed(error)
        if not isinstance(error, CasError):
            log.error("a commit failed", extra={"error": repr(error)})
        if work.staged is not None:
            self._files.close(work.staged.fd)
        work.pending.fail(error)

    def _touch(self, keys: Collection[bytes]) -> None:
        try:
            self._index.touch(keys, minutes(self._clock()))
        except (CasError, OSError) as error:
            # Nothing but the order of eviction depends on it.
            log.warning("last-use times were not written", extra={"error": str(error)})

    def _sync_batch(self) -> None:
        """The tick of durability `batch`: files, directories, then the index."""
        staged = self._unsynced.take()
        try:
            for item in staged:
                self._files.sync(item.fd)
            for shard in {item.shard: None for item in staged}:
                self._files.sync_directory(shard)
            self._index.flush()
        except Exception as error:  # noqa: BLE001 - every waiter must hear of it
            log.error(
                "a write-back failed; unsynced writes may be lost if the machine stops",
                extra={"error": repr(error)},
            )
        finally:
            for item in staged:
                self._files.close(item.fd)


def to_send(work: Work) -> list[bytes]:
    """The keys of what a work has to be sent upstream, where writes go there later."""
    if work.fetched:
        return []
    keys = [blob.key for blob in work.blobs]
    if work.action is not None and work.action.where == ACTION:
        keys.append(work.action.key)
    return [*keys, *work.unsent]


def _packed(blob: NewBlob, packer: Packer) -> NewBlob:
    packed = None if blob.data is None else pack_small(blob.data, packer)
    return blob if packed is None else NewBlob(blob.key, packed, packed=True)


@dataclass(slots=True)
class _Unsynced:
    """What durability `batch` has acknowledged and not synced yet."""

    deadline: float = float("inf")
    files: list[Staged] = field(default_factory=list)

    def add(self, now: float, files: list[Staged]) -> None:
        self.files += files
        self.deadline = min(self.deadline, now + BATCH_SECONDS)

    def due(self, now: float) -> bool:
        return now >= self.deadline

    def take(self) -> list[Staged]:
        files, self.files, self.deadline = self.files, [], float("inf")
        return files
