"""Disks that are full, failing or read-only, too many open files, clocks that jump: the store says
so, serves what it has, never serves anything else, and goes on when the fault is over.

Seams fail single operations; a small file system of its own is really full, or read-only, where
this machine lets tests mount one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from cas import digest as digests
from cas.digest import Digest
from cas.errors import CasError, LimitExceeded
from cas.store import fsck
from cas.store.directory import prepare
from cas.store.files import Files
from cas.store.interface import NewAction
from cas.store.layout import Layout
from cas.store.local import LocalStore, open_store
from cas.store.opening import open_index
from tests.store.conftest import Clock

SMALL = b"small" * 10
LARGE = os.urandom(300_000)
HERE = os.urandom(100_000)


class Faults:
    """Fails operations of these names with this error, while there is one."""

    def __init__(self) -> None:
        self.operations: set[str] = set()
        self.number = 0

    def file(self, operation: str, path: str) -> None:
        self.index(operation)

    def index(self, point: str) -> None:
        if point in self.operations:
            raise OSError(self.number, os.strerror(self.number))


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def store(tmp_path: Path, faults: Faults) -> Iterator[LocalStore]:
    prepare(tmp_path / "store").close()
    opened = open_store(tmp_path / "store", files_seam=faults.file, index_seam=faults.index)
    put(opened, HERE)
    put(opened, b"here")
    yield opened
    opened.close()


def put(store: LocalStore, data: bytes) -> Digest:
    digest = digests.of(data)
    store.put([(digest, data)])[0].wait(30)
    return digest


def upload(store: LocalStore, data: bytes) -> Digest:
    digest = digests.of(data)
    size = store.committed_size(digest.hex) or 0
    upload = store.upload(digest.hex, digest, size, data[size : size + 1000])
    upload.append(data[upload.offset :])
    upload.finish().wait(30)
    return digest


def read(store: LocalStore, digest: Digest) -> bytes:
    with closing(store.open(digest)) as blob:
        data = bytearray(blob.size)
        blob.read_into(memoryview(data), 0)
        return bytes(data)


WAYS = ((put, SMALL), (put, LARGE), (upload, SMALL[:40]), (upload, LARGE[:200_000]))

WRITES = ("create", "write", "sync", "sync-directory", "publish", "before-put", "before-commit")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE])
@pytest.mark.parametrize("operation", WRITES)
def test_a_write_fails_alone_and_leaves_nothing(
    store: LocalStore, faults: Faults, tmp_path: Path, operation: str, number: int
) -> None:
    faults.number, faults.operations = number, {operation}
    for way, data in WAYS:
        try:
            way(store, data)
        except (CasError, OSError):
            assert not store.contains(digests.of(data))
        else:
            assert read(store, digests.of(data)) == data
    action = NewAction(b"result", [digests.of(HERE).key], True)
    faulty = operation in ("before-put", "before-commit")
    pending = store.put_action("main", digests.of(b"action"), action)
    if faulty:
        with pytest.raises(OSError, match=os.strerror(number)):
            pending.wait(30)
    # Reads go on.
    assert read(store, digests.of(HERE)) == HERE
    assert store.read_small(digests.of(b"here")) == b"here"
    faults.operations = set()
    for way, data in WAYS:
        assert read(store, way(store, data)) == data
    store.close()
    layout = Layout(tmp_path / "store")
    with closing(open_index(layout, Files())) as index:
        assert not fsck.check(layout, index, Files(), repair=False, now=0).found


def test_too_many_open_files(store: LocalStore) -> None:
    """For real: the system says it in the midst of anything."""
    digest = digests.of(HERE)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir("/proc/self/fd"))
    hoard = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, hard))
    try:
        with suppress(OSError):
            while True:
                hoard.append(os.open("/dev/null", os.O_RDONLY))
        with pytest.raises(OSError, match="Too many open files"):
            store.open(digest)
        with pytest.raises(OSError, match="Too many open files"):
            put(store, LARGE)
        # What needs no file goes on.
        assert store.read_small(digests.of(b"here")) == b"here"
        put(store, SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in hoard:
            os.close(fd)
    assert read(store, digest) == HERE
    assert read(store, put(store, LARGE)) == LARGE


@pytest.mark.parametrize("now", [-1e9, 0.0, 1.0, 1e9, 4e9, 1e12, 1e15])
def test_a_clock_may_say_anything(tmp_path: Path, clock: Clock, now: float) -> None:
    prepare(tmp_path / "store").close()
    for moment in (1_800_000_000.0, now, 1_800_000_000.0):
        clock.now = moment
        with closing(open_store(tmp_path / "store", clock=clock)) as store:
            data = os.urandom(100)
            put(store, data)
            assert read(store, put(store, HERE)) == HERE
            assert store.read_small(digests.of(data)) == data
            action = NewAction(data, [digests.of(HERE).key], True)
            store.put_action("main", digests.of(b"action"), action).wait(30)
            found = store.action("main", digests.of(b"action"))
            assert found is not None
            assert found.result == data


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    path = tmp_path / "volume"
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", path], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("this machine does not let tests mount a file system")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def test_a_disk_that_is_full(volume: Path) -> None:
    """By large blobs, then by small ones until the index has no room either."""
    prepare(volume / "store").close()
    with closing(open_store(volume / "store")) as store:
        acknowledged = [put(store, b"first")]
        for size in (1 << 20, 200_000, 10_000, 100):
            full = False
            for _ in range(2000):
                data = os.urandom(size)
                try:
                    acknowledged.append(put(store, data))
                except LimitExceeded:
                    assert not store.contains(digests.of(data))
                    full = True
                    break
            assert full
        for digest in acknowledged:
            assert digests.of(read(store, digest)) == digest
        assert store.missing([digest.key for digest in acknowledged]) == []
    # It opens, and serves.
    with closing(open_store(volume / "store")) as store:
        assert read(store, acknowledged[0]) == b"first"


def test_the_one_write_that_lmdb_cannot_undo(tmp_path: Path) -> None:
    """Its process is of no use from then on, says so, and is replaced; nothing is lost."""
    prepare(tmp_path / "store").close()
    with closing(open_store(tmp_path / "store")) as store:
        kept = put(store, HERE)
        store.check()
        with file_descriptor_broken(tmp_path / "store/index/data.mdb", os.O_DSYNC):
            with pytest.raises(CasError, match="failed"):
                put(store, b"first")
            with pytest.raises(CasError, match="of no use to this process"):
                put(store, b"second")
        with pytest.raises(CasError, match="of no use to this process"):
            store.check()
    with closing(open_store(tmp_path / "store")) as store:
        store.check()
        assert read(store, kept) == HERE
        put(store, b"second")


@contextmanager
def file_descriptor_broken(path: Path, flag: int) -> Iterator[None]:
    """The process's own descriptor of `path` that was opened with `flag` cannot be written to."""
    [broken] = [
        fd
        for fd in map(int, os.listdir("/proc/self/fd"))
        if os.path.exists(f"/proc/self/fd/{fd}")
        and os.path.realpath(f"/proc/self/fd/{fd}") == os.path.realpath(path)
        and fcntl.fcntl(fd, fcntl.F_GETFL) & flag
    ]
    whole = os.dup(broken)
    reader = os.open(path, os.O_RDONLY)
    os.dup2(reader, broken)
    try:
        yield
    finally:
        os.dup2(whole, broken)
        os.close(whole)
        os.close(reader)


def test_a_disk_that_turns_read_only(volume: Path) -> None:
    prepare(volume / "store").close()
    with closing(open_store(volume / "store")) as store:
        digests_here = [put(store, b"small"), put(store, HERE)]
        # What is open for writing keeps a file system from turning: the system does not ask, but
        # mount does. A failing disk is played by the seam above; this is a start on one.
    subprocess.run(["mount", "-o", "remount,ro", volume], check=True)
    ended = subprocess.run(
        [sys.executable, "-m", "cas", "serve", "--dir", volume / "store", "--grpc", "127.0.0.1:0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert "Read-only file system" in ended.stderr.splitlines()[-1]
    subprocess.run(["mount", "-o", "remount,rw", volume], check=True)
    with closing(open_store(volume / "store")) as store:
        assert [len(read(store, digest)) for digest in digests_here] == [5, len(HERE)]
