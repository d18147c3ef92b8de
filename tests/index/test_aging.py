"""Ages, removal, dead action results and sums, over a real index."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.index import aging, lmdb
from cas.index.changes import Changes, NewAction, NewBlob, on_disk
from cas.index.lmdb import Index
from cas.index.records import FILE, ActionRecord, Record, action_key, pack_action
from cas.index.uses import PAGE, STEP, UseTimes

NOW = 1000


def key(number: int) -> bytes:
    return b"\1" + number.to_bytes(32, "big") + b"\5"


def enter(index: Index, *blobs: NewBlob, minute: int = NOW) -> None:
    index.apply(Changes(minute, blobs=list(blobs)))


def file(number: int, size: int = 5000) -> NewBlob:
    return NewBlob(key(number), None, number, size)


def inline(number: int) -> NewBlob:
    return NewBlob(key(number), b"12345")


def action(number: int, *references: bytes, at: int = 0) -> NewAction:
    packed = pack_action(ActionRecord(at, "", references, True, b"result"))
    return NewAction(action_key("main", b"\1" + number.to_bytes(32, "big")), packed)


def record(index: Index, number: int) -> Record:
    found = index.record(key(number))
    assert found is not None
    return found


def times(index: Index) -> dict[int, int]:
    return {
        first + place: minute
        for first, view in aging.ages(index)
        for place, minute in enumerate(view)
        if minute
    }


def test_writing_is_a_use_and_removal_ends_it(index: Index) -> None:
    enter(index, inline(1), file(2), minute=7)
    enter(index, inline(3), minute=8)
    serials = [record(index, number).serial for number in (1, 2, 3)]
    assert times(index) == dict(zip(serials, (7, 7, 8), strict=True))
    index.remove([(key(2), record(index, 2))])
    assert times(index) == {serials[0]: 7, serials[2]: 8}


def test_a_replaced_action_result_leaves_no_time(index: Index) -> None:
    index.apply(Changes(7, actions=[action(1)]))
    index.apply(Changes(8, actions=[action(1, key(9))]))
    assert list(times(index).values()) == [8]


def test_what_was_used_since_is_not_evicted(index: Index) -> None:
    enter(index, inline(1), file(2), minute=7)
    both = [(key(number), record(index, number)) for number in (1, 2)]
    index.touch([key(1)], 9)
    assert index.evict(both, 8) == both[1:]
    assert index.record(key(1)) is not None
    assert index.record(key(2)) is None
    assert index.evict(both, 9) == both[:1]


def test_a_look_up_that_is_a_use(index: Index) -> None:
    enter(index, inline(1), file(2), inline(3), minute=7)
    assert index.use([key(3), key(4), key(2)], 9) == [key(3), key(2)]
    serials = [record(index, number).serial for number in (1, 2, 3)]
    assert times(index) == dict(zip(serials, (7, 9, 9), strict=True))


def test_a_look_up_finds_what_is_there_where_no_use_can_be_noted(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(index, inline(1), minute=7)
    # What a power loss may leave: the entry, but not the file of times.
    os.truncate(index.path / "uses", 0)
    index.uses.close()
    index.uses = UseTimes(index.path / "uses")

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert index.use([key(1)], 9) == [key(1)]
    assert times(index) == {}


def test_an_entry_written_anew_is_not_the_one_that_was_chosen(index: Index) -> None:
    enter(index, file(1), minute=7)
    old = (key(1), record(index, 1))
    index.remove([old])
    enter(index, file(1), minute=7)
    assert index.evict([old], NOW) == []


def test_files_to_remove_are_known_until_they_are_gone(index: Index) -> None:
    enter(index, file(1), file(2), inline(3), minute=7)
    chosen = [(key(number), record(index, number)) for number in (1, 2, 3)]
    index.evict(chosen[:1] + chosen[2:], 8)
    assert aging.condemned(index) == chosen[:1]
    index.evict(chosen[1:2], 8, done=[chosen[0][1].serial])
    assert aging.condemned(index) == chosen[1:2]
    # `fsck` may take the file in again: then it is no longer to go.
    enter(index, NewBlob(key(2), None, chosen[1][1].generation, 5000))
    assert aging.condemned(index) == []


def test_entries_by_serial(index: Index) -> None:
    enter(index, inline(1), file(2), inline(3))
    serials = [record(index, number).serial for number in (3, 1)]
    assert [found for found, _ in aging.entries(index, serials)] == [key(3), key(1)]


def test_a_time_without_an_entry_is_cleared(index: Index) -> None:
    enter(index, inline(1))
    index.uses.store([500], 3)
    assert aging.entries(index, [500]) == []
    assert set(times(index)) == {record(index, 1).serial}


@settings(derandomize=True, max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9000), st.booleans()), max_size=40))
def test_the_sum_of_files_is_exact(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int, bool]]
) -> None:
    index = Index(tmp_path_factory.mktemp("index"), sync=False)
    kept: dict[int, int] = {}
    for number, size, removes in steps:
        if removes and number in kept:
            index.remove([(key(number), record(index, number))])
            del kept[number]
        elif not removes:
            enter(index, file(number, size), inline(number + 100))
            kept.setdefault(number, size)
    expected = sum(on_disk(size) for size in kept.values())
    assert index.totals().file_bytes == expected
    with index.writing(recount=True):
        pass
    assert index.totals().file_bytes == expected
    index.close()


def test_an_index_without_the_sum_is_summed_up(index: Index) -> None:
    enter(index, file(1, 5000), file(2, 1))
    with index.writing() as tables:
        tables.txn.delete(b"file bytes")
    assert index.totals().file_bytes == 8192 + 4096


def test_an_index_without_files_is_never_summed_up(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take a minute at ten million entries, with everybody else waiting."""
    enter(index, inline(1), inline(2))
    walks: list[object] = []
    monkeypatch.setattr(lmdb, "unpack_record", walks.append)
    assert index.totals().file_bytes == 0
    enter(index, file(3, 5000))
    assert index.totals().file_bytes == 8192
    assert walks == []


def test_live_pages_are_those_in_use(index: Index) -> None:
    enter(index, *[NewBlob(key(number), b"x" * 10_000) for number in range(100)])
    full = index.totals()
    assert 100 * 3 * 4096 <= full.live_bytes <= full.used_bytes
    index.remove([(key(number), record(index, number)) for number in range(100)])
    empty = index.totals()
    assert empty.live_bytes < 10 * 4096
    assert empty.used_bytes >= full.used_bytes


def test_dead_action_results_are_found_page_by_page(index: Index) -> None:
    enter(index, inline(1), file(2))
    actions = [
        action(number, key(1), *([key(999)] if number % 7 == 0 else []), at=number)
        for number in range(3 * aging.ACTIONS_PAGE)
    ]
    index.apply(Changes(NOW, actions=actions))
    dead, after, seen = [], b"", 0
    while True:
        page = aging.dead_actions(index, b"\0", after, written_before=250)
        dead += page.dead
        seen += page.seen
        if page.last is None:
            break
        after = page.last
    assert seen == len(actions)
    assert dead == sorted((a.key, a.packed) for a in actions[:250:7])


def test_lost_times_are_made_good(index: Index) -> None:
    numbers = range(aging.PAGE + 50)
    enter(index, *[inline(number) for number in numbers], minute=7)
    lost = [record(index, number).serial for number in (0, 5, aging.PAGE + 3)]
    index.touch([key(6)], 9)
    index.uses.clear(lost)
    before = times(index)
    after: int | None = -1
    pages = 0
    while after is not None:
        after = aging.mend_times(index, after)
        pages += 1
    assert pages == 2
    assert times(index) == before | dict.fromkeys(lost, 7)


def test_pages_of_dead_serials_become_holes(tmp_path: Path) -> None:
    uses = UseTimes(tmp_path / "uses")
    living = [3, 5 * PAGE + 1, STEP - 1]
    uses.enter(0, STEP, 6)
    uses.clear(sorted(set(range(STEP)) - set(living)))
    full = uses.disk_bytes()
    runs = [run for first, view in uses.chunks() for run in aging.dead_pages(first, view, STEP)]
    assert sum(count for _, count in runs) == STEP - 3 * PAGE
    punched = [uses.punch(*run) for run in runs]
    assert all(punched)
    # A file with holes may need a block or two more to say where they are.
    assert uses.disk_bytes() <= full - 4 * (STEP - 5 * PAGE)
    assert [uses.load(serial) for serial in (*living, 4 * PAGE)] == [6, 6, 6, 0]
    found = {first + at for first, view in uses.chunks() for at, m in enumerate(view) if m}
    assert found == set(living)
    # Growing fills no holes, and neither does clearing what is clear.
    before = uses.disk_bytes()
    uses.clear(range(2 * PAGE, 3 * PAGE))
    assert uses.disk_bytes() == before
    uses.enter(2 * STEP - 5, 5, 8)
    assert uses.disk_bytes() <= before + 4 * (2 * PAGE + STEP)
    assert [uses.load(serial) for serial in (2 * STEP - 5, 2 * STEP - 1)] == [8, 8]
    uses.close()


@settings(derandomize=True, max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 6), st.integers(1, 4 * PAGE), st.integers(0, 9 * PAGE))
def test_dead_pages_are_whole_and_dead(seed: int, start: int, count: int, end: int) -> None:
    dice = random.Random(seed)
    minutes = memoryview(bytearray(4 * count)).cast("I")
    for _ in range(dice.randrange(4)):
        minutes[dice.randrange(count)] = 5
    first = start * PAGE
    covered = set()
    for begin, length in aging.dead_pages(first, minutes, end):
        assert begin % PAGE == length % PAGE == 0
        covered |= set(range(begin, begin + length))
    whole = count // PAGE * PAGE
    expected = {
        first + at + place
        for at in range(0, whole, PAGE)
        if first + at + PAGE <= end and not any(minutes[at : at + PAGE])
        for place in range(PAGE)
    }
    assert covered == expected


def test_a_record_tells_what_it_takes() -> None:
    assert [on_disk(size) for size in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]
    assert Record(FILE, 1, 2, 3, 4).where == FILE
