"""The janitor's loop over a real store: no process, and a clock that the tests move."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cas import digest as digests
from cas.digest import FUNCTIONS, SHA256, Digest
from cas.errors import NoSpace
from cas.index import aging
from cas.index.lmdb import Index
from cas.index.records import FILE, minutes
from cas.metrics import families
from cas.metrics.instruments import Metrics
from cas.store import admission, evict, janitor
from cas.store.directory import prepare
from cas.store.files import Files, Seam
from cas.store.interface import NewAction
from cas.store.janitor import BATCH, Janitor, JanitorOptions
from cas.store.layout import Layout
from cas.store.local import LocalStore, StoreOptions, open_store
from cas.store.pending import Pending
from cas.store.space import Space
from cas.store.usage import Meter, SizeLimits, staging
from tests.metrics.reading import value
from tests.shelves import Shelves
from tests.store.conftest import Clock

MIB = 1 << 20
PATIENCE = 40.0
ANSWER_SECONDS = 5.0
"""Seconds of real time in which a store that lives answers even on a busy machine."""
LIMIT = 40 * MIB
HOUR = 3600.0


class House:
    """A store, and a janitor for it."""

    def __init__(self, directory: Path, clock: Clock, stack: ExitStack) -> None:
        self.directory = directory
        self.clock = clock
        self.stack = stack
        self.layout = Layout(directory)
        self.now = 1000.0
        self.stores: list[LocalStore] = []
        self.asked: set[int] = set()
        self.metrics = Metrics()

    def open_store(self) -> LocalStore:
        limits = SizeLimits(max_size=LIMIT)
        store = open_store(self.directory, StoreOptions("none", limits=limits), clock=self.clock)
        self.stack.callback(store.close)
        self.stores.append(store)
        return store

    def janitor(
        self,
        store: LocalStore,
        *,
        min_age: float = 3 * HOUR,
        files_seam: Seam | None = None,
        index_seam: Callable[[str], None] | None = None,
    ) -> Janitor:
        """On the store's index, since a process can open one only once."""
        files = Files(files_seam)
        index = store._index
        index._seam = index_seam
        space = Space(self.layout.space, files, takes=False)
        self.stack.callback(space.close)
        meter = Meter(self.layout, index, space, SizeLimits(max_size=LIMIT), self.timer)
        return Janitor(
            self.layout,
            index,
            files,
            space,
            meter,
            JanitorOptions(min_age=min_age),
            metrics=self.metrics,
            clock=self.clock,
            monotonic=self.timer,
        )

    def timer(self) -> float:
        return self.now

    def run(self, janitor: Janitor, seconds: float = 3.0) -> None:
        """Lets it work for so long; the stores' threads have the real time that they need to
        answer it."""
        until = self.now + seconds
        while self.now < until:
            pause = janitor.step()
            if pause:
                self.await_answers()
                self.now += max(pause, 0.001)
                time.sleep(0.001)

    def await_answers(self) -> None:
        """Until the stores have handed over the uses that the janitor has asked them for, or
        have had the time for it: once for each time of asking."""
        for store in self.stores:
            space = store._space
            asked = 0 if space._closed else space.flush_wanted()
            if asked and asked not in self.asked:
                self.asked.add(asked)
                deadline = time.monotonic() + ANSWER_SECONDS
                while space.flush_wanted() and time.monotonic() < deadline:
                    time.sleep(0.001)

    def age(self, seconds: float) -> None:
        self.clock.now += seconds


@pytest.fixture
def house(
    tmp_path: Path,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    shelves: Shelves,
) -> Iterator[House]:
    monkeypatch.setattr(admission, "IDLE_SECONDS", 0.005)
    with ExitStack() as stack:
        stack.enter_context(shelves.lent(tmp_path / "store"))
        stack.callback(prepare(tmp_path / "store").close)
        yield House(tmp_path / "store", clock, stack)


def fill(store: LocalStore, size: int = MIB // 4, first: int = 0) -> int:
    """Puts blobs from number `first` on until the store is between the watermark and the brim;
    the number behind the last."""
    number = first
    while store._space.room() > LIMIT * 3 // 100:
        put(store, number, size=size)
        number += 1
    return number


def blob(number: int, size: int = MIB // 4) -> tuple[Digest, bytes]:
    data = number.to_bytes(8, "big") * (size // 8)
    return digests.of(data), data


def put(store: LocalStore, *numbers: int, size: int = MIB // 4) -> None:
    for number in numbers:
        store.put([blob(number, size)])[0].wait(PATIENCE)


def serve(house: House, keeper: Janitor, waiting: Pending[None]) -> None:
    """Has the janitor work until what waits for room has it."""
    deadline = time.monotonic() + PATIENCE
    while not waiting.done and time.monotonic() < deadline:
        house.run(keeper, 0.1)
    waiting.wait(PATIENCE)


def here(store: LocalStore, numbers: range, size: int = MIB // 4) -> list[int]:
    """Without using them."""
    return [n for n in numbers if store._index.contains(blob(n, size)[0].key)]


def evicted(house: House) -> float:
    """Blobs, as counted."""
    sheet = house.metrics.sheet
    return sheet.numbers[sheet.slot(families.EVICTED, ("blob",))]


def files_of(house: House) -> list[str]:
    return sorted(path.name for path in (house.directory / "blobs").rglob("*.*"))


def test_the_oldest_go_until_the_low_watermark(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cas.store")
    store = house.open_store()
    keeper = house.janitor(store)
    half = store._space.room() // MIB * 2
    for number in range(half):
        put(store, number)
        house.age(60)
    store.contains(blob(0)[0])
    house.age(4 * HOUR)
    count = fill(store, first=half)
    store.contains(blob(1)[0])
    house.run(keeper)
    left = here(store, range(count))
    # What was used last is there, and the rest went in the order of its use.
    gone = sorted(set(range(count)) - set(left))
    assert gone == list(range(2, 2 + len(gone)))
    assert LIMIT // 20 <= len(gone) * MIB // 4 <= LIMIT // 8
    assert len(files_of(house)) == len(left)
    assert store._index.totals().file_bytes == len(left) * MIB // 4
    (record,) = [r for r in caplog.records if r.message == "evicted"]
    assert record.__dict__["entries"] == len(gone)
    assert record.__dict__["bytes"] >= len(gone) * MIB // 4
    assert record.__dict__["youngest"] >= 4 * HOUR
    assert evicted(house) == len(gone)
    # It comes to rest.
    house.run(keeper, 10)
    assert here(store, range(count)) == left


def test_what_was_just_asked_for_is_kept_although_nobody_has_noted_it_yet(house: House) -> None:
    store = house.open_store()
    keeper = house.janitor(store)
    count = fill(store)
    house.age(4 * HOUR)
    # Only in the memory of the store's process.
    asked = [blob(number)[0] for number in range(0, count, 2)]
    assert store.missing([digest.key for digest in asked]) == []
    house.run(keeper)
    left = here(store, range(count))
    assert len(left) < count
    assert set(range(0, count, 2)) <= set(left)


def test_young_entries_stay_above_the_watermark_and_go_at_the_brim(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    store = house.open_store()
    keeper = house.janitor(store)
    # Between the watermark and the brim.
    count = fill(store)
    house.run(keeper)
    assert len(here(store, range(count))) == count
    assert not [r for r in caplog.records if "before min_age" in r.message]
    # More wants in: now age does not count, but order does.
    house.age(60)
    serve(house, keeper, store.room(2 * MIB))
    left = here(store, range(count))
    assert left == list(range(count - len(left), count))
    assert 0 < count - len(left) < 30
    (record,) = [r for r in caplog.records if "before min_age" in r.message]
    assert record.levelname == "WARNING"
    assert record.__dict__["youngest"] == pytest.approx(60, abs=60)


def test_a_flood_goes_through_and_stays_below_the_limit(house: House) -> None:
    store = house.open_store()
    keeper = house.janitor(store, min_age=0)
    highest = 0
    for number in range(8 * LIMIT // MIB):
        house.age(60)
        serve(house, keeper, store.room(MIB // 4))
        put(store, number)
        house.run(keeper, 0.1)
        if number % 10 == 0:
            highest = max(highest, disk_bytes(house.directory))
    assert highest <= LIMIT
    assert here(store, range(8 * LIMIT // MIB))


def disk_bytes(directory: Path) -> int:
    paths = [directory, *directory.rglob("*")]
    return sum(path.lstat().st_blocks * 512 for path in paths)


def test_small_entries_make_room_too_and_the_index_stays_bounded(house: House) -> None:
    store = house.open_store()
    keeper = house.janitor(store, min_age=0)
    size = 6000
    number = 0
    for _ in range(60):
        house.age(60)
        fresh = [blob(number + more, size) for more in range(200)]
        number += len(fresh)
        pendings = store.put(fresh)
        house.run(keeper, 0.5)
        for pending in pendings:
            pending.wait(PATIENCE)
    house.run(keeper, 5)
    left = here(store, range(number), size)
    assert 0 < len(left) < number
    assert left == list(range(number - len(left), number))
    totals = store._index.totals()
    assert totals.used_bytes <= 1.5 * totals.live_bytes
    assert disk_bytes(house.directory) <= LIMIT


def test_action_results_without_their_blobs_go(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cas.store")
    store = house.open_store()
    keeper = house.janitor(store)
    count = fill(store)
    action = digests.of(b"action")
    alive = digests.of(b"alive")
    house.age(4 * HOUR)
    put(store, count)
    new = NewAction(b"result", [blob(0)[0].key], expanded=True)
    store.put_action("main", action, new).wait(PATIENCE)
    fine = NewAction(b"result", [blob(count)[0].key], expanded=True)
    store.put_action("main", alive, fine).wait(PATIENCE)
    house.age(120)
    house.run(keeper, 20)
    assert not store._index.contains(blob(0)[0].key)
    assert store._index.totals().entries == len(here(store, range(count + 1))) + 1 + len(FUNCTIONS)
    assert store.action("main", action) is None
    assert store.action("main", alive) is not None
    (record,) = [r for r in caplog.records if "without their blobs" in r.message]
    assert record.__dict__["count"] == 1


def test_abandoned_uploads_go_first_and_living_ones_never(house: House) -> None:
    store = house.open_store()
    keeper = house.janitor(store)
    clock_now = house.clock.now
    uploads = [store.upload(f"up{number}", *halves(number)) for number in range(3)]
    uploads[0].suspend()
    uploads[1].suspend()
    for place, found in enumerate(sorted(staging(house.layout), key=lambda f: f.changed)):
        os.utime(found.path, (clock_now, clock_now + place))
    house.age(janitor.ABANDONED_SECONDS + 10)
    assert len(list(staging(house.layout))) == 3
    # No room: nothing has reached the minimum age, but the uploads are idle.
    count = fill(store)
    serve(house, keeper, store.room(5 * MIB))
    assert store.committed_size("up2") == 2 * MIB
    assert store.committed_size("up0") is None
    assert len(here(store, range(count))) >= count - 20
    uploads[2].discard()


def halves(number: int) -> tuple[Digest, int, bytes]:
    digest, data = blob(1000 + number, 4 * MIB)
    return digest, 0, data[: 2 * MIB]


def test_uploads_expire(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cas.store")
    store = house.open_store()
    keeper = house.janitor(store)
    store.upload("old", *halves(1)).suspend()
    living = store.upload("living", *halves(2))
    copy = house.layout.upload("old") + ".0123456789abcdef"
    Path(copy).write_bytes(b"what a takeover left")
    for found in staging(house.layout):
        os.utime(found.path, (house.clock.now, house.clock.now))
    house.run(keeper, 70)
    assert {f.path for f in staging(house.layout)} >= {house.layout.upload("old")}
    house.age(24 * HOUR)
    house.run(keeper, 130)
    assert [f.path for f in staging(house.layout)] == [house.layout.upload("living")]
    assert not os.path.exists(copy)
    assert [r for r in caplog.records if "nobody went on with" in r.message]
    assert value(house.metrics, families.UPLOADS_EXPIRED) == 2
    living.discard()


class Stop(BaseException):
    """The process is killed here."""


@pytest.mark.parametrize("step", ["before-commit", "after-commit", "remove"])
def test_a_janitor_that_was_killed_leaves_nothing_behind(house: House, step: str) -> None:
    def stop(operation: str, path: str = "") -> None:
        if operation == step and "staging" not in path:
            raise Stop

    store = house.open_store()
    count = fill(store)
    house.age(4 * HOUR)
    with pytest.raises(Stop):
        house.run(house.janitor(store, files_seam=stop, index_seam=stop))
    # What the index names is there.
    there = {name.partition(".")[0] for name in files_of(house)}
    assert {blob(number)[0].hex for number in here(store, range(count))} <= there
    house.run(house.janitor(store), 5)
    left = here(store, range(count))
    assert 0 < len(left) < count
    assert len(files_of(house)) == len(left)
    assert aging.condemned(store._index) == []


def test_a_new_janitor_does_not_believe_one_that_found_nothing_to_free(house: House) -> None:
    store = house.open_store()
    digest = digests.make(SHA256, bytes(32), store._space.room())
    held = store.upload("all the room", digest, 0, b"")
    killed = house.janitor(store)
    waiting = store.room(MIB)
    with pytest.raises(NoSpace, match="no room for"):
        serve(house, killed, waiting)
    assert store._space.hopeless(MIB)
    held.discard()
    # It looks when it is told to, not before.
    house.janitor(store)
    assert not store._space.hopeless(MIB)


def test_what_was_used_since_it_was_chosen_is_not_all_there_is(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    store = house.open_store()
    asked: list[int] = []

    def use_all(phase: str) -> None:
        if phase == "before-remove" and not asked:
            # They are asked for just now, every one of them.
            asked.extend(range(count))
            for number in asked:
                record = store._index.record(blob(number)[0].key)
                assert record is not None
                store._index.uses.store([record.serial], minutes(house.clock()) + 1)

    count = fill(store)
    keeper = house.janitor(store, index_seam=use_all)
    serve(house, keeper, store.room(2 * MIB))
    assert asked
    assert not [r for r in caplog.records if "nothing more can be freed" in r.message]
    assert 0 < len(here(store, range(count))) < count


def test_a_fault_is_logged_and_tried_again(house: House, caplog: pytest.LogCaptureFixture) -> None:
    failing = False

    def fail(phase: str) -> None:
        if failing:
            raise NoSpace("on purpose")

    store = house.open_store()
    keeper = house.janitor(store, index_seam=fail)
    count = fill(store)
    house.age(4 * HOUR)
    failing = True
    house.run(keeper, 3)
    assert [r for r in caplog.records if "cannot go on for now" in r.message]
    assert len(here(store, range(count))) == count
    failing = False
    house.run(keeper, 3)
    assert len(here(store, range(count))) < count


def test_uses_in_the_future_do_not_last_for_ever(house: House) -> None:
    store = house.open_store()
    keeper = house.janitor(store)
    house.age(1000 * HOUR)
    put(store, 0)
    # The clock was wrong, and is set back.
    house.age(-1000 * HOUR)
    fill(store, first=1)
    house.age(HOUR)
    house.run(keeper)
    record = store._index.record(blob(0)[0].key)
    assert record is not None
    assert store._index.uses.load(record.serial) <= minutes(house.clock())


def test_lost_times_are_made_good_at_the_start(house: House) -> None:
    store = house.open_store()
    put(store, 1, 2)
    record = store._index.record(blob(1)[0].key)
    assert record is not None
    assert record.where == FILE
    store._index.uses.clear([record.serial])
    house.run(house.janitor(store))
    assert store._index.uses.load(record.serial) == minutes(house.clock())


def test_transactions_are_as_short_as_promised(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    original = Index.evict

    def count(self: Index, entries: list[object], *rest: object) -> object:
        sizes.append(len(entries))
        return original(self, entries, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Index, "evict", count)
    store = house.open_store()
    keeper = house.janitor(store, min_age=0)
    for first in range(0, 12_000, 400):
        for pending in store.put([blob(first + more, 2000) for more in range(400)]):
            pending.wait(PATIENCE)
    house.age(60)
    need = evict.Demand(6 * MIB, 0)
    usage = keeper._measure()
    for _ in keeper._make_room(usage, need):
        time.sleep(0)
    assert sum(sizes) > 3 * BATCH
    assert max(sizes) <= BATCH
