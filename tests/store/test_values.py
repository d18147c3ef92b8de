"""Values and spools: the parts of the contract for protocols that name no digest."""

from __future__ import annotations

import os

import pytest

from cas import digest as digests
from cas.digest import SHA256, Digest
from cas.errors import DigestMismatch, LimitExceeded
from cas.store.interface import BlobStore, NewValue
from tests.store.test_contract import put, read

SMALL = b"a value"
LARGE = os.urandom(3 << 20)
SIZES = [0, 1, 64 << 10, (64 << 10) + 1, 1 << 20, (1 << 20) + 1, 3_000_001]


def spool(store: BlobStore, data: bytes, *, expected: bytes | None = None) -> Digest:
    opened = store.spool(SHA256, None)
    for at in range(0, len(data), 70_000):
        if opened.append(data[at : at + 70_000]):
            opened.flush()
    assert opened.size == len(data)
    digest, pending = opened.finish(expected)
    pending.wait(30)
    return digest


class TestSpools:
    @pytest.mark.parametrize("size", SIZES)
    def test_what_was_taken_becomes_a_blob(self, store: BlobStore, size: int) -> None:
        data = os.urandom(size)
        digest = spool(store, data)
        assert digest == digests.of(data)
        assert read(store, digest) == data
        assert spool(store, data, expected=digest.key[:33]) == digest
        assert read(store, digest) == data

    @pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
    def test_another_hash_than_expected_is_refused(self, store: BlobStore, data: bytes) -> None:
        other = digests.of(b"other")
        with pytest.raises(DigestMismatch, match=other.hex):
            spool(store, data, expected=other.key[:33])
        assert not store.contains(digests.of(data))
        assert not store.contains(other)

    def test_discarded_bytes_are_gone(self, store: BlobStore) -> None:
        opened = store.spool(SHA256, len(LARGE))
        opened.append(LARGE)
        opened.flush()
        opened.discard()
        opened.discard()
        assert not store.contains(digests.of(LARGE))

    def test_they_count_as_open_uploads(self, store: BlobStore) -> None:
        opened = [store.spool(SHA256, None) for _ in range(8)]
        with pytest.raises(LimitExceeded, match="max_open_uploads"):
            store.spool(SHA256, None)
        opened.pop().discard()
        opened.pop().finish()[1].wait(30)
        opened += [store.spool(SHA256, None) for _ in range(2)]
        for one in opened:
            one.discard()


class TestValues:
    def test_a_small_value_comes_back(self, store: BlobStore) -> None:
        new = NewValue(digests.of(SMALL), SMALL, b"meta", "somebody")
        assert store.value("cache/", "k") is None
        store.put_value("cache/", "k", new).wait(30)
        found = store.value("cache/", "k")
        assert found == (new.digest, SMALL, b"meta", [])
        assert not store.contains(new.digest)

    def test_a_large_one_is_a_blob(self, store: BlobStore) -> None:
        digest = put(store, LARGE)
        store.put_value("cache/", "k", NewValue(digest, None)).wait(30)
        assert store.value("cache/", "k") == (digest, None, b"", [])

    def test_without_its_blob_it_is_not_there(self, store: BlobStore) -> None:
        store.put_value("cache/", "k", NewValue(digests.of(LARGE), None)).wait(30)
        assert store.value("cache/", "k") is None

    def test_an_empty_value_is_one(self, store: BlobStore) -> None:
        empty = digests.empty(SHA256)
        store.put_value("cache/", "k", NewValue(empty, b"")).wait(30)
        assert store.value("cache/", "k") == (empty, b"", b"", [])

    def test_namespaces_and_keys_are_apart(self, store: BlobStore) -> None:
        places = [("a", "b/c"), ("a/b", "c"), ("a", "b"), ("", "ab"), ("a", "")]
        for number, (namespace, key) in enumerate(places):
            data = b"%d" % number
            store.put_value(namespace, key, NewValue(digests.of(data), data)).wait(30)
        for number, (namespace, key) in enumerate(places):
            found = store.value(namespace, key)
            assert found is not None
            assert found.data == b"%d" % number

    def test_long_keys_are_told_apart(self, store: BlobStore) -> None:
        """Longer than LMDB allows, and different at the end only."""
        keys = ["é" * length + end for length in (100, 254, 255, 256, 300, 4000) for end in "xy"]
        for key in keys:
            store.put_value("cache/", key, NewValue(digests.of(key.encode()), key.encode()))
        store.put_value("cache/", "last", NewValue(digests.of(b""), b"")).wait(30)
        for key in keys:
            found = store.value("cache/", key)
            assert found is not None
            assert found.data == key.encode()

    def test_the_last_write_wins_and_a_dropped_one_is_gone(self, store: BlobStore) -> None:
        for data in (b"first", b"second"):
            store.put_value("cache/", "k", NewValue(digests.of(data), data))
        store.drop_value("cache/", "other").wait(30)
        found = store.value("cache/", "k")
        assert found is not None
        assert found.data == b"second"
        store.drop_value("cache/", "k").wait(30)
        assert store.value("cache/", "k") is None
        store.drop_value("cache/", "k").wait(30)

    def test_order_counts_within_one_commit_too(self, store: BlobStore) -> None:
        new = NewValue(digests.of(b"v"), b"v")
        for _ in range(20):
            store.put_value("cache/", "put last", new)
            store.drop_value("cache/", "dropped last")
            pending = [store.drop_value("cache/", "put last")]
            pending.append(store.put_value("cache/", "put last", new))
            pending.append(store.put_value("cache/", "dropped last", new))
            pending.append(store.drop_value("cache/", "dropped last"))
            for one in pending:
                one.wait(30)
            assert store.value("cache/", "put last") is not None
            assert store.value("cache/", "dropped last") is None


def test_a_look_up_needs_no_size(store: BlobStore) -> None:
    for data in (SMALL, LARGE[: 8 << 10], LARGE[: 64 << 10], LARGE):
        digest = put(store, data)
        found = store.look_up(digest.key[:33])
        assert found is not None
        assert found[:2] == (digest, data if data != LARGE else None)
        if found.held is not None:
            found.held.release()
    assert store.look_up(digests.of(b"absent").key[:33]) is None
    assert store.look_up(digests.empty(SHA256).key[:33]) == (digests.empty(SHA256), b"", None)


def test_a_descriptor_has_the_blobs_bytes(store: BlobStore) -> None:
    blob = store.open(put(store, LARGE))
    fd = blob.fileno()
    assert fd is None or os.pread(fd, 1000, 5000) == LARGE[5000:6000]
    blob.close()


def test_a_value_is_kept_with_all_that_it_needs(store: BlobStore) -> None:
    content, other, absent = put(store, b"content"), put(store, LARGE), digests.of(b"absent")
    more = [other.key, content.key, other.key]
    whole = NewValue(content, None, b"meta", references=more)
    store.put_value("n", "k", whole).wait(30)
    assert store.value("n", "k") == (content, None, b"meta", more)
    store.put_value("n", "k", NewValue(content, None, b"", references=[absent.key])).wait(30)
    assert store.value("n", "k") is None
