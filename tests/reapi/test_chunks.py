"""Blobs as lists of chunks, over real stores and without a network."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas import digest as digests
from cas.digest import BLAKE3, SHA256, Digest
from cas.errors import (
    AlreadyExists,
    DataLoss,
    DigestMismatch,
    InvalidArgument,
    LimitExceeded,
    NoSpace,
    NotFound,
    StoreClosed,
)
from cas.index.lmdb import Index
from cas.metrics import families
from cas.metrics.instruments import Metrics
from cas.reapi import chunks as module
from cas.reapi.chunks import FAST_CDC, UNKNOWN, Chunks, Split
from cas.store import admission
from cas.store.directory import prepare
from cas.store.interface import Blob, BlobStore, NewValue
from cas.store.local import LocalStore, StoreOptions, open_store
from cas.store.memory import MemoryStore
from cas.store.pending import Pending
from tests.metrics.reading import value
from tests.shelves import Shelves
from tests.store.conftest import Clock
from tests.store.test_janitor import HOUR, House, fill, serve
from tests.test_fastcdc import plain_cuts

KIB = 1 << 10
AVERAGE = 4 * KIB
PATIENCE = 40.0

bounded = settings(max_examples=60, derandomize=True, deadline=None)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture(params=["memory", "local", "zstd"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlobStore]:
    with ExitStack() as opened:
        if request.param == "memory":
            yield opened.enter_context(closing(MemoryStore(inline_threshold=2 * KIB)))
        else:
            plain = StoreOptions("none", 2 * KIB)
            packed = StoreOptions("none", 2 * KIB, compression="zstd")
            options = packed if request.param == "zstd" else plain
            yield opened.enter_context(local(tmp_path, options))


def local(directory: Path, options: StoreOptions | None = None) -> closing[LocalStore]:
    prepare(directory / "store").close()
    return closing(open_store(directory / "store", options or StoreOptions("none", 2 * KIB)))


@pytest.fixture
def chunks(store: BlobStore, metrics: Metrics) -> Iterator[Chunks]:
    with closing(Chunks(store, AVERAGE, metrics)) as chunks:
        yield chunks


def some(size: int, seed: int = 1) -> bytes:
    """Bytes that zstd shrinks a little."""
    return bytes(random.Random(seed).choices(range(200), k=size))


def put(store: BlobStore, *contents: bytes) -> list[Digest]:
    found = [digests.of(data) for data in contents]
    for pending in store.put(list(zip(found, contents, strict=True))):
        pending.wait(PATIENCE)
    return found


def read(store: BlobStore, digest: Digest) -> bytes:
    with closing(store.open(digest)) as blob:
        data = bytearray(blob.size)
        assert blob.read_into(memoryview(data), 0) == blob.size
    return bytes(data)


def joined(store: BlobStore, keys: object) -> bytes:
    return b"".join(read(store, digests.from_key(key)) for key in keys)  # type: ignore[attr-defined]


def pieces(data: bytes, average: int = AVERAGE) -> list[bytes]:
    """As a client cuts it."""
    out, at = [], 0
    for length in plain_cuts(data, average):
        out.append(data[at : at + length])
        at += length
    return out


def repeating(times: int) -> bytes:
    """One chunk so many times, a small one."""
    found = pieces(some(100_000))
    piece, after = min(itertools.pairwise(found), key=lambda pair: len(pair[0]))
    # The byte behind a chunk decides on its end; its own first does not.
    return (after[:1] + piece[1:]) * times


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def test_two_versions_share_their_chunks(
    store: BlobStore, chunks: Chunks, metrics: Metrics
) -> None:
    first = some(150_000)
    second = first[:70_000] + b"changed" + first[70_000:]
    one, two = put(store, first, second)
    a = chunks.split(one, FAST_CDC).wait(PATIENCE)
    assert value(metrics, families.CHUNK_BYTES, "new") == len(first)
    b = chunks.split(two, FAST_CDC).wait(PATIENCE)
    assert (joined(store, a.keys), joined(store, b.keys)) == (first, second)
    fresh = {digests.from_key(key) for key in set(b.keys) - set(a.keys)}
    assert 0 < len(fresh) <= 3
    new = sum(digest.size for digest in fresh)
    assert value(metrics, families.CHUNK_BYTES, "new") == len(first) + new
    assert value(metrics, families.CHUNK_BYTES, "shared") == len(second) - new
    # From then on it is a look at the index.
    assert chunks.split(two, FAST_CDC).done
    assert chunks.split(two, UNKNOWN).result() == b
    assert value(metrics, families.SPLITS, "cut") == 2
    assert value(metrics, families.SPLITS, "kept") == 2


def test_what_is_shared_is_stored_and_counted_once(tmp_path: Path) -> None:
    first = some(150_000)
    second = first[:70_000] + b"changed" + first[70_000:]
    with local(tmp_path) as store, closing(Chunks(store, AVERAGE)) as chunks:
        before = stored_bytes(store._index)
        lists = [chunks.split(one, FAST_CDC).wait(PATIENCE) for one in put(store, first, second)]
        parts = {digests.from_key(key) for split in lists for key in split.keys}
        expected = len(first) + len(second) + sum(part.size for part in parts)
        assert stored_bytes(store._index) - before == expected
        assert expected < 2.2 * len(second) + len(first)
        files = [path.stat() for path in (tmp_path / "store" / "blobs").glob("*/*/*")]
        assert sum(file.st_blocks * 512 for file in files) == store._index.totals().file_bytes
        small = sum(part.size for part in parts if part.size <= 2 * KIB)
        assert sum(file.st_size for file in files) == expected - small


def stored_bytes(index: Index) -> int:
    """Of blobs."""
    return sum(record.stored for key, record in index.keys(limit=10_000) if key[0] in (1, 9))


@bounded
@given(
    st.integers(0, 9),
    st.sampled_from([0, 1, 500, 5_000, 30_000]),
    st.lists(st.integers(0, 30_000), max_size=12),
    st.sampled_from([UNKNOWN, FAST_CDC, 2]),
)
def test_any_cuts_make_up_their_blob_and_nothing_else(
    seed: int, size: int, at: list[int], function: int
) -> None:
    data = some(size, seed)
    bounds = sorted({0, size, *(cut for cut in at if cut < size)})
    parts = [data[a:b] for a, b in itertools.pairwise(bounds)]
    with closing(MemoryStore()) as store, closing(Chunks(store, AVERAGE)) as chunks:
        sent = put(store, *parts)
        blob = digests.of(data)
        backwards = digests.of(b"".join(reversed(parts)))
        if backwards != blob:
            with pytest.raises(DigestMismatch):
                chunks.splice(backwards, sent, function).wait(PATIENCE)
            assert not store.contains(backwards)
        chunks.splice(blob, sent, function).wait(PATIENCE)
        assert read(store, blob) == data
        for kind in (UNKNOWN, FAST_CDC, 2):
            split = chunks.split(blob, kind).wait(PATIENCE)
            assert joined(store, split.keys) == data
            if split.function == FAST_CDC:
                lengths = [digests.from_key(key).size for key in split.keys]
                assert lengths == list(plain_cuts(data, AVERAGE))


def test_what_a_client_cut_alike_is_known_without_cutting(
    store: BlobStore, chunks: Chunks, metrics: Metrics
) -> None:
    data = some(100_000)
    sent = put(store, *pieces(data))
    blob = digests.of(data)
    chunks.splice(blob, sent, UNKNOWN).wait(PATIENCE)
    split = chunks.split(blob, FAST_CDC)
    assert split.done
    assert split.result() == ([part.key for part in sent], FAST_CDC)
    assert value(metrics, families.SPLICES, "joined") == 1
    assert value(metrics, families.SPLITS, "cut") == 0


def test_another_average_makes_other_lists(store: BlobStore, chunks: Chunks) -> None:
    """As a server that was started with another one does."""
    data = some(100_000)
    (blob,) = put(store, data)
    before = chunks.split(blob, FAST_CDC).wait(PATIENCE)
    with closing(Chunks(store, 16 * KIB)) as other:
        behind = other.split(blob, FAST_CDC).wait(PATIENCE)
    assert joined(store, behind.keys) == data
    assert len(behind.keys) < len(before.keys)
    assert chunks.split(blob, FAST_CDC).wait(PATIENCE) == before


def test_functions_are_apart(store: BlobStore, chunks: Chunks) -> None:
    data = some(50_000)
    for function in (SHA256, BLAKE3):
        blob = digests.of(data, function)
        store.put([(blob, data)])[0].wait(PATIENCE)
        split = chunks.split(blob, FAST_CDC).wait(PATIENCE)
        assert {digests.from_key(key).function for key in split.keys} == {function}
        assert joined(store, split.keys) == data


def test_many_who_ask_for_one_blob_wait_for_one_cut(
    store: BlobStore, chunks: Chunks, metrics: Metrics
) -> None:
    (blob,) = put(store, some(400_000))
    asked = [chunks.split(blob, FAST_CDC) for _ in range(50)]
    assert len({tuple(one.wait(PATIENCE).keys) for one in asked}) == 1
    assert value(metrics, families.SPLITS, "cut") == 1


def test_it_goes_on_if_nobody_waits(store: BlobStore, chunks: Chunks) -> None:
    data = some(200_000)
    sent = put(store, *pieces(data))
    chunks.splice(digests.of(data), sent, FAST_CDC)
    until(lambda: store.contains(digests.of(data)))
    assert read(store, digests.of(data)) == data


def test_what_is_refused_leaves_nothing(tmp_path: Path) -> None:
    data = some(100_000)
    with local(tmp_path) as store, closing(Chunks(store, AVERAGE)) as chunks:
        sent = put(store, *pieces(data))
        blob = digests.of(data)
        with pytest.raises(InvalidArgument, match=f"expected {blob.size}"):
            chunks.splice(blob, sent[1:], FAST_CDC)
        absent = digests.of(some(sent[3].size, 2))
        with pytest.raises(NotFound, match=absent.hex):
            chunks.splice(blob, [*sent[:3], absent, *sent[4:]], FAST_CDC)
        with pytest.raises(NotFound, match=blob.hex):
            chunks.split(blob, FAST_CDC)
        wrong = digests.of(some(100_000, 3))
        with pytest.raises(DigestMismatch, match=wrong.hex):
            chunks.splice(wrong, sent, FAST_CDC).wait(PATIENCE)
        assert not store.contains(wrong)
        assert [*(tmp_path / "store" / "staging").glob("*/*")] == []
        put(store, data)
        with pytest.raises(AlreadyExists, match=absent.hex):
            chunks.splice(blob, [*sent[:3], absent, *sent[4:]], FAST_CDC)


def test_a_chunk_that_turns_out_to_be_damaged(tmp_path: Path) -> None:
    data = some(100_000)
    with local(tmp_path) as store, closing(Chunks(store, AVERAGE)) as chunks:
        sent = put(store, *pieces(data))
        bad = sent[len(sent) // 2]
        (path,) = (tmp_path / "store" / "blobs").glob(f"*/*/{bad.hex}.*")
        os.truncate(path, 100)
        blob = digests.of(data)
        with pytest.raises(DataLoss, match=bad.hex):
            chunks.splice(blob, sent, FAST_CDC).wait(PATIENCE)
        assert [*(tmp_path / "store" / "staging").glob("*/*")] == []
        # The client finds it missing, and sends it again.
        with pytest.raises(NotFound, match=bad.hex):
            chunks.splice(blob, sent, FAST_CDC)
        put(store, pieces(data)[len(sent) // 2])
        chunks.splice(blob, sent, FAST_CDC).wait(PATIENCE)
        assert read(store, blob) == data


def test_lists_that_fit_into_no_message(
    store: BlobStore, chunks: Chunks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LIST_BYTES", 20 * 76)
    long, longer = repeating(25), some(200_000, 2)
    blobs = put(store, long, longer)
    sent = put(store, *pieces(longer))
    # Told by the size, and by the cuts.
    assert len(longer) // AVERAGE > 20 >= len(long) // AVERAGE
    assert len(pieces(long)) == 25
    for blob in blobs:
        with pytest.raises(NotFound, match="no list of chunks"):
            chunks.split(blob, FAST_CDC).wait(PATIENCE)
    # Sent in chunks, it is taken all the same.
    twice = digests.of(longer + longer)
    chunks.splice(twice, sent + sent, FAST_CDC).wait(PATIENCE)
    assert read(store, twice) == longer + longer
    with pytest.raises(NotFound, match="no list of chunks"):
        chunks.split(twice, FAST_CDC).wait(PATIENCE)


class Slow(MemoryStore):
    """Whoever opens a blob waits."""

    def __init__(self) -> None:
        super().__init__()
        self.opening = threading.Semaphore(0)
        self.go_on = threading.Event()

    def open(self, digest: Digest, /) -> Blob:
        self.opening.release()
        assert self.go_on.wait(PATIENCE)
        return super().open(digest)


def test_an_end_ends_what_runs_and_what_waits() -> None:
    store = Slow()
    chunks = Chunks(store, AVERAGE)
    blobs = put(store, *(some(50_000, seed) for seed in range(4)))
    pending = [chunks.split(blob, FAST_CDC) for blob in blobs]
    assert all(store.opening.acquire(timeout=PATIENCE) for _ in range(module.THREADS))
    closing_down = threading.Thread(target=chunks.close)
    closing_down.start()
    until(lambda: chunks._background.ended)
    store.go_on.set()
    closing_down.join(PATIENCE)
    assert not closing_down.is_alive()
    for one in pending:
        with pytest.raises(StoreClosed):
            one.wait(PATIENCE)
    with pytest.raises(LimitExceeded):
        chunks.split(blobs[0], FAST_CDC)


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUE", 3)
    store = Slow()
    with closing(Chunks(store, AVERAGE)) as chunks:
        blobs = put(store, *(some(9_000, seed) for seed in range(4)))
        pending = [chunks.split(blob, FAST_CDC) for blob in blobs[:3]]
        with pytest.raises(LimitExceeded, match="3 at most"):
            chunks.split(blobs[3], FAST_CDC)
        # One that is under way is nothing more.
        assert chunks.split(blobs[0], FAST_CDC) is pending[0]
        store.go_on.set()
        for one in pending:
            one.wait(PATIENCE)
        assert chunks.split(blobs[3], FAST_CDC).wait(PATIENCE).keys


def test_what_others_have_done_meanwhile_is_not_done_again(metrics: Metrics) -> None:
    """Another process, or a client that sent the blob whole."""
    store = Slow()
    with closing(Chunks(store, AVERAGE, metrics)) as chunks:
        before = put(store, *(some(9_000, seed) for seed in range(module.THREADS)))
        first, second = some(50_000, 8), some(50_000, 9)
        busy = [chunks.split(blob, FAST_CDC) for blob in before]
        (one,) = put(store, first)
        split = chunks.split(one, FAST_CDC)
        two = digests.of(second)
        splice = chunks.splice(two, put(store, *pieces(second)), FAST_CDC)
        there = Split([part.key for part in put(store, *pieces(first))], FAST_CDC)
        chunks._keep(one, there)
        put(store, second)
        store.go_on.set()
        for each in busy:
            each.wait(PATIENCE)
        assert split.wait(PATIENCE) == there
        splice.wait(PATIENCE)
        assert value(metrics, families.SPLITS, "cut") == len(before)
        assert value(metrics, families.SPLICES, "known") == 1
        assert value(metrics, families.SPLICES, "joined") == 0


# --- eviction


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shelves: Shelves) -> Iterator[House]:
    monkeypatch.setattr(admission, "IDLE_SECONDS", 0.005)
    with ExitStack() as stack:
        stack.enter_context(shelves.lent(tmp_path / "store"))
        stack.callback(prepare(tmp_path / "store").close)
        yield House(tmp_path / "store", Clock(), stack)


def note_uses(store: LocalStore) -> None:
    """As of now; else they are of the moment in which the janitor asks."""
    store._committer.write_touches()
    until(lambda: not store._touched)
    put(store, b"a commit behind theirs")


def test_chunks_go_before_a_blob_that_is_used_and_it_is_whole_without_them(house: House) -> None:
    store = house.open_store()
    keeper = house.janitor(store)
    with closing(Chunks(store, 512 * KIB)) as chunks:
        data = random.Random(1).randbytes(3 << 20)
        (blob,) = put(store, data)
        split = chunks.split(blob, FAST_CDC).wait(PATIENCE)
        note_uses(store)
        house.age(4 * HOUR)
        store.contains(blob)
        fill(store)
        house.run(keeper)
        assert store._index.contains(blob.key)
        gone = [key for key in split.keys if not store._index.contains(key)]
        assert gone
        assert read(store, blob) == data
        # No list is given out that names what is gone. Chunks make room by what was not used since.
        house.age(4 * HOUR)
        again = chunks.split(blob, FAST_CDC)
        serve(house, keeper, again)  # type: ignore[arg-type]
        assert again.result() == split
        assert store.missing(split.keys) == []


def test_a_list_that_is_used_keeps_its_chunks(house: House) -> None:
    store = house.open_store()
    keeper = house.janitor(store)
    with closing(Chunks(store, 512 * KIB)) as chunks:
        old, used = put(store, *(random.Random(n).randbytes(3 << 20) for n in range(2)))
        lists = [chunks.split(blob, FAST_CDC).wait(PATIENCE) for blob in (old, used)]
        note_uses(store)
        house.age(4 * HOUR)
        assert chunks.split(used, FAST_CDC).done
        fill(store)
        house.run(keeper)
        unused = [old.key, *lists[0].keys]
        assert [key for key in unused if not store._index.contains(key)]
        assert store.missing([used.key, *lists[1].keys]) == []
        assert chunks.split(used, FAST_CDC).result() == lists[1]


def test_whatever_a_flood_evicts_blobs_are_whole_and_lists_are_right(house: House) -> None:
    store = house.open_store()
    keeper = house.janitor(store, min_age=0)
    rng = random.Random(5)
    data = bytearray(rng.randbytes(3 << 20))
    contents: dict[Digest, bytes] = {}
    with closing(Chunks(store, 256 * KIB)) as chunks:
        for number in range(20):
            house.age(60)
            # Versions, each with something new of its own.
            at = rng.randrange(len(data) - (1 << 20))
            data[at : at + (1 << 19)] = rng.randbytes(1 << 19)
            content = bytes(data)
            blob = digests.of(content)
            contents[blob] = content
            serve(house, keeper, store.room(len(content)))
            put(store, content)
            if number % 3:
                serve(house, keeper, chunks.split(blob, FAST_CDC))  # type: ignore[arg-type]
            house.run(keeper, 0.1)
        left = [blob for blob in contents if store._index.contains(blob.key)]
        assert 0 < len(left) < len(contents)
        for blob in left:
            if not store._index.contains(blob.key):
                continue
            # Of two that were used in one minute, the one that is cut might go for the other.
            house.age(60)
            assert read(store, blob) == contents[blob]
            while not (split := chunks.split(blob, FAST_CDC)).done:
                serve(house, keeper, split)  # type: ignore[arg-type]
            assert joined(store, split.result().keys) == contents[blob]


class Losing(MemoryStore):
    """Loses a chunk whenever a list is kept, so many times."""

    def __init__(self, losses: int) -> None:
        super().__init__()
        self.losses = losses

    def put_value(self, namespace: str, key: str, value: NewValue, /) -> Pending[None]:
        if self.losses:
            self.losses -= 1
            del self._blobs[value.references[0]]
        return super().put_value(namespace, key, value)


def test_a_chunk_that_goes_while_its_blob_is_cut_is_made_again() -> None:
    data = some(60_000)
    store = Losing(module.TRIES - 1)
    with closing(Chunks(store, AVERAGE)) as chunks:
        (blob,) = put(store, data)
        split = chunks.split(blob, FAST_CDC).wait(PATIENCE)
        assert joined(store, split.keys) == data


def test_a_store_that_keeps_losing_chunks_gives_no_list() -> None:
    store = Losing(module.TRIES)
    with closing(Chunks(store, AVERAGE)) as chunks:
        (blob,) = put(store, some(60_000))
        with pytest.raises(NoSpace, match=blob.hex):
            chunks.split(blob, FAST_CDC).wait(PATIENCE)
