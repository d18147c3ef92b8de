"""What no record names goes, once it is old; nothing else."""

from __future__ import annotations

import logging
import os
import shutil
import time
from pathlib import Path

import pytest

from cas import digest as digests
from cas.metrics import families
from cas.store import janitor, orphans
from cas.store.files import Files
from cas.store.local import LocalStore
from tests.metrics.reading import value
from tests.store.test_janitor import House, blob, files_of, house, put

__all__ = ["house"]

DAY = orphans.UNTOUCHED_SECONDS


def orphan(house: House, store: LocalStore, number: int) -> Path:
    """A second copy of what is there, as an upload leaves it whose process is killed before
    its commit."""
    digest = blob(number)[0]
    record = store._index.record(digest.key)
    assert record is not None
    copy = house.layout.blob(digest, record.generation ^ 1)
    shutil.copy(house.layout.blob(digest, record.generation), copy)
    return Path(copy)


def test_old_orphans_go_and_the_blobs_stay(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cas.store")
    store = house.open_store()
    put(store, 1, 2)
    copy = orphan(house, store, 1)
    lost = blob(3)[0]
    without_record = Path(house.layout.blob(lost, 7))
    without_record.write_bytes(blob(3)[1])
    keeper = house.janitor(store)
    house.clock.now = time.time() + DAY - 3600
    house.now += janitor.ORPHANS_FIRST
    house.run(keeper, 5)
    assert copy.exists()
    assert without_record.exists()

    house.clock.now = time.time() + DAY + 3600
    house.now += janitor.ORPHANS_AGAIN
    house.run(keeper, 5)
    assert not copy.exists()
    assert not without_record.exists()
    assert len(files_of(house)) == 2
    for number in (1, 2):
        digest, data = blob(number)
        found = store.open(digest)
        into = bytearray(len(data))
        assert found.read_into(memoryview(into), 0) == len(data)
        found.close()
        assert into == data
    assert value(house.metrics, families.ORPHANS) == 2
    [said] = [r for r in caplog.records if "files of no blob" in r.message]
    assert said.__dict__["files"] == 2


def test_what_is_no_blobs_file_is_let_be(house: House) -> None:
    store = house.open_store()
    digest, data = blob(1)
    shard = Path(house.layout.shard(digest))
    foreign = [shard / "notes.txt", shard / f"{digest.hex}.xyz", shard / "ab.00000001"]
    for path in foreign:
        path.write_bytes(data)
    removed = sum(map(len, orphans.sweep(house.layout, store._index, Files(), lambda: 2e11)))
    assert removed == 0
    assert all(path.exists() for path in foreign)


def test_a_file_of_another_size_than_its_blob_is_still_the_blobs(house: House) -> None:
    """fsck and scrub judge it, and tell somebody."""
    store = house.open_store()
    put(store, 1)
    [name] = files_of(house)
    path = Path(house.layout.shard(blob(1)[0])) / name
    os.truncate(path, 100)
    removed = sum(map(len, orphans.sweep(house.layout, store._index, Files(), lambda: 2e11)))
    assert removed == 0
    assert path.exists()


def test_many_files_are_looked_up_in_pieces(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphans, "BATCH", 2)
    store = house.open_store()
    shard = Path(house.layout.shard(digests.of(b"x")))
    for number in range(5):
        hash_hex = shard.name + f"{number:062x}"
        (shard / f"{hash_hex}.00000001").write_bytes(b"x")
    pieces = list(orphans.sweep(house.layout, store._index, Files(), lambda: 2e11))
    assert [len(piece) for piece in pieces] == [2, 2, 1]
    assert list(shard.iterdir()) == []
