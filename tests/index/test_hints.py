"""The shortcut past the tree: never wrong, whoever removes what, and never needed."""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas import digest as digests
from cas.index import aging
from cas.index.changes import Changes, NewBlob
from cas.index.hints import (
    FULL,
    LEAST_PLACES,
    LOOK_SECONDS,
    PROBES,
    TAGS_STEP,
    Hints,
    clear,
    tags_of,
)
from cas.index.lmdb import FOLLOWED, Index
from cas.index.records import Record


@pytest.fixture(autouse=True)
def worthwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cas.index.hints.LEAST_ENTRIES", 0)


def key(number: int) -> bytes:
    # Sizes of all lengths.
    return digests.make(digests.SHA256, digests.of(b"%d" % number).hash, 1 << (number % 40)).key


def enter(index: Index, *numbers: int) -> None:
    index.apply(Changes(7, blobs=[NewBlob(key(number), b"") for number in numbers]))


def record(index: Index, number: int) -> Record:
    found = index.record(key(number))
    assert found is not None
    return found


def remove(index: Index, *numbers: int) -> None:
    index.remove([(key(number), record(index, number)) for number in numbers])


def build(index: Index) -> None:
    """What the janitor does."""
    while aging.enter_hints(index):
        pass


def missing(index: Index, *numbers: int) -> list[int]:
    keys = [key(number) for number in numbers]
    found = index.find_missing(keys, 9)
    here = index.present(keys)
    expected = [position for position, one in enumerate(keys) if one not in here]
    assert found is None or found == expected
    return expected


def told(index: Index, *numbers: int) -> str:
    """What the hints alone say of each: here, absent or nothing."""
    with index.reading() as tables:
        end = index._followed(tables.txn)
    said = index.hints.tell([key(number) for number in numbers], end)
    if said is None:
        return "nothing"
    words = dict.fromkeys(said.absent, "absent")
    words |= dict.fromkeys(said.unknown, "?")
    serials = iter(said.serials)
    out = []
    for position, number in enumerate(numbers):
        word = words.get(position, "here")
        if word == "here":
            assert next(serials) == record(index, number).serial
        out.append(word)
    assert next(serials, None) is None
    return " ".join(out)


def test_without_a_table_nothing_is_told(index: Index) -> None:
    enter(index, 1, 2)
    assert told(index, 1, 3) == "nothing"
    assert missing(index, 1, 3, 2) == [1]


def test_a_small_index_needs_no_table(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cas.index.hints.LEAST_ENTRIES", 100)
    enter(index, *range(99))
    build(index)
    assert told(index, 1) == "nothing"
    enter(index, 99)
    build(index)
    assert told(index, 1, 100) == "here absent"


def test_what_was_there_before_and_what_comes_is_told(index: Index) -> None:
    enter(index, 1, 2)
    build(index)
    assert told(index, 1, 3, 2, 1) == "here absent here here"
    enter(index, 3)
    assert told(index, 1, 3, 2, 4) == "here here here absent"
    assert missing(index, 4, 1, 5, 3, 2) == [0, 2]


def test_many_are_told(index: Index) -> None:
    for first in range(0, 6000, 1000):
        enter(index, *range(first, first + 1000))
    build(index)
    every = range(0, 12_000, 7)
    assert missing(index, *every) == [at for at, number in enumerate(every) if number >= 6000]
    words = told(index, *every).split()
    assert words.count("?") < len(words) // 100


def test_a_look_up_follows_a_few_and_the_janitor_many(index: Index) -> None:
    enter(index, 1)
    build(index)
    enter(index, *range(2, 2 + FOLLOWED + 1))
    assert told(index, 1, 2, 0) == "here ? ?"
    assert missing(index, 1, 2, 0) == [2]
    assert aging.enter_hints(index)
    assert not aging.enter_hints(index)
    assert told(index, 1, 2, 0) == "here here absent"


def test_nothing_is_told_of_what_is_being_removed(index: Index) -> None:
    enter(index, *range(100))
    build(index)

    def see(phase: str) -> None:
        if phase == "before-commit":
            assert told(index, 2, 3) == "here ?"

    index._seam = see
    remove(index, 3)
    index._seam = None
    assert missing(index, *range(100)) == [3]
    # There may have been another behind it.
    assert told(index, 3) in ("absent", "?")
    enter(index, 3)
    assert told(index, 3) == "here"


@contextmanager
def failing(index: Index) -> Iterator[None]:
    """What is written in the block fails as it is to be committed."""

    def fail(phase: str) -> None:
        if phase == "before-commit":
            raise KeyboardInterrupt

    index._seam = fail
    with pytest.raises(KeyboardInterrupt):
        yield
    index._seam = None


def test_a_removal_that_fails_costs_the_hint_and_nothing_else(index: Index) -> None:
    enter(index, *range(100))
    build(index)

    with failing(index):
        remove(index, 3)
    assert told(index, 2, 3) == "here ?"
    assert missing(index, *range(101)) == [100]


def test_a_write_that_fails_is_not_told(index: Index) -> None:
    enter(index, 1)
    build(index)

    with failing(index):
        enter(index, 2)
    assert told(index, 1, 2) == "here absent"
    # Its serial is given to another.
    enter(index, 3)
    assert told(index, 1, 2, 3) == "here absent here"


def test_another_hash_or_size_is_another_key(index: Index) -> None:
    enter(index, *range(100))
    build(index)
    altered = []
    for number in range(100):
        whole = key(number)
        at = number % 32 + 1
        altered.append(whole[:at] + bytes((whole[at] ^ 1 << number % 8,)) + whole[at + 1 :])
        altered.append(whole[:33] + bytes((whole[33] ^ 1,)) + whole[34:])
        altered.append(bytes((whole[0] + 1,)) + whole[1:])
    assert index.find_missing(altered, 9) == list(range(300))


def test_what_is_here_is_used(index: Index) -> None:
    enter(index, *range(100))
    build(index)
    found = [record(index, number) for number in range(100)]
    assert missing(index, 3, 777, 4) == [1]
    assert [index.last_use(found[number]) for number in (2, 3, 4)] == [7, 9, 9]


def test_pinned_blobs_are_here(index: Index) -> None:
    index.pin([NewBlob(key(5), b"")])
    enter(index, 1)
    build(index)
    assert missing(index, 1, 5, 2) == [2]
    index._pinned = frozenset()
    index.pin([NewBlob(key(5), b"")])
    assert missing(index, 1, 5, 2) == [2]


def test_keys_that_crowd_one_place(index: Index) -> None:
    base = key(1)
    crowd = [base[:20] + bytes((n, n)) + base[22:] for n in range(PROBES + 2)]
    index.apply(Changes(7, blobs=[NewBlob(one, b"") for one in crowd]))
    build(index)
    assert index.find_missing([*crowd, base], 9) == [len(crowd)]
    told = index.hints.tell([*crowd, base], 0)
    assert told is not None
    assert len(told.serials) == PROBES
    assert told.unknown == [PROBES, PROBES + 1, PROBES + 2]
    gone = index.record(crowd[2])
    assert gone is not None
    index.remove([(crowd[2], gone)])
    assert index.find_missing([*crowd, base], 9) == [2, len(crowd)]
    # Its place is another's now.
    index.apply(Changes(7, blobs=[NewBlob(base, b"")]))
    assert index.find_missing([*crowd, base], 9) == [2]
    told = index.hints.tell([*crowd, base], 0)
    assert told is not None
    assert len(told.serials) == PROBES


def other(index: Index) -> Hints:
    """The hints as another process has them."""
    return Hints(index.path)


def test_processes_share_it(index: Index) -> None:
    enter(index, *range(100))
    build(index)
    theirs, ours = other(index), index.hints
    index.hints = theirs
    assert told(index, 3, 100) == "here absent"
    enter(index, 100)
    remove(index, 3)
    index.hints = ours
    assert told(index, 2, 100) == "here here"
    assert missing(index, *range(101)) == [3]
    theirs.close()


def test_only_one_follows_at_a_time(index: Index) -> None:
    enter(index, 1)
    build(index)
    theirs = other(index)
    assert theirs.behind(10) == 2
    assert theirs._table is not None
    with theirs._table.locked():
        enter(index, 2)
        assert told(index, 1, 2, 3) == "here ? ?"
        assert missing(index, 1, 2, 3) == [2]
    assert told(index, 1, 2, 3) == "here here absent"
    theirs.close()


def test_tags_that_another_process_had_grow_are_seen(index: Index) -> None:
    enter(index, 1)
    build(index)
    theirs = other(index)
    far = 2 * TAGS_STEP
    theirs.enter(far, [key(2)])
    assert theirs.behind(far + 1) == 2
    assert theirs.follow([(far, key(2))], 2, far + 1)
    assert index.hints.tell([key(2)], far + 1) == ([far], [], [])
    index.hints.doubt([far])
    assert theirs.tell([key(2)], far + 1) == ([], [], [0])
    index.hints.bury([far])
    assert theirs.tell([key(2)], far + 1) == ([], [0], [])
    theirs.close()


def test_a_full_table_gives_way_to_a_larger_one(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: now)
    enter(index, 0)
    build(index)
    theirs = other(index)
    assert theirs.behind(2) is None
    for first in range(1, int(FULL * LEAST_PLACES) + 10_000, 10_000):
        enter(index, *range(first, first + 10_000))
        build(index)
    assert (index.path / "hints").stat().st_size > 8 * LEAST_PLACES + 64
    assert not (index.path / "hints.new").exists()
    numbers = range(0, 120_000, 50)
    expected = [at for at, number in enumerate(numbers) if number >= first + 10_000]
    assert missing(index, *numbers) == expected
    # Whoever has the old one yet goes on with it, and sees the other after a while.
    index.hints, ours = theirs, index.hints
    assert missing(index, *numbers) == expected
    assert theirs._table is not None
    old = theirs._table.inode
    now += LOOK_SECONDS
    assert missing(index, *numbers) == expected
    assert theirs._table.inode != old
    index.hints = ours
    theirs.close()


def begin(index: Index) -> None:
    """A new janitor."""
    index.hints.close()
    index.hints = Hints(index.path)
    build(index)


def test_a_server_begins_with_nothing(index: Index) -> None:
    enter(index, *range(50))
    build(index)
    clear(index.path)
    # Whoever ends yet sees it too.
    assert told(index, 1, 2) == "? ?"
    assert missing(index, 1, 99) == [1]
    begin(index)
    assert told(index, *range(50), 99) == "here " * 50 + "absent"


def test_what_a_power_loss_leaves_is_not_believed(index: Index) -> None:
    enter(index, *range(50))
    build(index)
    for name in ("tags", "hints"):
        path = index.path / name
        with path.open("r+b") as file:
            file.write(os.urandom(path.stat().st_size))
    clear(index.path)
    assert missing(index, *range(51)) == [50]
    begin(index)
    assert missing(index, *range(51)) == [50]
    assert told(index, 1, 50) == "here absent"


def test_where_the_disk_is_full_nothing_is_told(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(index, *range(100))

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    build(index)
    assert told(index, 1, 100) == "nothing"
    assert missing(index, *range(101)) == [100]
    index.hints.enter(TAGS_STEP, [key(1)])
    monkeypatch.undo()
    monkeypatch.setattr("cas.index.hints.LEAST_ENTRIES", 0)
    build(index)
    assert told(index, 1, 100) == "here absent"


def test_two_janitors_for_a_moment(index: Index) -> None:
    enter(index, *range(2500))
    assert aging.enter_hints(index)
    ours, index.hints = index.hints, other(index)
    assert aging.enter_hints(index)
    assert aging.enter_hints(index)
    theirs, index.hints = index.hints, ours
    # What it moves into its place is the other's, which has not everything yet.
    build(index)
    assert missing(index, 1, 2499, 2500) == [2]
    index.hints = theirs
    build(index)
    assert told(index, 1, 2499, 2500) == "here here absent"
    index.hints = ours
    assert missing(index, 1, 2499, 2500) == [2]
    theirs.close()


def test_nothing_is_opened_behind_the_end(index: Index) -> None:
    enter(index, 1)
    build(index)
    index.hints.close()
    assert not index.hints.ready()
    index.hints = Hints(index.path)


def test_room_of_dead_serials_is_given_back(index: Index) -> None:
    enter(index, *range(3000))
    build(index)
    before = index.hints.disk_bytes()
    remove(index, *range(2900))
    assert index.hints.punch(1024, 1024)
    assert index.hints.disk_bytes() == before - 8192
    assert missing(index, *range(2899, 3000)) == [0]
    assert missing(index, *range(2900)) == list(range(2900))


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["put", "remove", "ask", "ask elsewhere", "build", "restart", "fail"]),
        st.sets(st.integers(0, 60), min_size=1),
    ),
    max_size=30,
)


@settings(max_examples=100)
@given(OPERATIONS)
def test_it_is_never_wrong(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, set[int]]]
) -> None:
    path = tmp_path_factory.mktemp("index")
    index, theirs = Index(path, sync=False), Hints(path)
    here: set[int] = set()
    for what, numbers in operations:
        asked = sorted(numbers)
        if what == "put":
            enter(index, *asked)
            here |= numbers
        elif what == "remove":
            remove(index, *(numbers & here))
            here -= numbers
        elif what == "build":
            build(index)
        elif what == "restart":
            clear(path)
            if len(numbers) % 2:
                begin(index)
        elif what == "fail":
            with failing(index):
                remove(index, *(numbers & here))
            with failing(index):
                enter(index, *asked)
        else:
            if what == "ask elsewhere":
                index.hints, theirs = theirs, index.hints
            expected = [at for at, number in enumerate(asked) if number not in here]
            assert missing(index, *asked) == expected
    theirs.close()
    index.close()


def test_tags_are_of_61_bits_and_of_all_of_a_key() -> None:
    tags = tags_of([key(number) for number in range(1000)])
    assert len(set(tags)) == 1000
    assert 60 <= max(tags).bit_length() <= 61
