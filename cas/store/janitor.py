"""What is done for a store while it serves, beside serving: room is made, the dead cleared away.

Rule: `step` does one piece of what is due and returns soon, with the seconds until it wants to
be called again.  No piece keeps writers waiting longer than a commit does.  What goes first is
`evict`'s to choose, how much there is `usage`'s to tell.

Room is made in rounds: ask every process for the uses that it has noted, then remove uploads
that nobody goes on with, then entries, oldest first, in transactions of `BATCH`, but none that
waits to be sent upstream.  Files go after
the commit that forgets them (design: invariant 3); the same commit notes their names, so that
the next janitor removes what this one left if it is killed.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from cas import digest as digests
from cas.errors import CasError
from cas.index import aging, holes, unsent
from cas.index.changes import Changes, on_disk
from cas.index.lmdb import Index
from cas.index.records import ACTION, IN_FILES, Record, minutes
from cas.metrics import families
from cas.metrics.instruments import Metrics
from cas.store import evict, orphans
from cas.store.evict import Watermarks
from cas.store.files import Files
from cas.store.layout import Layout
from cas.store.local import FRESH_ACTION_MS
from cas.store.space import Space
from cas.store.usage import Meter, StagedFile, Usage, staging

LOOK_SECONDS = 1.0
"""How often the store's size is looked at while there is room, …"""
POLL_SECONDS = 0.1
"""… and whether somebody waits for room, …"""
HURRY_SECONDS = 0.02
"""… for whom it is looked at so often at most."""
FLUSH_SECONDS = 1.0
"""For how long a round waits for last-use times that a process still holds."""
BATCH = 256
"""Entries in one transaction: about 5 ms, as long as a commit of many writes."""
SHARE = 0.1
"""Of one core, for what is not urgent."""
CHORE_SECONDS = 60.0
"""How often uploads and free room are looked over."""
ORPHANS_FIRST = 3600.0
"""When files that nothing names are first looked for, …"""
ORPHANS_AGAIN = 86_400.0
"""… and how often from then on."""
ABANDONED_SECONDS = 60.0
"""An upload that nobody has written to for so long may go when it is that or young blobs."""

_ANY_AGE = 2**32 - 1
_ROW_BYTES = 200
"""What an entry's rows in the index take, about."""

log = logging.getLogger("cas.store")

Work = Generator[float, None, None]
"""Pieces of work; what each yields is the seconds that it asks for before the next."""


@dataclass(frozen=True, slots=True)
class JanitorOptions:
    """What an operator chooses."""

    marks: Watermarks = field(default_factory=Watermarks)
    min_age: float = 10_800.0
    """Seconds since its last use before which an entry is not removed, unless writes would be
    refused otherwise.  Bazel takes it that a blob which it was told of stays for 3 hours."""
    upload_expiry: float = 86_400.0
    """Seconds after which an upload that nobody goes on with is removed."""


@dataclass(slots=True)
class _Round:
    """What one round has done."""

    bytes: int = 0
    entries: int = 0
    uploads: int = 0
    youngest: int = 0
    """The last minute of use of what was removed."""
    forced: bool = False
    """Whether entries below the minimum age had to go."""
    spared: bool = False
    """Whether entries that were chosen had been used meanwhile: they may go the next time."""


class Janitor:
    """For one thread of one process; `step` again and again."""

    def __init__(
        self,
        layout: Layout,
        index: Index,
        files: Files,
        space: Space,
        meter: Meter,
        options: JanitorOptions,
        *,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._layout = layout
        self._index = index
        self._files = files
        self._space = space
        self._meter = meter
        self._options = options
        self._counts = _Counts(metrics or Metrics())
        self._clock = clock
        self._monotonic = monotonic
        self._look_due = 0.0
        self._hurry_due = 0.0
        self._pages_due = 0.0
        self._round: Work | None = None
        self._chores: deque[Work] = deque(
            [self._finish_removals(), self._enter_hints(), self._mend_times()]
        )
        self._chores_due = 0.0
        self._chore_due = 0.0
        self._hints_due = 0.0
        self._orphans_due = monotonic() + ORPHANS_FIRST
        self._sweep_wanted = False
        self._stuck = False
        # Whatever an earlier one found.
        space.set_stuck(False)
        self._done: list[int] = []
        """Serials of evicted blobs whose files are gone."""

    def step(self) -> float:
        """Does a piece of what is due; seconds until the next.  A fault of the store or the
        disk is logged, and tried again after a while."""
        try:
            return self._step()
        except (CasError, OSError) as error:
            log.error("the janitor cannot go on for now", extra={"error": str(error)})
            self._round = None
            self._look_due = self._chore_due = self._monotonic() + LOOK_SECONDS
            return POLL_SECONDS

    def _step(self) -> float:
        # Each keeps old pages of the index alive: the file would grow by what is written.
        cleared = self._index.clear_dead_readers()
        if cleared:
            log.info("readers that died were cleared away", extra={"readers": cleared})
        now = self._monotonic()
        if self._round is None and self._is_due(now):
            self._round = self._look()
        if self._round is not None:
            pause = next(self._round, None)
            if pause is not None:
                return pause
            self._round = None
            return 0.0
        return min(POLL_SECONDS, self._chore(now))

    def _is_due(self, now: float) -> bool:
        if now >= self._look_due:
            return True
        # Somebody waits: look soon, but not in a busy loop where nothing can be freed.
        return now >= self._hurry_due and self._space.wanted() > 0

    def drained(self) -> bool:
        """Whether there is nothing to do at once; for tests."""
        return self._round is None and not self._chores

    # --- rounds ------------------------------------------------------------------------

    def _measure(self) -> Usage:
        usage = self._meter.measure()
        self._look_due = self._monotonic() + LOOK_SECONDS
        self._hurry_due = self._monotonic() + HURRY_SECONDS
        self._counts.saw(usage, stuck=self._stuck)
        return usage

    def _look(self) -> Work:
        usage = self._measure()
        if usage.reclaimable and self._monotonic() >= self._pages_due:
            yield from self._give_back_pages(usage.reclaimable)
            usage = self._measure()
        # What was promised since is as good as written.
        used = max(usage.used, usage.limit - self._space.room() - usage.reclaimable)
        demand = evict.demand(used, self._space.wanted(), usage.limit, self._options.marks)
        if demand.gentle:
            yield from self._make_room(usage, demand)
        elif self._stuck:
            self._set_stuck(False)

    def _make_room(self, usage: Usage, demand: evict.Demand) -> Work:
        begun = self._monotonic()
        done = _Round()
        yield from self._await_uses()
        yield from self._expire(done)
        ripe = minutes(self._clock() - self._options.min_age)
        yield from self._evict(done, demand.gentle, ripe, usage)
        if done.bytes < demand.urgent:
            yield from self._abandon(done, demand.urgent)
        if done.bytes < demand.urgent:
            before = done.entries
            yield from self._evict(done, demand.urgent, _ANY_AGE, usage)
            done.forced = done.entries > before
        self._set_stuck(demand.urgent > 0 and not done.bytes and not done.spared)
        if done.bytes or done.spared:
            # There may be more to do at once; where nothing could go, there is not.
            self._look_due = 0.0
        if done.entries or done.uploads:
            self._sweep_wanted = self._sweep_wanted or done.entries > 0
            self._report(done, self._monotonic() - begun)

    def _report(self, done: _Round, took: float) -> None:
        facts = {
            "bytes": done.bytes,
            "entries": done.entries,
            "uploads": done.uploads,
            "youngest": max(0, int(self._clock()) - 60 * done.youngest) if done.entries else None,
            "took": round(took, 3),
        }
        if done.forced:
            log.warning("evicted before min_age, since the store is full", extra=facts)
        else:
            log.info("evicted", extra=facts)

    def _set_stuck(self, stuck: bool) -> None:
        if stuck and not self._stuck:
            log.error("the store is full and nothing more can be freed; writes are refused")
        self._stuck = stuck
        self._space.set_stuck(stuck)

    def _await_uses(self) -> Work:
        """Processes hold the last seconds' uses in memory: what was just asked for must not go."""
        request = self._space.request_flush()
        deadline = self._monotonic() + FLUSH_SECONDS
        while not self._space.all_flushed(request) and self._monotonic() < deadline:
            yield 0.01

    def _evict(self, done: _Round, need: int, newest: int, usage: Usage) -> Work:
        """Removes entries, oldest first, until `done` has `need` bytes or there is none left
        whose last use was at minute `newest` or before."""
        # The only copies of what they are.
        pinned = unsent.serials(self._index)
        while done.bytes < need:
            count = evict.entries_for(need - done.bytes, usage.used, usage.entries)
            victims: list[tuple[int, int]] = []
            yield from self._choose(victims, count + len(pinned), newest)
            if pinned:
                victims = [victim for victim in victims if victim[1] not in pinned]
            before = done.bytes
            for batch in evict.batches(victims, BATCH):
                begun = self._monotonic()
                self._remove(done, batch, need)
                if begun >= self._look_due - LOOK_SECONDS / 2:
                    self._measure()
                if done.bytes >= need:
                    return
                # As long as it kept others from writing: they get every other turn.
                yield self._monotonic() - begun
            if done.bytes == before:
                return

    def _choose(self, victims: list[tuple[int, int]], count: int, newest: int) -> Work:
        """Puts the oldest (minute, serial) into `victims`, oldest first, about `count`."""
        # One piece, or the map might change below the walk: 50 ms for a million entries.
        counts = evict.count(view for _, view in aging.ages(self._index))
        now = minutes(self._clock())
        if any(minute > now + 1 for minute in counts):
            aging.lower(self._index, now)
        until = evict.cutoff(counts, count, newest)
        yield 0.0
        for first, view in aging.ages(self._index):
            victims += evict.gather(first, view, until)
        victims.sort()

    def _remove(self, done: _Round, batch: evict.Batch, need: int) -> None:
        used = {serial: minute for minute, serial in batch}
        found = aging.entries(self._index, list(used))
        sized = [((key, record), _freed(record)) for key, record in found]
        chosen = list(evict.until_enough(sized, need - done.bytes))
        removed = self._index.evict(chosen, batch[-1][0], self._done)
        self._done = []
        done.spared = done.spared or len(removed) < len(chosen)
        for key, record in removed:
            if record.where in IN_FILES:
                self._remove_file(key, record)
            done.bytes += _freed(record)
            done.youngest = max(done.youngest, used[record.serial])
        done.entries += len(removed)
        now = minutes(self._clock())
        self._counts.evicted(removed, [60.0 * (now - used[r.serial]) for _, r in removed])

    def _remove_file(self, key: bytes, record: Record) -> None:
        path = self._layout.copy(digests.from_key(key), record)
        try:
            self._files.remove(path)
        except OSError as error:
            # It stays condemned: the next janitor tries again.
            log.error("a file could not be removed", extra={"path": path, "error": str(error)})
        else:
            self._done.append(record.serial)

    # --- uploads -------------------------------------------------------------------------

    def _expire(self, done: _Round) -> Work:
        """Removes uploads, and what a takeover left, that nobody goes on with."""
        now = self._clock()
        for found in self._staged():
            expiry = ABANDONED_SECONDS if found.is_copy else self._options.upload_expiry
            if now - found.changed >= expiry:
                self._remove_upload(done, found)
                yield 0.0

    def _abandon(self, done: _Round, need: int) -> Work:
        """Removes uploads without a living writer, oldest first, for want of room."""
        now = self._clock()
        for found in self._staged():
            if done.bytes >= need or now - found.changed < ABANDONED_SECONDS:
                return
            self._remove_upload(done, found)
            yield 0.0

    def _staged(self) -> list[StagedFile]:
        return sorted(staging(self._layout), key=lambda found: found.changed)

    def _remove_upload(self, done: _Round, found: StagedFile) -> None:
        """Unless it has a living writer: under the same locks as a stream that takes it over."""
        fd = self._files.open_staging(found.path)
        if fd is None:
            return
        try:
            ours = self._files.hold(fd) and self._files.guard(fd, wait=False)
            if ours and self._files.names(found.path, fd):
                self._files.remove(found.path)
                done.uploads += 1
                self._counts.expired()
                done.bytes += found.bytes
        finally:
            self._files.close(fd)

    # --- chores --------------------------------------------------------------------------

    def _chore(self, now: float) -> float:
        """A piece of what is not urgent; seconds until it wants to be called again."""
        if now < self._chore_due:
            return self._chore_due - now
        if not self._chores:
            if self._sweep_wanted:
                self._sweep_wanted = False
                self._chores.append(self._sweep_actions())
            if now >= self._hints_due:
                self._hints_due = now + LOOK_SECONDS
                self._chores.append(self._enter_hints())
            if now >= self._orphans_due:
                self._orphans_due = now + ORPHANS_AGAIN
                self._chores.append(self._remove_orphans())
            if now >= self._chores_due:
                self._chores_due = now + CHORE_SECONDS
                self._chores += (self._expire_uploads(), self._give_back_times())
        if not self._chores:
            return POLL_SECONDS
        pause = next(self._chores[0], None)
        if pause is None:
            self._chores.popleft()
        spent = self._monotonic() - now
        self._chore_due = now + spent / SHARE + (pause or 0.0)
        return self._chore_due - now

    def _finish_removals(self) -> Work:
        """What an earlier janitor forgot in the index and did not come to remove."""
        for key, record in aging.condemned(self._index):
            self._remove_file(key, record)
            yield 0.0
        if self._done:
            done, self._done = self._done, []
            self._index.evict([], 0, done)

    def _mend_times(self) -> Work:
        after: int | None = -1
        while after is not None:
            after = aging.mend_times(self._index, after)
            yield 0.0

    def _enter_hints(self) -> Work:
        while aging.enter_hints(self._index):
            yield 0.0

    def _sweep_actions(self) -> Work:
        """Drops action results that lack a blob: nobody may ask for them again, and they would
        stay until they are old."""
        dropped = 0
        for prefix in aging.REFERRING:
            after: bytes | None = b""
            while after is not None:
                fresh = int(self._clock() * 1000) - FRESH_ACTION_MS
                page = aging.dead_actions(self._index, prefix, after, fresh)
                if page.dead:
                    now = minutes(self._clock())
                    self._index.apply(Changes(now, dropped_actions=page.dead))
                    dropped += len(page.dead)
                after = page.last
                yield 0.0
        if dropped:
            self._counts.actions(dropped)
            log.info("action results without their blobs were dropped", extra={"count": dropped})

    def _expire_uploads(self) -> Work:
        done = _Round()
        yield from self._expire(done)
        if done.uploads:
            facts = {"uploads": done.uploads, "bytes": done.bytes}
            log.info("uploads that nobody went on with were removed", extra=facts)

    def _remove_orphans(self) -> Work:
        """Blobs' files that no record names: killed processes leave them."""
        count = freed = 0
        for removed in orphans.sweep(self._layout, self._index, self._files, self._clock):
            count += len(removed)
            freed += sum(512 * state.st_blocks for state in removed)
            yield 0.0
        if count:
            self._counts.orphans(count)
            log.warning("files of no blob were removed", extra={"files": count, "bytes": freed})

    def _give_back_pages(self, need: int) -> Work:
        """Pages of the index that are free, where they are more than its share."""
        given = 0
        for min_run in holes.RUNS:
            after: int | None = -1
            # The whole pass, even if less would do: so it is not needed again at once.
            while after is not None:
                begun = self._monotonic()
                found = holes.give_back(self._index, after, min_run)
                given += found.bytes
                after = found.after
                yield self._monotonic() - begun
            if given >= need:
                break
        if given:
            log.info("free pages of the index were given back", extra={"bytes": given})
        if given < need:
            # Somebody reads an old state.
            self._pages_due = self._monotonic() + LOOK_SECONDS / 4

    def _give_back_times(self) -> Work:
        """Pages of last-use times, and of tags, that hold no entry any more."""
        before: set[tuple[int, int]] = set()
        # Twice, a while apart: a use of an entry that has just gone may still be on its way, and
        # must find its page allocated.
        for pause in (CHORE_SECONDS / 4, 0.0):
            end = aging.next_serial(self._index)
            found = {
                run
                for first, view in aging.ages(self._index)
                for run in aging.dead_pages(first, view, end)
            }
            for run in before & found:
                self._index.uses.punch(*run)
                self._index.hints.punch(*run)
            before = found
            yield pause


def _freed(record: Record) -> int:
    """What removing an entry frees, about."""
    if record.where in IN_FILES:
        return on_disk(record.stored) + _ROW_BYTES
    return (record.stored + _ROW_BYTES) * 6 // 5


class _Counts:
    """What the janitor tells of itself."""

    def __init__(self, metrics: Metrics) -> None:
        self._used = metrics.gauge(families.STORE_USED_BYTES)
        self._limit = metrics.gauge(families.STORE_LIMIT_BYTES)
        self._entries = metrics.gauge(families.STORE_ENTRIES)
        self._free = metrics.gauge(families.DISK_FREE_BYTES)
        self._full = metrics.gauge(families.STORE_FULL)
        self._blobs = metrics.counter(families.EVICTED, "blob")
        self._actions = metrics.counter(families.EVICTED, "action")
        self._bytes = metrics.counter(families.EVICTED_BYTES)
        self._ages = metrics.histogram(families.EVICTED_AGE)
        self._uploads = metrics.counter(families.UPLOADS_EXPIRED)
        self._orphans = metrics.counter(families.ORPHANS)

    def saw(self, usage: Usage, *, stuck: bool) -> None:
        self._used.set(usage.on_disk)
        self._limit.set(usage.limit)
        self._entries.set(usage.entries)
        self._free.set(usage.disk_free)
        self._full.set(stuck)

    def evicted(self, removed: list[tuple[bytes, Record]], ages: list[float]) -> None:
        actions = sum(record.where == ACTION for _, record in removed)
        self._actions.add(actions)
        self._blobs.add(len(removed) - actions)
        self._bytes.add(sum(_freed(record) for _, record in removed))
        self._ages.observe_all(ages)

    def expired(self) -> None:
        self._uploads.add()

    def actions(self, dropped: int) -> None:
        self._actions.add(dropped)

    def orphans(self, removed: int) -> None:
        self._orphans.add(removed)
