"""What nobody waits for is committed with what somebody waits for, or soon."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cas import digest as digests
from cas.store import later
from cas.store.directory import prepare
from cas.store.interface import NewAction
from cas.store.later import MOST, Later
from cas.store.local import LocalStore, open_store
from cas.store.pending import Pending
from tests.store.conftest import Opener, found

PATIENCE = 40.0
ACTION = digests.of(b"action")


def fetch(store: LocalStore, *contents: bytes) -> list[Pending[None]]:
    return [store.put([(digests.of(data), data)], fetched=True)[0] for data in contents]


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is committed for its age."""
    monkeypatch.setattr(later, "SECONDS", 3600.0)


class TestLater:
    def test_the_first_and_the_last_that_fits_change_the_deadline(self) -> None:
        waits: Later[int] = Later()
        assert waits.deadline == float("inf")
        told = [waits.add(number) for number in range(MOST + 2)]
        assert [number for number, is_told in enumerate(told) if is_told] == [0, MOST - 1]
        assert waits.due(0.0)
        assert waits.take() == list(range(MOST + 2))
        assert waits.deadline == float("inf")
        assert waits.take() == []

    def test_one_is_due_when_its_time_has_passed(self) -> None:
        waits: Later[str] = Later()
        waits.add("one")
        first = waits.deadline
        waits.add("another")
        assert waits.deadline == first
        assert not waits.due(first - 0.001)
        assert waits.due(first)


class TestCommits:
    def test_one_alone_is_committed_soon(self, opener: Opener) -> None:
        for pending in fetch(opener(), b"small", os.urandom(100_000)):
            pending.wait(PATIENCE)

    @pytest.mark.usefixtures("never")
    def test_what_somebody_waits_for_takes_them_along(self, opener: Opener) -> None:
        store = opener()
        contents = [b"small", os.urandom(100_000)]
        pendings = fetch(store, *contents)
        store.put([(digests.of(b"urgent"), b"urgent")])[0].wait(PATIENCE)
        assert all(pending.done for pending in pendings)
        assert all(store.contains(digests.of(data)) for data in contents)

    @pytest.mark.usefixtures("never")
    def test_so_many_do_not_wait(self, opener: Opener) -> None:
        store = opener()
        for pending in fetch(store, *[b"%d" % number for number in range(MOST)]):
            pending.wait(PATIENCE)

    @pytest.mark.usefixtures("never")
    def test_what_a_client_writes_meanwhile_stays(self, opener: Opener) -> None:
        store = opener()
        came = store.put_action("main", ACTION, NewAction(b"old", [], True), fetched=True)
        store.put_action("main", ACTION, NewAction(b"new", [], True)).wait(PATIENCE)
        came.wait(PATIENCE)
        assert found(store, "main", ACTION).result == b"new"

    @pytest.mark.usefixtures("never")
    def test_a_store_that_closes_keeps_them(self, opener: Opener) -> None:
        store = opener()
        pendings = fetch(store, b"small", b"other")
        store.close()
        assert all(pending.done for pending in pendings)
        again = opener()
        assert again.contains(digests.of(b"small"))
        assert again.contains(digests.of(b"other"))

    def test_each_hears_of_a_commit_that_fails(self, tmp_path: Path) -> None:
        broken = False

        def fails(point: str) -> None:
            if broken and point == "before-commit":
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        prepare(tmp_path / "store").close()
        store = open_store(tmp_path / "store", index_seam=fails)
        broken = True
        try:
            for pending in fetch(store, b"small", b"other"):
                with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                    pending.wait(PATIENCE)
        finally:
            broken = False
            store.close()
