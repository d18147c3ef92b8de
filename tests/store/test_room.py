"""Writes that find no room at first: told of it, too late for it, tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from cas import digest as digests
from cas.digest import SHA256, Digest
from cas.errors import DigestMismatch, LimitExceeded, NoRoomYet, NoSpace
from cas.store.admission import Admission
from cas.store.commit import Work
from cas.store.interface import Spool, Upload
from cas.store.layout import Layout
from cas.store.local import LocalStore
from cas.store.memory import MemoryStore
from cas.store.pending import Pending, failed, resolved
from cas.store.room import in_room, in_room_blocking, short_of
from cas.store.usage import Meter, SizeLimits
from tests.store.conftest import Opener, gathering

MIB = 1 << 20
PATIENCE = 40.0


async def brought(pending: Pending[None]) -> None:
    assert pending.done
    pending.result()


class Promising(MemoryStore):
    """Says that there is room, again and again, `promises` times."""

    def __init__(self, promises: int) -> None:
        super().__init__()
        self.promises = promises
        self.asked: list[tuple[int, bool]] = []

    def room(self, size: int, /, *, waited: float = 0.0) -> Pending[None]:
        self.asked.append((size, waited > 0))
        if len(self.asked) > self.promises:
            return failed(NoSpace("waited long enough"))
        return resolved(None)


Run = Callable[[MemoryStore, int, Callable[[], str]], str]


def awaited(store: MemoryStore, size: int, write: Callable[[], str]) -> str:
    async def again() -> str:
        return write()

    return asyncio.run(in_room(store, brought, size, again))


@pytest.fixture(params=[awaited, in_room_blocking], ids=["awaited", "blocking"])
def run(request: pytest.FixtureRequest) -> Run:
    chosen: Run = request.param
    return chosen


def slower_than_others(times: int) -> Callable[[], str]:
    left = [NoRoomYet("others were quicker", 70)] * times

    def write() -> str:
        if left:
            raise left.pop()
        return "written"

    return write


def test_a_write_waits_on_however_often_others_are_quicker(run: Run) -> None:
    store = Promising(100)
    assert run(store, 100, slower_than_others(20)) == "written"
    # For what it lacks then, and with its wait so far.
    assert store.asked == [(100, False)] + [(70, True)] * 20


def test_the_store_says_when_it_was_long_enough(run: Run) -> None:
    with pytest.raises(NoSpace, match="waited long enough"):
        run(Promising(5), 100, slower_than_others(20))
    with pytest.raises(NoSpace, match="waited long enough"):
        run(Promising(0), 100, slower_than_others(0))


def test_what_begins_with_an_unknown_size_asks_for_nothing(run: Run) -> None:
    store = Promising(0)
    assert run(store, 0, slower_than_others(0)) == "written"
    assert store.asked == []


def test_only_a_want_of_room_is_told_from_what_ended() -> None:
    assert short_of(failed(NoRoomYet("none yet", 5))) == 5
    for pending in (failed(NoSpace("never")), failed(DigestMismatch("bad")), resolved(None)):
        assert short_of(pending) == 0
    assert short_of(Pending()) == 0


# --- in a store that is full until the test lets go ------------------------------------------


def limited(opener: Opener, **options: object) -> LocalStore:
    return opener("none", limits=SizeLimits(max_size=32 * MIB), **options)


def blob(size: int, seed: int = 0) -> tuple[Digest, bytes]:
    data = seed.to_bytes(8, "big") * (size // 8)
    return digests.of(data), data


def hold(store: LocalStore, left: int = 0) -> Upload:
    """An upload that has all the room there is, but for `left` bytes."""
    digest = digests.make(SHA256, bytes(32), store._space.room() - left)
    return store.upload("all of it", digest, 0, b"")


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no load makes a wait end."""
    monkeypatch.setattr("cas.store.admission.WAIT_SECONDS", 2 * PATIENCE)


def test_of_those_that_wait_for_the_same_room_one_is_told(opener: Opener, tmp_path: Path) -> None:
    store = limited(opener)
    limits = SizeLimits(max_size=32 * MIB)
    meter = Meter(Layout(tmp_path / "store"), store._index, store._space, limits)
    admission = Admission(store._space, meter)
    works = [Work(Pending(), room=size) for size in (20 * MIB, 20 * MIB, 1)]
    assert admission.admit(works) == []
    assert [work.pending.done for work in works] == [True, False, True]
    assert admission.crowded
    # The first may have had other plans.
    admission.admit([])
    assert works[1].pending.done
    assert not admission.crowded


def test_who_has_waited_too_long_is_refused_although_there_is_room(opener: Opener) -> None:
    store = limited(opener)
    with pytest.raises(NoSpace, match="no room for 100 bytes"):
        store.room(100, waited=3 * PATIENCE).wait(PATIENCE)
    store.room(100, waited=0.1).wait(PATIENCE)


def test_what_was_gathered_can_be_suspended_again(opener: Opener) -> None:
    store = limited(opener, max_open_uploads=2)
    digest, data = blob(8000)
    upload = gathering(store, "u", digest)
    upload.append(data[:3000])
    held = hold(store)
    for _ in range(3):
        with pytest.raises(NoRoomYet) as caught:
            upload.suspend(durable=True)
        assert caught.value.size == 8000
    assert upload.offset == 3000
    # It is still one of two.
    with pytest.raises(LimitExceeded, match="max_open_uploads"):
        gathering(store, "another", digest)
    held.discard()
    assert upload.suspend(durable=True) == 3000
    store.upload("u", digest, 3000, data[3000:]).finish().wait(PATIENCE)
    assert store.read_small(digest) == data
    # Nor is one counted that went without.
    for _ in range(3):
        upload = gathering(store, "u", digests.of(b"another"))
        upload.append(b"an")
        held = hold(store)
        with pytest.raises(NoRoomYet):
            upload.flush()
        upload.discard()
        held.discard()


def test_what_was_gathered_can_be_finished_again(opener: Opener) -> None:
    store = limited(opener, inline_threshold=1000)
    digest, data = blob(8000)
    upload = gathering(store, "u", digest)
    upload.append(data)
    held = hold(store)
    for _ in range(3):
        with pytest.raises(NoRoomYet) as caught:
            upload.finish()
        assert caught.value.size == 8000
    held.discard()
    upload.finish().wait(PATIENCE)
    assert store.contains(digest)


def finishes_once_there_is_room(store: LocalStore, spool: Spool, digest: Digest) -> None:
    held = hold(store)
    for _ in range(3):
        with pytest.raises(NoRoomYet):
            spool.finish()
    held.discard()
    made, pending = spool.finish()
    pending.wait(PATIENCE)
    assert made == digest
    assert store.contains(digest)


def test_a_spool_goes_on_once_there_is_room(opener: Opener) -> None:
    store = limited(opener)
    digest, data = blob(3 * MIB)
    spool = store.spool(SHA256, None)
    held = hold(store)
    assert spool.append(data[: 2 * MIB])
    for _ in range(3):
        with pytest.raises(NoRoomYet) as caught:
            spool.flush()
        assert caught.value.size == 2 * MIB
    held.discard()
    spool.flush()
    spool.append(data[2 * MIB :])
    finishes_once_there_is_room(store, spool, digest)


def test_a_spool_that_was_never_flushed_goes_on_too(opener: Opener) -> None:
    store = limited(opener)
    digest, data = blob(MIB // 4)
    spool = store.spool(SHA256, len(data))
    spool.append(data)
    finishes_once_there_is_room(store, spool, digest)
