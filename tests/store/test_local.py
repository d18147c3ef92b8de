"""The store on disk beyond the common contract: restarts, several processes, order, faults."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import pytest

from cas import digest as digests
from cas.digest import FUNCTIONS, Digest
from cas.errors import DataLoss, LimitExceeded, NoSpace, NotFound, UploadSuperseded
from cas.index.lmdb import Index
from cas.index.records import FILE, INLINE, Record
from cas.store import local, uploads
from cas.store.interface import BlobStore, Durability, NewAction
from cas.store.layout import Layout, parse_blob
from tests.store.conftest import Clock, Opener, begin, found, gathering

SMALL = b"small" * 10
LARGE = os.urandom(1 << 20)


def put(store: BlobStore, data: bytes) -> Digest:
    digest = digests.of(data)
    store.put([(digest, data)])[0].wait(30)
    return digest


def record_of(index: Index, key: bytes) -> Record:
    record = index.record(key)
    assert record is not None
    return record


def blob_files(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "store/blobs").rglob("*") if path.is_file()]


def staging_files(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "store/staging").glob("*/*"))


def read(store: BlobStore, digest: Digest) -> bytes:
    blob = store.open(digest)
    view = memoryview(bytearray(blob.size))
    assert blob.read_into(view, 0) == blob.size
    blob.close()
    return bytes(view)


class TestAcrossRestarts:
    @pytest.mark.parametrize("durability", ["strict", "batch", "none"])
    def test_everything_is_there_again(self, opener: Opener, durability: Durability) -> None:
        store = opener(durability)
        blobs = [put(store, SMALL), put(store, LARGE)]
        action = NewAction(b"result", [b.key for b in blobs], True, "me")
        store.put_action("main", blobs[0], action).wait(30)
        store.close()
        store = opener("strict")
        assert read(store, blobs[0]) == SMALL
        assert read(store, blobs[1]) == LARGE
        assert found(store, "main", blobs[0]).complete

    def test_an_upload_resumes_in_the_next_process(self, opener: Opener) -> None:
        digest = digests.of(LARGE)
        store = opener()
        upload = begin(store, "u", digest)
        upload.append(LARGE[:600_000])
        upload.suspend(durable=True)
        store.close()
        store = opener()
        assert store.committed_size("u") == 600_000
        upload = begin(store, "u", digest)
        assert upload.offset == 600_000
        upload.append(LARGE[600_000:])
        upload.finish().wait(30)
        assert read(store, digest) == LARGE

    @pytest.mark.parametrize("durability", ["strict", "batch", "none"])
    def test_a_killed_process_loses_nothing_acknowledged(
        self, opener: Opener, tmp_path: Path, durability: Durability
    ) -> None:
        child = textwrap.dedent(
            f"""
            import os, sys
            from pathlib import Path
            from cas import digest as digests
            from cas.store.interface import NewAction
            from cas.store.local import StoreOptions, open_store
            store = open_store(Path({str(tmp_path / "store")!r}), StoreOptions({durability!r}))
            for number in range(10_000):
                for size in (50, 140_000):
                    data = (b"%d" % number).ljust(size, b".")
                    digest = digests.of(data)
                    store.put([(digest, data)])[0].wait(30)
                    store.put_action("", digest, NewAction(data[:9], [digest.key], True)).wait(30)
                    print(number, size, flush=True)
            """
        )
        process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
        assert process.stdout is not None
        acknowledged = [process.stdout.readline().split() for _ in range(60)]
        process.send_signal(signal.SIGKILL)
        acknowledged += [line.split() for line in process.stdout.read().splitlines()]
        process.wait()
        process.stdout.close()
        store = opener()
        for number, size in (line for line in acknowledged if len(line) == 2):
            data = number.ljust(int(size), b".")
            digest = digests.of(data)
            assert read(store, digest) == data
            assert found(store, "", digest).complete


class Remote:
    """The other process, as `peer.py` serves it."""

    def __init__(self, directory: Path, socket: Path) -> None:
        script = Path(__file__).with_name("peer.py")
        self.process = subprocess.Popen([sys.executable, script, directory, socket])
        deadline = time.monotonic() + 30
        while True:
            try:
                self._connection = Client(str(socket), "AF_UNIX")
                break
            except (FileNotFoundError, ConnectionRefusedError):
                # Not bound yet, or bound and not listening.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(*arguments: object) -> Any:
            self._connection.send((method, arguments))
            result, error = self._connection.recv()
            if error is not None:
                raise error
            return result

        return call

    def close(self) -> None:
        self._connection.close()
        self.process.wait(30)


@pytest.fixture
def peer(opener: Opener, tmp_path: Path) -> Iterator[Remote]:
    remote = Remote(tmp_path / "store", tmp_path / "peer")
    yield remote
    remote.close()


class TestPastTheCache:
    """Large blobs go to the disk in whole blocks; every way of not fitting must still work."""

    SIZES = (4096, 8192, 4095, 4097, 1 << 20, (1 << 20) + 1, (3 << 20) - 1, (2 << 20) + 4096)

    @pytest.mark.parametrize("size", SIZES)
    def test_whole_blobs(self, opener: Opener, size: int) -> None:
        store = opener(inline_threshold=100, direct_threshold=4000)
        data = os.urandom(size)
        assert read(store, put(store, data)) == data

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("cut", [1, 4096, 5000, 1 << 20])
    def test_uploads_that_stop_anywhere(self, opener: Opener, size: int, cut: int) -> None:
        store = opener(inline_threshold=100, direct_threshold=4000)
        data = os.urandom(size)
        digest = digests.of(data)
        cut = min(cut, size - 1)
        first = store.upload("u", digest, 0, data[:cut])
        assert first.suspend() == store.committed_size("u") == cut
        rest = store.upload("u", digest, cut, b"")
        for at in range(cut, size, 300_000):
            if rest.append(data[at : at + 300_000]):
                rest.flush()
        rest.finish().wait(30)
        assert read(store, digest) == data

    def test_it_does_pass_the_cache(self, opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
        flags: list[int] = []
        true_pwritev = os.pwritev

        def pwritev(fd: int, buffers: Any, offset: int) -> int:
            flags.append(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)
            return true_pwritev(fd, buffers, offset)

        monkeypatch.setattr(os, "pwritev", pwritev)
        store = opener(direct_threshold=len(LARGE))
        put(store, LARGE + b"x")
        assert flags == [os.O_DIRECT, 0]
        put(store, LARGE[:-1])
        assert flags[2:] == [0]

    def test_a_disk_that_refuses(self, opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
        true_pwritev = os.pwritev

        def pwritev(fd: int, buffers: Any, offset: int) -> int:
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
            return true_pwritev(fd, buffers, offset)

        monkeypatch.setattr(os, "pwritev", pwritev)
        store = opener()
        assert read(store, put(store, LARGE)) == LARGE


class TestManyProcesses:
    def test_a_write_by_one_is_seen_by_the_other(self, opener: Opener, peer: Remote) -> None:
        store = opener()
        for data in (SMALL, LARGE):
            assert peer.read(put(store, data)) == data
            assert read(store, peer.put(data + b"2")) == data + b"2"

    def test_an_upload_moves_from_one_to_the_other(self, opener: Opener, peer: Remote) -> None:
        store = opener()
        digest = digests.of(LARGE)
        upload = begin(store, "u", digest)
        upload.append(LARGE[:500_000])
        upload.flush()
        assert peer.committed_size("u") == 500_000
        assert peer.begin("u", digest) == 500_000
        upload.append(b"other bytes")
        with pytest.raises(UploadSuperseded):
            upload.flush()
        upload.discard()
        peer.append(LARGE[500_000:])
        peer.finish()
        assert read(store, digest) == LARGE

    def test_the_earlier_one_cannot_publish(self, opener: Opener, peer: Remote) -> None:
        store = opener()
        digest = digests.of(LARGE)
        peer.begin("u", digest)
        peer.append(LARGE[:-1])
        peer.flush()
        upload = begin(store, "u", digest)
        peer.append(LARGE[-1:])
        with pytest.raises(UploadSuperseded):
            peer.finish()
        assert upload.offset == len(LARGE) - 1
        upload.append(LARGE[-1:])
        upload.finish().wait(30)
        assert peer.read(digest) == LARGE

    def test_either_may_publish_what_is_complete(self, opener: Opener, peer: Remote) -> None:
        store = opener()
        digest = digests.of(LARGE)
        peer.begin("u", digest)
        peer.append(LARGE)
        peer.flush()
        upload = begin(store, "u", digest)
        peer.finish()
        assert store.committed_size("u") is None
        with pytest.raises(UploadSuperseded):
            upload.finish().wait(30)
        assert read(store, digest) == LARGE

    def test_an_upload_outlives_the_process_that_held_it(
        self, opener: Opener, peer: Remote
    ) -> None:
        store = opener()
        digest = digests.of(LARGE)
        peer.begin("u", digest)
        peer.append(LARGE[:500_000])
        peer.flush()
        peer.append(LARGE[500_000:500_100])
        peer.process.kill()
        peer.process.wait()
        assert store.committed_size("u") == 500_000
        upload = begin(store, "u", digest)
        assert upload.offset == 500_000
        upload.append(LARGE[500_000:])
        upload.finish().wait(30)
        assert read(store, digest) == LARGE

    def test_a_resumed_upload_is_not_mixed_up_with_what_another_wrote(
        self, opener: Opener, peer: Remote
    ) -> None:
        store = opener()
        digest = digests.of(LARGE)
        for at in range(0, 600_000, 200_000):
            upload = begin(store, "u", digest)
            upload.append(LARGE[at : at + 100_000])
            upload.suspend()
            assert peer.begin("u", digest) == at + 100_000
            peer.append(LARGE[at + 100_000 : at + 200_000])
            peer.suspend()
        upload = begin(store, "u", digest)
        upload.append(LARGE[600_000:])
        upload.finish().wait(30)
        assert peer.read(digest) == LARGE

    def test_two_copies_of_one_blob_leave_one_file(
        self, opener: Opener, peer: Remote, tmp_path: Path
    ) -> None:
        store = opener()
        blobs = [os.urandom(150_000) for _ in range(20)]
        thread = threading.Thread(target=peer.put_many, args=(blobs,))
        thread.start()
        for data in blobs:
            put(store, data)
        thread.join()
        assert {read(store, digests.of(data)) for data in blobs} == set(blobs)
        assert len(blob_files(tmp_path)) == len(blobs)


class TestOnDisk:
    def test_where_blobs_lie(self, opener: Opener, tmp_path: Path) -> None:
        store = opener(inline_threshold=100)
        small, large = put(store, b"x" * 100), put(store, b"x" * 101)
        assert record_of(store._index, small.key).where == INLINE
        record = record_of(store._index, large.key)
        assert record.where == FILE
        [path] = blob_files(tmp_path)
        assert path == Path(Layout(tmp_path / "store").blob(large, record.generation))
        assert path.parent.name == large.hex[:2]
        assert parse_blob(path, 101) == (large, record.generation, False)

    def test_a_finished_upload_leaves_nothing_in_staging(
        self, opener: Opener, tmp_path: Path
    ) -> None:
        store = opener()
        for data in (SMALL, LARGE):
            upload = begin(store, "u", digests.of(data))
            upload.append(data)
            upload.finish().wait(30)
        assert staging_files(tmp_path) == []

    def test_a_file_cut_short_is_data_loss(self, opener: Opener, tmp_path: Path) -> None:
        store = opener()
        digest = put(store, LARGE)
        os.truncate(blob_files(tmp_path)[0], 1000)
        with pytest.raises(DataLoss, match=digest.hex):
            read(store, digest)

    def test_a_vanished_file_is_not_found(self, opener: Opener, tmp_path: Path) -> None:
        store = opener()
        digest = put(store, LARGE)
        blob_files(tmp_path)[0].unlink()
        with pytest.raises(NotFound):
            store.open(digest)

    def test_a_repeated_action_result_is_not_written_again(self, opener: Opener) -> None:
        commits: list[str] = []
        store = opener(index_seam=commits.append)
        digest, reference = digests.of(b"an action"), digests.of(SMALL)

        def writes(result: bytes, author: str) -> bool:
            before = len(commits)
            new = NewAction(result, [reference.key], expanded=True, author=author)
            store.put_action("", digest, new).wait(30)
            assert found(store, "", digest).result == result
            return len(commits) > before

        assert writes(b"result", "me")
        # Incomplete: being sent again keeps it from being dropped.
        assert writes(b"result", "me")
        put(store, SMALL)
        assert not writes(b"result", "somebody else")
        assert writes(b"another", "me")
        assert writes(b"result", "me")

    def test_a_drop_does_not_hit_what_has_become_complete(
        self, opener: Opener, clock: Clock
    ) -> None:
        waiting, go_on = threading.Event(), threading.Event()

        def seam(phase: str) -> None:
            if phase == "before-put" and threading.current_thread().name == "cas-commit":
                waiting.set()
                go_on.wait(30)

        go_on.set()
        store = opener(index_seam=seam)
        digest, reference = digests.of(b"an action"), digests.of(SMALL)
        store.put_action("", digest, NewAction(b"result", [reference.key], True)).wait(30)
        clock.now += 3600
        action = found(store, "", digest)
        go_on.clear()
        waiting.clear()
        blocking = store.put([(digests.of(b"a"), b"a")])[0]
        waiting.wait(30)
        # Both wait in one group now: the blob, and the drop that was decided before it came.
        pending = store.put([(reference, SMALL)])[0]
        store.drop_action("", digest, action)
        go_on.set()
        blocking.wait(30)
        pending.wait(30)
        put(store, b"a write behind the drop")
        assert found(store, "", digest).complete

    def test_replaced_action_results_leave_nothing_behind(self, opener: Opener) -> None:
        store = opener()
        digest = digests.of(b"an action")
        for start in (0, 10, 20):
            pendings = [
                store.put_action("", digest, NewAction(b"%d" % (start + number), [], True))
                for number in range(10)
            ]
            for pending in pendings:
                pending.wait(30)
            assert found(store, "", digest).result == b"%d" % (start + 9)
        with store._index._env.begin() as txn:
            entries = {
                name: txn.stat(db)["entries"]
                for name, db in vars(store._index).items()
                if name in ("_meta", "_data", "_order")
            }
        # More than `order` holds: the empty blobs.
        every = 1 + len(FUNCTIONS)
        assert entries == {"_meta": every, "_data": every, "_order": 1}

    def test_use_is_recorded_by_the_minute(self, opener: Opener, clock: Clock) -> None:
        store = opener()
        digest, other = put(store, SMALL), put(store, LARGE)
        index = store._index
        before = index.last_use(record_of(index, digest.key))
        clock.now += 600
        store.contains(digest)
        store.close()
        index = opener()._index
        assert index.last_use(record_of(index, digest.key)) == before + 10
        assert index.last_use(record_of(index, other.key)) == before

    def test_uses_of_many_blobs_are_recorded_as_they_are_found(
        self, opener: Opener, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(local, "MAX_TOUCHES", 2)
        store = opener()
        index = store._index
        keys = [put(store, b"%d" % number).key for number in range(6)]
        written = index.last_use(record_of(index, keys[0]))
        absent = digests.of(b"absent").key
        clock.now += 600
        assert store.missing(keys[:2]) == []
        # Two wait to be written now, and nothing is added to them.
        assert store.missing([keys[2], absent, *keys[3:5]]) == [1]
        uses = [index.last_use(record_of(index, key)) - written for key in keys]
        assert uses == [0, 0, 10, 10, 10, 0]
        store.close()
        index = opener()._index
        uses = [index.last_use(record_of(index, key)) - written for key in keys]
        assert uses == [10, 10, 10, 10, 10, 0]


class Seam:
    """Records operations, and fails those that a test names."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.fail: dict[str, OSError] = {}

    def file(self, operation: str, path: str) -> None:
        self.seen.append(operation)
        if operation in self.fail:
            raise self.fail[operation]

    def index(self, phase: str) -> None:
        self.seen.append(phase)
        if phase in self.fail:
            raise self.fail[phase]


@pytest.fixture
def seam() -> Seam:
    return Seam()


class TestOrder:
    def test_strict_syncs_file_and_directory_before_the_index(
        self, opener: Opener, seam: Seam
    ) -> None:
        store = opener("strict", files_seam=seam.file, index_seam=seam.index)
        upload = begin(store, "u", digests.of(LARGE))
        upload.append(LARGE)
        seam.seen.clear()
        upload.finish().wait(30)
        order = ["write", "publish", "sync", "sync-directory", "before-commit", "after-commit"]
        assert [step for step in seam.seen if step in order] == order
        assert seam.seen.index("remove") > seam.seen.index("after-commit")

    @pytest.mark.parametrize(("durability", "synced"), [("batch", True), ("none", False)])
    def test_relaxed_modes_sync_later_or_not(
        self, opener: Opener, seam: Seam, durability: Durability, synced: bool
    ) -> None:
        store = opener(durability, files_seam=seam.file, index_seam=seam.index)
        put(store, LARGE)
        assert "sync" not in seam.seen[: seam.seen.index("after-commit")]
        store.close()
        assert ("sync" in seam.seen) == synced

    def test_a_size_that_is_told_was_synced(self, opener: Opener, seam: Seam) -> None:
        store = opener("strict", files_seam=seam.file)
        upload = begin(store, "u", digests.of(LARGE))
        upload.append(LARGE[:10])
        upload.flush()
        seam.seen.clear()
        assert store.committed_size("u") == 10
        assert seam.seen == ["open", "sync", "sync-directory"]

    def test_one_commit_for_many_writes(self, opener: Opener, seam: Seam) -> None:
        store = opener("strict", index_seam=seam.index)
        blobs = [(digests.of(data), data) for data in (b"%d" % n for n in range(500))]
        for pending in store.put(blobs):
            pending.wait(30)
        assert seam.seen.count("after-commit") == 1


class TestFaults:
    @pytest.mark.parametrize("operation", ["create", "write"])
    def test_a_full_disk_fails_that_write_alone(
        self, opener: Opener, seam: Seam, operation: str, tmp_path: Path
    ) -> None:
        store = opener("strict", files_seam=seam.file)
        seam.fail[operation] = OSError(errno.ENOSPC, "No space left on device")
        digest = digests.of(LARGE)
        [pending] = store.put([(digest, LARGE)])
        with pytest.raises((NoSpace, OSError)):
            pending.wait(30)
        seam.fail.clear()
        assert not store.contains(digest)
        assert blob_files(tmp_path) == []
        put(store, SMALL)
        put(store, LARGE)

    @pytest.mark.parametrize("operation", ["sync", "publish", "sync-directory", "before-commit"])
    def test_a_failed_commit_is_not_acknowledged(
        self, opener: Opener, seam: Seam, operation: str, tmp_path: Path
    ) -> None:
        store = opener("strict", files_seam=seam.file, index_seam=seam.index)
        digest = digests.of(LARGE)
        upload = begin(store, "u", digest)
        upload.append(LARGE)
        seam.fail[operation] = OSError(errno.EIO, "Input/output error")
        with pytest.raises(OSError, match="Input/output error"):
            upload.finish().wait(30)
        seam.fail.clear()
        assert not store.contains(digest)
        assert blob_files(tmp_path) == []
        upload = begin(store, "u", digest)
        if operation == "sync":
            # What it did not write is lost, and a second sync would not say so.
            assert upload.offset == 0
            upload.append(LARGE)
        # Else the upload is still there to be finished.
        assert upload.offset == len(LARGE)
        upload.finish().wait(30)
        assert read(store, digest) == LARGE


class TestGathering:
    def test_what_has_no_room_in_memory_is_staged(
        self, opener: Opener, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(uploads, "LARGE_BUFFERS", 2)
        store = opener(max_open_uploads=3)
        data = [os.urandom(uploads.BUFFER_BYTES + extra) for extra in (0, 0, 0, 1)]
        names = [digests.of(content) for content in data]
        assert store.gather("too large", names[3]) is None
        for _ in range(3):
            first = gathering(store, "0", names[0])
            second = gathering(store, "1", names[1])
            assert store.gather("2", names[2]) is None
            small = gathering(store, "small", digests.of(b"small"))
            with pytest.raises(LimitExceeded):
                gathering(store, "one more", names[2])
            first.append(data[0])
            first.finish().wait(30)
            first = gathering(store, "2", names[2])
            first.append(data[2][:-1])
            assert first.suspend() == len(data[2]) - 1
            second.discard()
            store.upload("2", names[2], len(data[2]) - 1, b"").discard()
            small.discard()
        assert store.contains(names[0])
        assert not store.contains(names[2])
