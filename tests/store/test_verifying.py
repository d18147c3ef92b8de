"""Damage that a read meets: never wrong bytes, and the blob can be sent again."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import closing

import pytest

from cas import digest as digests
from cas.errors import DataLoss, NotFound
from cas.store.layout import Layout
from cas.store.local import open_store
from cas.store.verifying import VerifyingStore
from tests.store.test_fsck import LARGE, OTHER, SMALL, cut_file, indexed, put, read
from tests.store.test_reindex import layout as layout
from tests.store.test_scrub import flip_file, flip_inline, lengthen_file


def test_what_is_right_is_read(layout: Layout) -> None:
    with closing(open_store(layout.root, kind=VerifyingStore)) as store:
        for data in (SMALL, LARGE, OTHER, b""):
            assert read(store, digests.of(data)) == data
        small = digests.of(SMALL)
        assert store.read_small(small) == SMALL
        assert store.read_small_many([small.key]) == {small.key: SMALL}
        with pytest.raises(NotFound):
            store.open(digests.of(b"absent"))


@pytest.mark.parametrize("size", [1000, 20_000], ids=["copied", "lent"])
def test_bad_inline_bytes_are_not_looked_up(layout: Layout, size: int) -> None:
    data = os.urandom(size)
    digest = digests.of(data)
    with closing(open_store(layout.root, kind=VerifyingStore)) as store:
        put(store, data)
        found = store.look_up(digest.key[:33])
        assert found is not None
        assert found[:2] == (digest, data)
        assert store.look_up(digests.of(LARGE).key[:33]) == (digests.of(LARGE), None, None)
        assert store.look_up(digests.of(b"absent").key[:33]) is None
        del found
    with indexed(layout) as index:
        record = index.record(digest.key)
        assert record is not None
        with index.writing() as tables:
            place = record.serial.to_bytes(8, "little")
            tables.txn.put(place, data[:-1] + bytes([data[-1] ^ 1]), db=tables.data)
    with closing(open_store(layout.root, kind=VerifyingStore)) as store:
        assert store.look_up(digest.key[:33]) is None
        assert not store.contains(digest)
        assert store._index.reader_transactions() == []
        put(store, data)
        assert store.look_up(digest.key[:33]) is not None


@pytest.mark.parametrize("damage", [flip_file, lengthen_file, cut_file])
def test_a_bad_file_is_not_found(layout: Layout, damage: Callable[[Layout], None]) -> None:
    damage(layout)
    digest = digests.of(LARGE)
    with closing(open_store(layout.root, kind=VerifyingStore)) as store:
        assert store.contains(digest)
        with closing(store.open(digest)) as blob:
            view = memoryview(bytearray(1000))
            assert blob.read_into(view, 0, wait=False) == -1
            with pytest.raises(NotFound):
                blob.read_into(view, 0)
            assert bytes(view) == bytes(1000)
        assert not store.contains(digest)
        put(store, LARGE)
        assert read(store, digest) == LARGE
        assert len(list(layout.quarantine.iterdir())) == 1


def test_bad_inline_bytes_are_not_found(layout: Layout) -> None:
    digest = digests.of(SMALL)
    for many in (False, True):
        flip_inline(layout)
        with closing(open_store(layout.root, kind=VerifyingStore)) as store:
            if many:
                assert store.read_small_many([digest.key]) == {}
            else:
                assert store.read_small(digest) is None
            assert not store.contains(digest)
            with pytest.raises(NotFound):
                store.open(digest)
            put(store, SMALL)
            assert store.read_small(digest) == SMALL
    flip_inline(layout)
    with closing(open_store(layout.root, kind=VerifyingStore)) as store, pytest.raises(NotFound):
        store.open(digest)


def test_a_file_that_ends_early_is_data_loss_once(layout: Layout) -> None:
    """Without verification too: what a read cannot bring is dropped."""
    cut_file(layout)
    digest = digests.of(LARGE)
    with closing(open_store(layout.root)) as store:
        with pytest.raises(DataLoss, match=rf"blob {digest} is damaged .* ends at byte 1000"):
            read(store, digest)
        with pytest.raises(NotFound):
            store.open(digest)
        put(store, LARGE)
        assert read(store, digest) == LARGE


@pytest.mark.parametrize(
    ("number", "expected", "stays"),
    [(errno.EIO, DataLoss, False), (errno.ENOMEM, OSError, True)],
)
def test_a_disk_that_fails_to_read(
    layout: Layout, number: int, expected: type[Exception], stays: bool
) -> None:
    failing = True

    def seam(operation: str, path: str) -> None:
        if failing and operation == "read":
            raise OSError(number, os.strerror(number))

    digest = digests.of(LARGE)
    with closing(open_store(layout.root, files_seam=seam)) as store:
        with pytest.raises(expected):
            read(store, digest)
        failing = False
        assert store.contains(digest) == stays
        put(store, LARGE)
        assert read(store, digest) == LARGE


def test_a_copy_that_was_written_meanwhile_is_left_alone(layout: Layout) -> None:
    flip_file(layout)
    digest = digests.of(LARGE)
    with closing(open_store(layout.root, kind=VerifyingStore)) as store:
        first = store.open(digest)
        with closing(store.open(digest)) as second, pytest.raises(NotFound):
            second.read_into(memoryview(bytearray(10)), 0)
        put(store, LARGE)
        with closing(first), pytest.raises(NotFound):
            first.read_into(memoryview(bytearray(10)), 0)
        assert read(store, digest) == LARGE
