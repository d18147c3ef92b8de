"""Loss of power in `strict`: invariants 1 to 3, at every point of a recording.

Everything that the store does to its disk is recorded once.  Then the power fails behind any of
these operations, what was not synced is there or not, in any combination, and the store that is
left must hold everything that anybody was told of, and name nothing that is not whole.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cas import digest as digests
from cas.errors import CasError
from cas.index import upkeep
from cas.index.records import minutes
from cas.store import fsck, opening, scrub
from cas.store.directory import prepare
from cas.store.files import Files
from cas.store.interface import NewAction
from cas.store.layout import Layout
from cas.store.local import LocalStore, StoreOptions, open_store
from cas.store.quarantine import Quarantine
from tests.store.power.disk import Disk, Sync, SyncDirectory, Told
from tests.store.power.recorder import Recorder

ROOT = Path(__file__).resolve().parents[3]
NOW = 1_900_000_000.0


def data(name: str, size: int) -> bytes:
    return random.Random(name).randbytes(size)


BLOBS = {
    name: data(name, size)
    for name, size in (
        ("small", 700), ("large", 40_001), ("direct", 300_001), ("uploaded", 150_001),
        ("taken over", 90_000), ("evicted", 30_000), ("bad", 20_000), ("paused", 60_000),
    )
}  # fmt: skip


def put(store: LocalStore, recorder: Recorder, *names: str) -> None:
    pairs = [(digests.of(BLOBS[name]), BLOBS[name]) for name in names]
    for name, pending in zip(names, store.put(pairs), strict=True):
        pending.wait(30)
        recorder.tell("blob", name)


def play(store: LocalStore, recorder: Recorder) -> None:
    """All that a store does, once; told as soon as a client would be."""
    put(store, recorder, "evicted", "bad", "small")
    put(store, recorder, "large")
    put(store, recorder, "direct")
    act(store, recorder, b"first")
    blob = BLOBS["uploaded"]
    upload = store.upload("u", digests.of(blob), 0, blob[:70_000])
    upload.flush()
    recorder.tell("size of u", store.committed_size("u"))
    upload.append(blob[70_000:])
    upload.finish().wait(30)
    recorder.tell("blob", "uploaded")

    blob = BLOBS["taken over"]
    first = store.upload("v", digests.of(blob), 0, blob[:30_000])
    first.flush()
    recorder.tell("size of v", store.committed_size("v"))
    second = store.upload("v", digests.of(blob), 30_000, blob[30_000:60_000])
    recorder.tell("size of v", store.committed_size("v"))
    first.discard()
    second.append(blob[60_000:])
    second.finish().wait(30)
    recorder.tell("blob", "taken over")
    act(store, recorder, b"second")
    paused = store.upload("w", digests.of(BLOBS["paused"]), 0, BLOBS["paused"][:50_000])
    recorder.tell("size of w", paused.suspend(durable=True))


def act(store: LocalStore, recorder: Recorder, result: bytes) -> None:
    action = NewAction(result, [digests.of(BLOBS["small"]).key], True)
    store.put_action("main", digests.of(b"action"), action).wait(30)
    recorder.tell("action", result)


def remove_some(layout: Layout, recorder: Recorder) -> None:
    """Evicts one blob as the janitor does, and condemns another as the scrub does."""
    with closing(opening.open_index(layout, recorder, seam=recorder.index_seam)) as index:
        key = digests.of(BLOBS["evicted"]).key
        record = index.record(key)
        assert record is not None
        recorder.tell("may go", "evicted")
        assert index.evict([(key, record)], minutes(NOW))
        recorder.remove(layout.blob(digests.from_key(key), record.generation))
        key = digests.of(BLOBS["bad"]).key
        record = index.record(key)
        assert record is not None
        recorder.tell("may go", "bad")
        assert Quarantine(layout, recorder).condemn(index, key, record, "for a test")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    directory = tmp_path_factory.mktemp("power") / "store"
    prepare(directory).close()
    layout = Layout(directory)
    # The pinned blobs and the tables are made.
    open_store(directory).close()
    recorder = Recorder(layout)
    recorder.begin()
    index = opening.open_index(layout, recorder, seam=recorder.index_seam)
    with closing(
        LocalStore(layout, index, recorder, StoreOptions(inline_threshold=16 << 10))
    ) as store:
        play(store, recorder)
    remove_some(layout, recorder)
    return recorder.disk


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.floats(0, 1), seed=st.integers(0, 2**32), keep=st.sampled_from([0.1, 0.5, 0.9]))
def test_any_moment_and_any_loss(disk: Disk, part: float, seed: int, keep: float) -> None:
    judge(disk, round(part * len(disk.ops)), random.Random(seed), keep)


def test_every_promise_with_all_that_was_not_synced_lost(disk: Disk) -> None:
    judge_promises(disk)


def judge_promises(disk: Disk) -> None:
    for moment, op in enumerate(disk.ops, 1):
        if isinstance(op, Told):
            judge(disk, moment, random.Random(0), 0)


@pytest.mark.parametrize("forgotten", ["files", "directories", "index"])
def test_a_sync_that_is_forgotten_is_noticed(disk: Disk, forgotten: str) -> None:
    """The same verdict, on a recording of a store that would not sync so much."""
    index = disk.names["index"]["data.mdb"]
    kept = [
        op
        for op in disk.ops
        if not (
            (forgotten == "files" and isinstance(op, Sync) and op.inode != index)
            or (forgotten == "index" and isinstance(op, Sync) and op.inode == index)
            or (forgotten == "directories" and isinstance(op, SyncDirectory))
        )
    ]
    careless = Disk(disk.names, disk.contents, kept)
    with pytest.raises((AssertionError, CasError)):
        judge_promises(careless)


def judge(disk: Disk, prefix: int, dice: random.Random, keep: float) -> None:
    # In memory where there is such a place: nothing here is about this machine's disk.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="cas-power-", dir=memory))
    try:
        disk.image(directory, prefix, dice, keep)
        told = disk.told(prefix)
        look(directory, told)
        layout = Layout(directory)
        with closing(opening.open_index(layout, Files())) as index:
            # Invariants 1 and 3: a record names what is there, whole.
            for row in upkeep.rows(index):
                assert not row.wrong
                for _ in scrub.slices(layout, index, Files(), row):
                    pass
            found = fsck.check(layout, index, Files(), repair=True, now=NOW).found
            assert set(found) <= {fsck.ORPHAN, fsck.COPY, fsck.SECOND_NAME}
            assert not fsck.check(layout, index, Files(), repair=False, now=NOW).found
        look(directory, told)
    finally:
        shutil.rmtree(directory)


def look(directory: Path, told: list[Told]) -> None:
    """Invariant 2: what was told is true for ever."""
    gone = {op.value for op in told if op.kind == "may go"}
    with closing(open_store(directory)) as store:
        for op in told:
            if op.kind == "blob" and op.value not in gone:
                blob = BLOBS[str(op.value)]
                with closing(store.open(digests.of(blob))) as opened:
                    found = bytearray(len(blob))
                    opened.read_into(memoryview(found), 0)
                    assert found == blob, op
        results = [op.value for op in told if op.kind == "action"]
        if results:
            action = store.action("main", digests.of(b"action"))
            assert action is not None
            assert action.result in (results[-1], b"second")
        for upload, name in (("u", "uploaded"), ("v", "taken over"), ("w", "paused")):
            sizes = [op.value for op in told if op.kind == f"size of {upload}"]
            if sizes and not store.contains(digests.of(BLOBS[name])):
                size = store.committed_size(upload)
                assert isinstance(sizes[-1], int)
                assert size is not None
                assert size >= sizes[-1]


ORDER = """
import sys
from pathlib import Path
from cas.index.changes import Changes, NewBlob
from cas.index.lmdb import Index

index = Index(Path(sys.argv[1]))
print("BEGIN", file=sys.stderr, flush=True)
index.apply(Changes(1, blobs=[NewBlob(b"key", b"data" * 1000)]))
print("END", file=sys.stderr, flush=True)
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace, which watches LMDB, is missing")
def test_lmdb_keeps_to_the_order_that_the_model_takes_for_granted(tmp_path: Path) -> None:
    log = tmp_path / "calls"
    (tmp_path / "index").mkdir()
    calls = "trace=openat,pwrite64,pwritev,writev,write,fdatasync,fsync,msync"
    traced = ["strace", "-f", "-y", "-o", str(log), "-e", calls, sys.executable, "-c", ORDER]
    ended = subprocess.run(
        [*traced, str(tmp_path / "index")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "ptrace" in ended.stderr or "PTRACE" in ended.stderr:
        pytest.skip("this machine does not allow strace")
    assert ended.returncode == 0, ended.stderr
    lines = log.read_text().splitlines()
    begin = next(n for n, line in enumerate(lines) if "BEGIN" in line)
    end = next(n for n, line in enumerate(lines) if "END" in line)
    within = [line for line in lines[begin + 1 : end] if "data.mdb" in line]
    syncs = [n for n, line in enumerate(within) if "fdatasync" in line or "fsync" in line]
    writes = [n for n, line in enumerate(within) if "write" in line]
    # Data pages, their sync, and behind it one write only: that of the root, to a descriptor
    # that syncs by itself.
    assert len(syncs) == 1
    assert [n for n in writes if n > syncs[0]] == [len(within) - 1]
    assert len(writes) > 1
    root = next(line for line in lines if "data.mdb" in line and "O_DSYNC" in line)
    descriptor = root.rpartition("= ")[2].partition("<")[0]
    assert f"pwrite64({descriptor}<" in within[-1]
