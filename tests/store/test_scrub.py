"""The scrub: finds every kind of damage, drops it, keeps its bytes; keeps its pace."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas import digest as digests
from cas.digest import FUNCTIONS
from cas.errors import NotFound
from cas.index.lmdb import Index
from cas.store import scrub
from cas.store.directory import prepare
from cas.store.files import Files
from cas.store.interface import NewAction, NewValue
from cas.store.layout import Layout
from cas.store.local import open_store
from tests.shelves import Shelves
from tests.store.test_fsck import (
    LARGE,
    SMALL,
    blob_file,
    break_action,
    break_record,
    cut_file,
    indexed,
    lose_bytes,
    lose_file,
    opened,
    put,
    read,
    run,
)

HUGE = os.urandom(3 << 20)


@pytest.fixture
def layout(tmp_path: Path, shelves: Shelves) -> Iterator[Layout]:
    with shelves.lent(tmp_path / "store"):
        yield _filled(tmp_path)


def _filled(tmp_path: Path) -> Layout:
    prepare(tmp_path / "store").close()
    layout = Layout(tmp_path / "store")
    with opened(layout) as store:
        for data in (SMALL, LARGE, HUGE):
            put(store, data)
        action = NewAction(b"result", [digests.of(LARGE).key], True)
        store.put_action("main", digests.of(b"action"), action).wait(30)
    return layout


def flip_file(layout: Layout) -> None:
    with blob_file(layout, LARGE).open("r+b") as file:
        file.seek(len(LARGE) // 2)
        file.write(bytes([LARGE[len(LARGE) // 2] ^ 1]))


def lengthen_file(layout: Layout) -> None:
    with blob_file(layout, LARGE).open("ab") as file:
        file.write(b"x")


def flip_inline(layout: Layout) -> None:
    with indexed(layout) as index:
        record = index.record(digests.of(SMALL).key)
        assert record is not None
        with index.writing() as tables:
            place = record.serial.to_bytes(8, "little")
            tables.txn.put(place, b"x" + SMALL[1:], db=tables.data)


def scrubbed(layout: Layout, files: Files | None = None) -> list[str]:
    with indexed(layout) as index:
        pieces = list(scrub.walk(layout, index, files or Files()))
    return [piece.bad for piece in pieces if piece.bad]


def test_all_is_well(layout: Layout) -> None:
    with indexed(layout) as index:
        pieces = list(scrub.walk(layout, index, Files()))
    assert sum(piece.bytes for piece in pieces) == len(SMALL) + len(LARGE) + len(HUGE)
    assert sum(piece.ends for piece in pieces) == 4 + len(FUNCTIONS)
    assert max(piece.bytes for piece in pieces) == 1 << 20
    assert scrubbed(layout) == []


@pytest.mark.parametrize(
    ("damage", "lost", "kept"),
    [
        (flip_file, LARGE, 1),
        (lengthen_file, LARGE, 1),
        (cut_file, LARGE, 1),
        (lose_file, LARGE, 0),
        (break_record, LARGE, 0),
        (flip_inline, SMALL, 1),
        (lose_bytes, SMALL, 0),
    ],
)
def test_what_is_bad_is_dropped_and_kept_aside(
    layout: Layout, damage: Callable[[Layout], None], lost: bytes, kept: int
) -> None:
    damage(layout)
    assert len(scrubbed(layout)) == 1
    assert len(list(layout.quarantine.iterdir())) == kept
    assert scrubbed(layout) == []
    with opened(layout) as store:
        digest = digests.of(lost)
        assert not store.contains(digest)
        with pytest.raises(NotFound):
            store.open(digest)
        for data in {SMALL, LARGE, HUGE} - {lost}:
            assert read(store, digests.of(data)) == data
        put(store, lost)
        assert read(store, digest) == lost
    if damage is not break_record:
        assert not run(layout)[0].found


def test_an_action_that_cannot_be_read_is_dropped(layout: Layout) -> None:
    break_action(layout)
    [bad] = scrubbed(layout)
    assert bad.startswith("action ")
    with opened(layout) as store:
        assert store.action("main", digests.of(b"action")) is None


def test_bytes_that_the_disk_cannot_bring_are_bad(layout: Layout) -> None:
    broken = str(blob_file(layout, LARGE))
    reading = [""]

    def seam(operation: str, path: str) -> None:
        if operation == "open-blob":
            reading[0] = path
        if operation == "read" and reading[0] == broken:
            raise OSError(errno.EIO, "Input/output error")

    [bad] = scrubbed(layout, Files(seam))
    assert "Input/output error" in bad


def test_want_of_descriptors_says_nothing_of_a_blob(layout: Layout) -> None:
    def seam(operation: str, path: str) -> None:
        if operation == "open-blob":
            raise OSError(errno.EMFILE, "Too many open files")

    with pytest.raises(OSError, match="Too many open files"):
        scrubbed(layout, Files(seam))
    assert scrubbed(layout) == []


def test_an_entry_that_changes_meanwhile_is_left_alone(layout: Layout) -> None:
    """Evicted, or evicted and written again, between the look at it and the verdict."""
    digest = digests.of(LARGE)
    with indexed(layout) as index:
        record = index.record(digest.key)
        assert record is not None

        def seam(operation: str, path: str) -> None:
            if operation == "open-blob" and path == layout.blob(digest, record.generation):
                index.remove([(digest.key, record)])
                os.unlink(path)

        assert [p.bad for p in scrub.walk(layout, index, Files(seam)) if p.bad] == []
    assert list(layout.quarantine.iterdir()) == []


class Times:
    """The time of day, which a test moves; and a timer, which its own use moves."""

    def __init__(self) -> None:
        self.now = 1_900_000_000.0
        self.spent = 0.0

    def clock(self) -> float:
        return self.now

    def timer(self) -> float:
        self.spent += 0.001
        return self.now + self.spent


def paced(layout: Layout, index: Index, times: Times) -> scrub.PacedScrub:
    return scrub.PacedScrub(layout, index, Files(), 1000.0, clock=times.clock, timer=times.timer)


def until_round(paces: scrub.PacedScrub, times: Times) -> None:
    """Steps until a round has ended: five entries need a few."""
    for _ in range(20):
        times.now += 1
        if not paces.totals.rounds:
            paces.step()


def fill(layout: Layout, count: int) -> None:
    with opened(layout) as store:
        blobs = [b"%d" % number for number in range(count)]
        for pending in store.put([(digests.of(data), data) for data in blobs]):
            pending.wait(30)


def test_the_pace_is_even_and_outlives_the_process(layout: Layout) -> None:
    fill(layout, 400)
    times = Times()
    with indexed(layout) as index:
        paces = paced(layout, index, times)
        for _ in range(500):
            times.now += 1
            paces.step()
        half = paces.totals.entries
        assert 130 < half < 270
        paces.save()
    with indexed(layout) as index:
        paces = paced(layout, index, times)
        paces.step()
        # It goes on where it was.
        assert paces.totals.entries < 10
        while not paces.totals.rounds:
            times.now += 1
            paces.step()
        assert half + paces.totals.entries == 404 + len(FUNCTIONS)
        assert 995 < times.now - 1_900_000_000.0 < 1010
        entries = paces.totals.entries
        times.now += 500
        for _ in range(50):
            times.now += 1
            paces.step()
        assert 150 < paces.totals.entries - entries < 300


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_a_clock_that_jumps_stops_nothing(layout: Layout, jump: float) -> None:
    times = Times()
    with indexed(layout) as index:
        paces = paced(layout, index, times)
        times.now += jump
        for _ in range(1100):
            times.now += 1
            paces.step()
        assert 1 <= paces.totals.rounds <= 3


def test_a_position_that_cannot_be_read_begins_a_round(layout: Layout) -> None:
    for content in (b"", b"{", b"[]", b'{"started": 1, "after": 7}', b"\xff"):
        layout.scrub.write_bytes(content)
        times = Times()
        with indexed(layout) as index:
            paces = paced(layout, index, times)
            times.now += 2000
            until_round(paces, times)
            assert paces.totals.rounds == 1


def test_a_fault_is_logged_and_waits(layout: Layout, caplog: pytest.LogCaptureFixture) -> None:
    times = Times()
    broken = True

    def seam(operation: str, path: str) -> None:
        if broken and operation == "open-blob":
            raise OSError(errno.EMFILE, "Too many open files")

    with indexed(layout) as index:
        paces = scrub.PacedScrub(
            layout, index, Files(seam), 10.0, clock=times.clock, timer=times.timer
        )
        times.now += 10
        paces.step()
        assert paces.totals.rounds == 0
        assert "the scrub cannot go on for now" in caplog.text
        broken = False
        until_round(paces, times)
        assert paces.totals.rounds == 1
        assert paces.totals.bad == 0


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=2))
def test_positions_ascend_with_keys(hashes: list[bytes]) -> None:
    functions = (digests.SHA256, digests.BLAKE3)
    keys = sorted(digests.make(function, raw, 5).key for raw in hashes for function in functions)
    used = [function.prefix for function in functions]
    places = [scrub.position(key, used) for key in keys]
    assert places == sorted(places)
    assert 0 <= places[0] <= places[-1] < 1
    assert scrub.position(b"\0main\0" + keys[0], used) == 0
    assert scrub.position(b"\xffac/main\0key", used) == 1
    # An empty blob of a function that has no other.
    assert scrub.position(digests.empty(digests.MD5).key, used) == 0.5
    assert scrub.position(keys[0], []) == 1


def test_a_store_without_blobs_has_one_round_in_a_period(tmp_path: Path) -> None:
    prepare(tmp_path / "store").close()
    with closing(open_store(tmp_path / "store")) as store:
        store.put_action("", digests.of(b"action"), NewAction(b"result", [], True)).wait(30)
        store.put_value("ac/", "key", NewValue(digests.of(b"x"), b"x", b"", "")).wait(30)
    times = Times()
    with indexed(Layout(tmp_path / "store")) as index:
        paces = paced(Layout(tmp_path / "store"), index, times)
        for _ in range(2100):
            times.now += 1
            paces.step()
        assert paces.totals.rounds == 2


def test_closing_midway_leaves_no_file_open(layout: Layout) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with indexed(layout) as index, closing(scrub.walk(layout, index, Files())) as pieces:  # type: ignore[type-var]
        for piece in pieces:
            if piece.bytes == 1 << 20:
                break
    assert len(os.listdir("/proc/self/fd")) == before
