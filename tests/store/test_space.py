"""Room: who was promised how much of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cas import digest as digests
from cas.errors import NoSpace, StoreClosed
from cas.store import usage
from cas.store.files import Files
from cas.store.layout import Layout
from cas.store.local import LocalStore
from cas.store.space import STALE_SECONDS, Space
from cas.store.usage import SizeLimits, index_cost
from tests.store.conftest import Opener

MIB = 1 << 20
PATIENCE = 40.0

Open = Callable[..., Space]


@pytest.fixture
def open_space(tmp_path: Path) -> Iterator[Open]:
    opened: list[Space] = []

    def open_again(**options: bool) -> Space:
        opened.append(Space(tmp_path / "space", Files(), **options))
        return opened[-1]

    yield open_again
    for space in opened:
        space.close()


def look(space: Space, room: int, most: int = 1 << 40) -> None:
    space.publish(room, most, space.begin_look())


def test_what_is_taken_is_gone_for_all(open_space: Open) -> None:
    one, other = open_space(), open_space()
    look(one, 100)
    one.reserve(60)
    assert [one.room(), other.room()] == [40, 40]
    with pytest.raises(NoSpace, match="no room for 41 bytes: 40 are free"):
        other.reserve(41)
    assert not other.take(41)
    assert other.take(40)
    assert one.room() == 0


def test_what_is_given_back_is_there_again(open_space: Open) -> None:
    space = open_space()
    look(space, 100)
    space.reserve(60)
    space.written(20)
    space.release(40)
    assert space.room() == 80


def test_what_never_fits_says_so(open_space: Open) -> None:
    space = open_space()
    look(space, 100, most=500)
    assert space.hopeless(501)
    assert not space.hopeless(500)
    with pytest.raises(NoSpace, match="501 bytes never fit: at most 500"):
        space.reserve(501)


def test_that_nothing_can_be_freed_is_believed_as_long_as_a_look(
    open_space: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    janitor, worker = open_space(takes=False), open_space()
    look(janitor, 100)
    assert not worker.hopeless(500)
    janitor.set_stuck(True)
    assert worker.hopeless(500)
    janitor.set_stuck(False)
    assert not worker.hopeless(500)
    # A janitor that is killed cannot take it back.
    janitor.set_stuck(True)
    monkeypatch.setattr("cas.store.space.STALE_SECONDS", 0.0)
    assert not worker.hopeless(500)


def test_a_look_counts_what_was_promised_and_not_written(open_space: Open) -> None:
    janitor, worker = open_space(takes=False), open_space()
    look(janitor, 100)
    worker.reserve(60)
    worker.written(25)
    # 25 are on the disk, so there are 75 left, of which 35 are promised.
    look(janitor, 75)
    assert janitor.room() == 40
    worker.written(35)
    assert janitor.room() == 40


def test_what_is_written_during_a_look_is_counted_twice_and_not_never(open_space: Open) -> None:
    janitor, worker = open_space(takes=False), open_space()
    look(janitor, 100)
    before = janitor.begin_look()
    worker.reserve(30)
    worker.written(30)
    # The look saw these 30 already.
    janitor.publish(70, 1 << 40, before)
    assert janitor.room() == 40
    look(janitor, 70)
    assert janitor.room() == 70


def test_a_closed_account_leaves_nothing_promised(open_space: Open) -> None:
    janitor, worker = open_space(takes=False), open_space()
    look(janitor, 100)
    worker.reserve(60)
    worker.want(500)
    worker.close()
    assert janitor.room() == 100
    assert janitor.wanted() == 0
    with pytest.raises(StoreClosed):
        worker.room()
    worker.release(60)
    worker.close()


def test_a_killed_process_leaves_nothing_promised(open_space: Open, tmp_path: Path) -> None:
    janitor = open_space(takes=False)
    look(janitor, 100)
    script = (
        "import sys, time; from pathlib import Path\n"
        "from cas.store.files import Files; from cas.store.space import Space\n"
        "space = Space(Path(sys.argv[1]), Files()); space.reserve(60); space.written(10)\n"
        "space.want(1000); print('ready', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "space")], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert [janitor.room(), janitor.wanted()] == [40, 1000]
        request = janitor.request_flush()
        look(janitor, 90)
        assert [janitor.room(), janitor.wanted()] == [40, 1000]
        assert not janitor.all_flushed(request)
        os.kill(process.pid, signal.SIGKILL)
    # The 10 that it wrote are on the disk, and seen there.
    look(janitor, 90)
    assert [janitor.room(), janitor.wanted()] == [90, 0]
    assert janitor.all_flushed(request)
    # Its slot is used again.
    worker = open_space()
    assert worker.room() == 90


def test_threads_do_not_take_the_same_room(open_space: Open) -> None:
    one, other = open_space(), open_space()
    look(one, 1000)
    taken: list[int] = []

    def take(space: Space) -> None:
        for _ in range(200):
            try:
                space.reserve(7)
            except NoSpace:
                return
            taken.append(7)

    threads = [threading.Thread(target=take, args=(space,)) for space in (one, other) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == 1000 - 1000 % 7
    assert one.room() == 1000 % 7


def test_uses_are_asked_for_and_handed_over(open_space: Open) -> None:
    janitor, worker = open_space(takes=False), open_space()
    assert worker.flush_wanted() == 0
    request = janitor.request_flush()
    assert not janitor.all_flushed(request)
    assert worker.flush_wanted() == request
    worker.flushed(request)
    assert worker.flush_wanted() == 0
    assert janitor.all_flushed(request)
    # One that comes later holds nothing from before.
    assert open_space().flush_wanted() == 0


# --- in the store ------------------------------------------------------------------------


def limited(opener: Opener, size: int) -> LocalStore:
    return opener("none", limits=SizeLimits(max_size=size))


def blob(size: int, seed: int = 0) -> tuple[digests.Digest, bytes]:
    data = seed.to_bytes(8, "big") * (size // 8)
    return digests.of(data), data


def test_a_blob_that_never_fits_is_refused_before_its_first_byte(
    opener: Opener, tmp_path: Path
) -> None:
    store = limited(opener, 32 * MIB)
    digest, data = blob(33 * MIB)
    with pytest.raises(NoSpace, match="never fit"):
        store.upload("a", digest, 0, data[:100])
    with pytest.raises(NoSpace, match="never fit"):
        store.put([(digest, data)])[0].wait(PATIENCE)
    with pytest.raises(NoSpace, match="never fit"):
        store.room(digest.size).wait(PATIENCE)
    assert list((tmp_path / "store/staging").rglob("*/*")) == []
    assert list((tmp_path / "store/blobs").rglob("*.*")) == []


def test_uploads_take_their_room_when_they_begin(opener: Opener) -> None:
    store = limited(opener, 32 * MIB)
    first, _ = blob(20 * MIB)
    second, data = blob(20 * MIB, 1)
    upload = store.upload("a", first, 0, b"")
    with pytest.raises(NoSpace, match="no room for"):
        store.upload("b", second, 0, data[:100])
    assert store.committed_size("b") is None
    assert not store.room(second.size).done
    # What waits for room hears of it.
    waiting = store.room(second.size)
    upload.discard()
    waiting.wait(PATIENCE)
    store.upload("b", second, 0, data).finish().wait(PATIENCE)
    assert store.contains(second)


def test_a_suspended_upload_keeps_what_came_and_gives_back_the_rest(opener: Opener) -> None:
    store = limited(opener, 64 * MIB)
    digest, data = blob(20 * MIB)
    before = store._space.room()
    upload = store.upload("a", digest, 0, data[: 5 * MIB])
    assert store._space.room() == before - 20 * MIB
    assert upload.suspend() == 5 * MIB
    assert store._space.room() == before - 5 * MIB
    upload = store.upload("a", digest, 5 * MIB, data[5 * MIB :])
    upload.finish().wait(PATIENCE)
    assert store._space.room() <= before - 20 * MIB


def test_uploads_are_looked_at_only_where_there_may_be_some(
    opener: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opener()
    walks: list[Layout] = []

    def counted(layout: Layout) -> Iterator[usage.StagedFile]:
        walks.append(layout)
        return staging(layout)

    staging = usage.staging
    monkeypatch.setattr(usage, "staging", counted)
    meter = usage.Meter(Layout(tmp_path / "store"), store._index, store._space, SizeLimits())
    sizes = [meter.measure().used for _ in range(3)]
    assert len(set(sizes)) == len(walks) == 1
    digest, data = blob(20 * MIB)
    upload = store.upload("a", digest, 0, data[: 5 * MIB])
    upload.suspend()
    for walked in (2, 3):
        assert meter.measure().used - sizes[0] >= 5 * MIB
        assert len(walks) == walked
    store.upload("a", digest, 5 * MIB, b"").discard()
    for _ in range(3):
        assert meter.measure().used - sizes[0] < MIB
    # Once to find none.
    assert len(walks) == 4


def test_small_blobs_wait_for_room_and_are_refused_in_the_end(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cas.store.admission.WAIT_SECONDS", 0.3)
    store = limited(opener, 32 * MIB)
    upload = store.upload("a", blob(20 * MIB)[0], 0, b"")
    pendings = []
    for number in range(2000):
        pendings += store.put([blob(16_000, number)])
    outcomes = []
    for pending in pendings:
        try:
            pending.wait(PATIENCE)
            outcomes.append(True)
        except NoSpace:
            outcomes.append(False)
    assert {True, False} == set(outcomes)
    # Reads go on; so do writes, once there is room.
    assert store.read_small(blob(16_000, outcomes.index(True))[0]) is not None
    refused = blob(16_000, outcomes.index(False))
    upload.discard()
    store.put([refused])[0].wait(PATIENCE)


def test_where_no_janitor_looks_the_store_does(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert STALE_SECONDS > 0
    monkeypatch.setattr("cas.store.admission.STALE_SECONDS", 0.0)
    store = limited(opener, 40 * MIB)
    digest, data = blob(25 * MIB)
    # Written and forgotten again and again: what it took stays counted until somebody looks.
    for _ in range(4):
        store.put([(digest, data)])[0].wait(PATIENCE)
        record = store._index.record(digest.key)
        assert record is not None
        store._index.remove([(digest.key, record)])


def test_without_a_limit_the_disk_is_one(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    class Disk:
        f_bavail = 1000
        f_frsize = 4096

    monkeypatch.setattr("os.statvfs", lambda _: Disk)
    store = opener("none")
    with pytest.raises(NoSpace):
        store.upload("a", blob(8 * MIB)[0], 0, b"")
    store.upload("a", blob(2 * MIB)[0], 0, b"").discard()


def test_costs_are_about_what_entries_take() -> None:
    assert index_cost(0, 0) == 0
    assert index_cost(1, 10_000) > 12_288
