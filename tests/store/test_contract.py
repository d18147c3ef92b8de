"""The contract of `cas.store.interface`, held against every store."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

import pytest

from cas import digest as digests
from cas.digest import Digest
from cas.errors import (
    DigestMismatch,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    StoreClosed,
    UploadSuperseded,
)
from cas.store.interface import BlobStore, NewAction
from tests.store.conftest import Clock, begin, found, gathering

SMALL = b"small" * 10
LARGE = os.urandom(1 << 19).hex().encode()  # shrinks
gathered = pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
SIZES = [1, 100, 64 << 10, (64 << 10) + 1, 300_000, 1 << 20]


def put(store: BlobStore, data: bytes) -> Digest:
    digest = digests.of(data)
    [pending] = store.put([(digest, data)])
    pending.wait(30)
    return digest


def read(store: BlobStore, digest: Digest, chunk: int = 100_000) -> bytes:
    blob = store.open(digest)
    try:
        view = memoryview(bytearray(chunk))
        out = b""
        while count := blob.read_into(view, len(out)):
            out += bytes(view[:count])
        assert blob.size == len(out)
        return out
    finally:
        blob.close()


class TestBlobs:
    @pytest.mark.parametrize("size", SIZES)
    def test_a_blob_comes_back(self, store: BlobStore, size: int) -> None:
        data = os.urandom(size).hex().encode()[:size]
        digest = put(store, data)
        assert store.contains(digest)
        assert read(store, digest) == data
        small = store.read_small(digest)
        # What the index has as zstd is not read so.
        as_it_is = size <= store.inline_threshold and store.open(digest).packed() is None
        assert small == (data if as_it_is else None)

    def test_an_absent_blob_is_not_found(self, store: BlobStore) -> None:
        digest = digests.of(b"never seen")
        assert not store.contains(digest)
        assert store.read_small(digest) is None
        assert store.read_small_many([digest.key]) == {}
        with pytest.raises(NotFound, match=digest.hex):
            store.open(digest)

    def test_the_empty_blob_is_always_here(self, store: BlobStore) -> None:
        for function in digests.FUNCTIONS:
            empty = digests.empty(function)
            assert store.contains(empty)
            assert store.missing([empty.key]) == []
            assert read(store, empty) == b""
            assert store.read_small(empty) == b""

    @pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
    def test_another_size_is_another_digest(self, store: BlobStore, data: bytes) -> None:
        digest = put(store, data)
        other = digests.make(digest.function, digest.hash, digest.size + 1)
        assert not store.contains(other)
        assert store.missing([other.key, digest.key]) == [0]
        with pytest.raises(NotFound):
            store.open(other)

    @pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
    def test_wrong_bytes_are_refused_and_never_visible(self, store: BlobStore, data: bytes) -> None:
        digest = digests.of(data)
        wrong = bytes([data[0] ^ 1]) + data[1:]
        for bad in (wrong, data[:-1], data + b"x"):
            [pending] = store.put([(digest, bad)])
            with pytest.raises(DigestMismatch, match=digest.hex):
                pending.wait(30)
            assert not store.contains(digest)

    def test_a_batch_fails_blob_by_blob(self, store: BlobStore) -> None:
        good, large, bad = digests.of(SMALL), digests.of(LARGE), digests.of(b"other")
        pendings = store.put([(good, SMALL), (bad, SMALL), (large, LARGE)])
        pendings[0].wait(30)
        pendings[2].wait(30)
        with pytest.raises(DigestMismatch):
            pendings[1].wait(30)
        assert store.missing([good.key, bad.key, large.key]) == [1]

    @pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
    def test_writing_again_changes_nothing(self, store: BlobStore, data: bytes) -> None:
        digest = put(store, data)
        assert put(store, data) == digest
        assert read(store, digest) == data

    def test_missing_keeps_order_and_duplicates(self, store: BlobStore) -> None:
        here, absent = put(store, SMALL), digests.of(b"absent")
        assert store.missing([]) == []
        asked = [absent.key, here.key, absent.key, here.key]
        assert store.missing(asked) == [0, 2]

    def test_find_missing_says_the_same_each_time(self, store: BlobStore) -> None:
        here = [put(store, b"here %d" % i).key for i in range(100)]
        absent = [digests.of(b"absent %d" % i).key for i in range(100)]
        mixed = [key for pair in zip(here, absent, strict=True) for key in pair]
        for _ in range(3):
            assert store.find_missing([]) == []
            assert store.find_missing(here) == []
            assert store.find_missing(absent) == list(range(100))
            assert store.find_missing(mixed) == list(range(1, 200, 2))
            assert store.find_missing(here + absent) == list(range(100, 200))
            assert store.find_missing([absent[0], here[0], absent[0]]) == [0, 2]

    def test_present_gives_the_keys_that_are_here(self, store: BlobStore) -> None:
        small, large = put(store, SMALL), put(store, LARGE)
        absent = digests.of(b"absent")
        asked = [absent.key, small.key, large.key, small.key]
        assert store.present(asked) == {small.key, large.key}
        assert store.present([]) == set()

    def test_read_small_many_gives_what_is_inline(self, store: BlobStore) -> None:
        small, large = put(store, SMALL), put(store, LARGE)
        absent = digests.of(b"absent")
        found = store.read_small_many([small.key, large.key, absent.key])
        assert found == {small.key: SMALL}

    def test_find_needs_no_size(self, store: BlobStore) -> None:
        digest = put(store, SMALL)
        assert store.find(digest.key[:33]) == digest
        assert store.find(digests.of(b"absent").key[:33]) is None

    def test_part_of_a_blob(self, store: BlobStore) -> None:
        digest = put(store, LARGE)
        blob = store.open(digest)
        view = memoryview(bytearray(1000))
        assert blob.read_into(view, 5000) == 1000
        assert bytes(view) == LARGE[5000:6000]
        assert blob.read_into(view, len(LARGE) - 10) == 10
        assert blob.read_into(view, len(LARGE)) == 0
        count = blob.read_into(view, 5000, wait=False)
        assert count == -1 or bytes(view[:count]) == LARGE[5000 : 5000 + count]
        blob.close()

    def test_concurrent_writes_of_one_blob_all_succeed(self, store: BlobStore) -> None:
        digest = digests.of(LARGE)
        pendings = [store.put([(digest, LARGE)])[0] for _ in range(8)]
        for pending in pendings:
            pending.wait(30)
        assert read(store, digest) == LARGE


class TestUploads:
    def upload(self, store: BlobStore, data: bytes, name: str = "uploads/1/blobs") -> Digest:
        digest = digests.of(data)
        upload = begin(store, name, digest)
        for at in range(upload.offset, len(data), 100_000):
            if upload.append(data[at : at + 100_000]):
                upload.flush()
        upload.finish().wait(30)
        return digest

    @pytest.mark.parametrize("size", SIZES)
    def test_an_upload_in_pieces_becomes_a_blob(self, store: BlobStore, size: int) -> None:
        data = os.urandom(size).hex().encode()[:size]
        digest = self.upload(store, data)
        assert read(store, digest) == data
        assert store.committed_size("uploads/1/blobs") is None
        assert not store.upload_exists("uploads/1/blobs")

    def test_nothing_is_visible_before_finish(self, store: BlobStore) -> None:
        digest = digests.of(LARGE)
        upload = begin(store, "u", digest)
        upload.append(LARGE)
        upload.flush()
        assert not store.contains(digest)
        assert store.committed_size("u") == len(LARGE)
        upload.finish().wait(30)
        assert store.contains(digest)

    def test_what_was_flushed_is_committed(self, store: BlobStore) -> None:
        upload = begin(store, "u", digests.of(LARGE))
        assert store.committed_size("u") == 0
        assert store.upload_exists("u")
        upload.append(LARGE[:1000])
        upload.flush()
        assert store.committed_size("u") == 1000
        assert upload.suspend(durable=True) == 1000
        assert store.committed_size("u") == 1000
        assert store.committed_size("other") is None

    def test_a_suspended_upload_resumes_at_its_size(self, store: BlobStore) -> None:
        digest = digests.of(LARGE)
        for end in (10, 10, 500_000, 900_000):
            upload = begin(store, "u", digest)
            upload.append(LARGE[upload.offset : end])
            assert upload.suspend() == end
        upload = begin(store, "u", digest)
        assert upload.offset == 900_000
        upload.append(LARGE[900_000:])
        upload.finish().wait(30)
        assert read(store, digest) == LARGE

    def test_a_mismatch_discards_the_upload(self, store: BlobStore) -> None:
        digest = digests.of(LARGE)
        for bad in (b"x" + LARGE[1:], LARGE[:-1]):
            upload = begin(store, "u", digest)
            assert upload.offset == 0
            upload.append(bad)
            with pytest.raises(DigestMismatch, match=digest.hex):
                upload.finish()
            assert not store.contains(digest)
            assert store.committed_size("u") is None

    @gathered
    def test_a_blob_is_gathered_in_memory(self, store: BlobStore, content: bytes) -> None:
        digest = digests.of(content)
        upload = gathering(store, "u", digest)
        step = len(content) // 8 + 1
        for at in range(0, len(content), step):
            assert upload.offset == at
            if upload.append(content[at : at + step]):
                upload.flush()
        upload.finish().wait(30)
        upload.discard()
        assert read(store, digest) == content
        assert store.read_small(digest) == (SMALL if content is SMALL else None)
        assert not store.upload_exists("u")

    @gathered
    def test_what_was_gathered_is_kept_when_the_stream_breaks_off(
        self, store: BlobStore, content: bytes
    ) -> None:
        digest = digests.of(content)
        upload = gathering(store, "u", digest)
        upload.append(content[:5])
        upload.append(content[5:20])
        assert upload.suspend(durable=True) == 20
        assert upload.suspend() == 20
        assert store.committed_size("u") == 20
        again = store.upload("u", digest, 20, content[20:])
        again.finish().wait(30)
        assert read(store, digest) == content
        assert store.read_small(digest) == (SMALL if content is SMALL else None)

    @gathered
    def test_what_is_gathered_can_be_flushed_before_its_end(
        self, store: BlobStore, content: bytes
    ) -> None:
        digest = digests.of(content)
        upload = gathering(store, "u", digest)
        upload.append(content[:5])
        upload.flush()
        assert store.committed_size("u") == 5
        if upload.append(content[5:]):
            upload.flush()
        assert upload.offset == len(content)
        upload.finish().wait(30)
        assert read(store, digest) == content
        assert store.read_small(digest) == (SMALL if content is SMALL else None)
        assert store.committed_size("u") is None

    @gathered
    def test_what_was_gathered_is_verified(self, store: BlobStore, content: bytes) -> None:
        digest = digests.of(content)
        upload = gathering(store, "u", digest)
        upload.append(b"x")
        with pytest.raises(InvalidArgument, match="bytes were sent"):
            upload.append(content)
        upload.append(content[1:])
        with pytest.raises(DigestMismatch):
            upload.finish()
        upload.suspend()
        assert not store.upload_exists("u")
        assert not store.contains(digest)

    def test_a_small_upload_that_was_resumed_is_verified_too(self, store: BlobStore) -> None:
        digest = digests.of(SMALL)
        upload = begin(store, "u", digest)
        upload.append(b"wrong" + SMALL[5:20])
        upload.suspend()
        upload = begin(store, "u", digest)
        upload.append(SMALL[20:])
        with pytest.raises(DigestMismatch):
            upload.finish()
        assert not store.contains(digest)

    def test_more_bytes_than_the_size_are_refused_at_once(self, store: BlobStore) -> None:
        digest = digests.of(SMALL)
        upload = begin(store, "u", digest)
        upload.append(SMALL[:-1])
        with pytest.raises(InvalidArgument, match=str(len(SMALL) + 1)):
            upload.append(b"xy")
        upload.append(SMALL[-1:])
        upload.finish().wait(30)
        assert store.contains(digest)

    def test_discard_forgets_the_bytes(self, store: BlobStore) -> None:
        upload = begin(store, "u", digests.of(LARGE))
        upload.append(LARGE[:1000])
        upload.flush()
        upload.discard()
        upload.discard()
        assert store.committed_size("u") is None
        assert begin(store, "u", digests.of(LARGE)).offset == 0

    def test_the_later_stream_wins(self, store: BlobStore) -> None:
        digest = digests.of(LARGE)
        first = begin(store, "u", digest)
        first.append(LARGE[:1000])
        first.flush()
        second = begin(store, "u", digest)
        assert second.offset == 1000
        first.append(b"y" * 5000)
        with pytest.raises(UploadSuperseded):
            first.flush()
        assert store.committed_size("u") == 1000
        second.append(LARGE[1000:])
        second.finish().wait(30)
        with pytest.raises(UploadSuperseded):
            first.suspend()
        first.suspend()
        assert read(store, digest) == LARGE

    def test_streams_that_fight_over_a_name_get_on(self, store: BlobStore) -> None:
        """Each brings its own first bytes, however soon the next one comes."""
        digest = digests.of(LARGE)
        uploads = []
        # The first stream's bytes may wait in memory, and be lost to the second one.
        for _ in range(5):
            at = store.committed_size("u") or 0
            uploads.append(store.upload("u", digest, at, LARGE[at : at + (1 << 18)]))
        assert uploads[-1].offset == len(LARGE)
        uploads[-1].finish().wait(30)
        assert read(store, digest) == LARGE

    def test_a_stream_at_the_wrong_offset_takes_over_nothing(self, store: BlobStore) -> None:
        digest = digests.of(LARGE)
        with pytest.raises(InvalidArgument, match="1000, expected the committed size 0"):
            store.upload("u", digest, 1000, LARGE[1000:2000])
        assert store.committed_size("u") is None
        first = store.upload("u", digest, 0, LARGE[:1000])
        first.flush()
        for at in (0, 999, 1001):
            with pytest.raises(InvalidArgument, match=f"{at}, expected the committed size 1000"):
                store.upload("u", digest, at, b"x")
        with pytest.raises(InvalidArgument, match=f"{len(LARGE) + 1} bytes"):
            store.upload("u", digest, 1000, LARGE[999:])
        first.append(LARGE[1000:2000])
        first.suspend()
        with pytest.raises(InvalidArgument, match="0, expected the committed size 2000"):
            store.upload("u", digest, 0, b"x")
        last = store.upload("u", digest, 2000, LARGE[2000:])
        last.finish().wait(30)
        assert read(store, digest) == LARGE

    def test_too_many_first_bytes_begin_nothing(self, store: BlobStore) -> None:
        digest = digests.of(SMALL)
        with pytest.raises(InvalidArgument, match=str(len(SMALL) + 1)):
            store.upload("u", digest, 0, SMALL + b"x")
        assert not store.upload_exists("u")

    def test_an_overtaken_stream_cannot_finish_or_discard(self, store: BlobStore) -> None:
        digest = digests.of(LARGE)
        first = begin(store, "u", digest)
        first.append(LARGE[:-1])
        first.flush()
        second = store.upload("u", digest, len(LARGE) - 1, b"")
        first.append(LARGE[-1:])
        with pytest.raises(UploadSuperseded):
            first.finish().wait(30)
        assert store.committed_size("u") == second.offset == len(LARGE) - 1
        second.append(LARGE[-1:])
        second.finish().wait(30)
        assert read(store, digest) == LARGE

    @pytest.mark.parametrize("data", [LARGE, SMALL])
    def test_any_stream_may_finish_what_is_complete(self, store: BlobStore, data: bytes) -> None:
        """Else streams that come to finish would take the upload from each other for ever."""
        digest = digests.of(data)
        uploads = [begin(store, "u", digest)]
        uploads[0].append(data)
        uploads[0].flush()
        uploads += [store.upload("u", digest, len(data), b"") for _ in range(3)]
        pendings = [upload.finish() for upload in uploads]
        for pending in pendings:
            with suppress(UploadSuperseded):
                pending.wait(30)
        pendings[0].wait(30)
        assert read(store, digest) == data
        assert store.committed_size("u") is None

    def test_open_uploads_are_limited(self, store: BlobStore) -> None:
        uploads = [begin(store, f"u{n}", digests.of(LARGE)) for n in range(8)]
        with pytest.raises(LimitExceeded, match=r"max_open_uploads.* 8"):
            begin(store, "one more", digests.of(LARGE))
        uploads[0].suspend()
        begin(store, "one more", digests.of(LARGE)).discard()
        for upload in uploads:
            upload.discard()

    def test_two_uploads_of_one_digest_both_end_well(self, store: BlobStore) -> None:
        digest = digests.of(LARGE)
        uploads = [begin(store, f"u{n}", digest) for n in range(3)]
        for upload in uploads:
            upload.append(LARGE)
        pendings = [upload.finish() for upload in uploads]
        for pending in pendings:
            pending.wait(30)
        assert read(store, digest) == LARGE
        assert all(store.committed_size(f"u{n}") is None for n in range(3))

    def test_committed_sizes_never_decrease(self, store: BlobStore) -> None:
        digest = digests.of(LARGE)
        sizes: list[int] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                size = store.committed_size("u")
                if size is not None:
                    sizes.append(size)

        asker = threading.Thread(target=ask)
        upload = begin(store, "u", digest)
        asker.start()
        try:
            for step in range(50):
                upload.append(LARGE[upload.offset : upload.offset + 10_000])
                if step % 5 == 0:
                    overtaken, upload = upload, begin(store, "u", digest)
                    overtaken.discard()
                elif step % 3 == 0:
                    upload.suspend()
                    upload = begin(store, "u", digest)
                else:
                    upload.flush()
        finally:
            stop.set()
            asker.join()
        sizes.append(store.committed_size("u") or 0)
        upload.discard()
        assert sizes == sorted(sizes)
        assert sizes[-1] > 0


class TestActions:
    def stored(self, store: BlobStore, *references: Digest, result: bytes = b"result") -> Digest:
        digest = digests.of(b"an action")
        new = NewAction(result, [r.key for r in references], expanded=True, author="me")
        store.put_action("main", digest, new).wait(30)
        return digest

    def test_an_action_result_comes_back(self, store: BlobStore) -> None:
        blobs = [put(store, SMALL), put(store, LARGE)]
        digest = self.stored(store, *blobs)
        action = found(store, "main", digest)
        assert action.result == b"result"
        assert list(action.references) == [blob.key for blob in blobs]
        assert action.expanded
        assert action.complete

    def test_it_belongs_to_its_instance(self, store: BlobStore) -> None:
        digest = self.stored(store)
        assert store.action("", digest) is None
        assert store.action("mai", digest) is None
        assert store.action("main/x", digest) is None

    def test_the_size_of_the_action_does_not_count(self, store: BlobStore) -> None:
        digest = self.stored(store)
        other = digests.make(digest.function, digest.hash, 0)
        assert found(store, "main", other).result == b"result"

    def test_an_absent_reference_makes_it_incomplete(self, store: BlobStore) -> None:
        digest = self.stored(store, put(store, SMALL), digests.of(b"absent"))
        assert not found(store, "main", digest).complete
        put(store, b"absent")
        assert found(store, "main", digest).complete

    def test_the_empty_blob_never_makes_it_incomplete(self, store: BlobStore) -> None:
        digest = self.stored(store, digests.empty(digests.SHA256))
        assert found(store, "main", digest).complete

    def test_the_last_write_wins(self, store: BlobStore) -> None:
        self.stored(store, result=b"first")
        digest = self.stored(store, result=b"second")
        assert found(store, "main", digest).result == b"second"

    def test_a_dead_one_is_dropped_unless_fresh_or_replaced(
        self, store: BlobStore, clock: Clock
    ) -> None:
        digest = self.stored(store, digests.of(b"absent"))
        action = found(store, "main", digest)
        store.drop_action("main", digest, action)
        assert store.action("main", digest) is not None
        clock.now += 3600
        store.drop_action("main", digest, action._replace(result=b"another"))
        put(store, b"a write behind the drop")
        assert store.action("main", digest) is not None
        store.drop_action("main", digest, action)
        put(store, b"another write behind the drop")
        assert store.action("main", digest) is None
        store.drop_action("main", digest, action)


def test_a_closed_store_takes_no_writes(store: BlobStore) -> None:
    store.close()
    [pending] = store.put([(digests.of(SMALL), SMALL)])
    with pytest.raises(StoreClosed):
        pending.wait(30)
    with pytest.raises(StoreClosed):
        store.put_action("", digests.of(b""), NewAction(b"", [], True)).wait(30)
