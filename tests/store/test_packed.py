"""Blobs stored as zstd: the format, reads at any offset, and everything that looks at files."""

from __future__ import annotations

import os
import random
import shutil
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import zstandard

from cas import digest as digests
from cas.digest import Digest
from cas.errors import DataLoss, DigestMismatch, NotFound
from cas.index import aging
from cas.index.records import FILE, INLINE, PACKED, PACKED_INLINE, Record
from cas.store import scrub, stat
from cas.store.blobs import PackedBlob
from cas.store.directory import prepare
from cas.store.files import Files
from cas.store.layout import Layout, parse_blob
from cas.store.local import LocalStore, StoreOptions, open_store
from cas.store.packed import FRAME_BYTES, PackedReader
from cas.store.reindex import reindex
from cas.store.verifying import VerifyingStore
from tests.store.conftest import gathering
from tests.store.test_fsck import NOW, indexed, put, read, run

ZSTD = StoreOptions(compression="zstd")
RANDOM = random.Random(4)
TEXT = RANDOM.randbytes(350_000).hex().encode()
"""Three frames, the last one short."""
NOISE = RANDOM.randbytes(700_000)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    prepare(tmp_path / "store").close()
    return Layout(tmp_path / "store")


@pytest.fixture
def store(layout: Layout) -> Iterator[LocalStore]:
    with closing(open_store(layout.root, ZSTD)) as store:
        yield store


def record(where: Layout | LocalStore, digest: Digest) -> Record:
    """An entry of a store that is closed, or of one that is open: the index opens once."""
    if isinstance(where, LocalStore):
        found = where._index.record(digest.key)
    else:
        with indexed(where) as index:
            found = index.record(digest.key)
    assert found is not None
    return found


def file_of(where: Layout | LocalStore, digest: Digest) -> Path:
    layout = where._layout if isinstance(where, LocalStore) else where
    return Path(layout.copy(digest, record(where, digest)))


def upload(store: LocalStore, data: bytes, step: int, *, pause: int = 0) -> Digest:
    digest = digests.of(data)
    upload = store.upload("u", digest, 0, data[:step])
    for at in range(step, len(data), step):
        if pause and upload.offset >= pause:
            upload.suspend()
            upload = store.upload("u", digest, at, b"")
            pause = 0
        if upload.append(data[at : at + step]):
            upload.flush()
    upload.finish().wait(30)
    return digest


WAYS = ["put", "upload", "an upload that is flushed", "one that was paused", "spool"]


def written(store: LocalStore, data: bytes, way: str) -> Digest:
    if way == "put":
        return put(store, data)
    if way == "upload":
        return upload(store, data, 100_000)
    if way == "an upload that is flushed":
        digest = digests.of(data)
        held = store.upload("u", digest, 0, data[:10])
        for at in range(10, len(data), 100_000):
            held.append(data[at : at + 100_000])
            held.flush()
        held.finish().wait(30)
        return digest
    if way == "one that was paused":
        return upload(store, data, 100_000, pause=200_000)
    spool = store.spool(digests.SHA256, None)
    for at in range(0, len(data), 100_000):
        spool.append(data[at : at + 100_000])
        spool.flush()
    digest, pending = spool.finish()
    pending.wait(30)
    return digest


@pytest.mark.parametrize("way", WAYS)
def test_any_zstd_tool_reads_the_file(layout: Layout, store: LocalStore, way: str) -> None:
    """The seekable format: frames, and a skippable one behind them (RFC 8878, 3.1.2)."""
    digest = written(store, TEXT, way)
    path = file_of(store, digest)
    raw = path.read_bytes()
    assert path.suffix == ".zst"
    assert parse_blob(path, 1) == (digest, record(store, digest).generation, True)
    reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
    assert reader.read() == TEXT
    assert record(store, digest).stored == len(raw) < 0.7 * len(TEXT)
    assert read(store, digest) == TEXT
    # Nothing is left in staging.
    assert not [path for path in layout.staging.rglob("*") if path.is_file()]


def test_the_table_is_that_of_the_seekable_format(layout: Layout, store: LocalStore) -> None:
    """contrib/seekable_format/zstd_seekable_compression_format.md, version 0.1.0."""
    raw = file_of(store, put(store, TEXT)).read_bytes()
    count, flags, magic = struct.unpack("<IBI", raw[-9:])
    assert (count, flags, magic) == (3, 0, 0x8F92EAB1)
    size = 8 * count + 9
    head = struct.unpack("<II", raw[-size - 8 : -size])
    assert head == (0x184D2A5E, size)
    at, content = 0, b""
    for packed, plain in struct.iter_unpack("<II", raw[-size:-9]):
        frame = zstandard.decompress(raw[at : at + packed])
        assert len(frame) == plain <= FRAME_BYTES
        content += frame
        at += packed
    assert at == len(raw) - size - 8
    assert content == TEXT


@pytest.mark.parametrize("way", WAYS)
def test_what_does_not_shrink_is_stored_as_it_is(
    layout: Layout, store: LocalStore, way: str
) -> None:
    digest = written(store, NOISE, way)
    assert record(store, digest).where == FILE
    assert file_of(store, digest).read_bytes() == NOISE
    assert read(store, digest) == NOISE
    assert not [path for path in layout.staging.rglob("*") if path.is_file()]


def test_a_read_decodes_one_frame_at_most(store: LocalStore) -> None:
    """A 64 MiB blob, 100 random offsets."""
    piece = TEXT[: 1 << 19]
    data = b"".join(bytes((n,)) + piece[1:] for n in range(128))
    digest = put(store, data)
    rng = random.Random(5)
    for _ in range(100):
        with closing(store.open(digest)) as blob:
            assert isinstance(blob, PackedBlob)
            offset = rng.randrange(len(data))
            # What of it is in one frame.
            view = memoryview(bytearray(min(1000, -offset % FRAME_BYTES or FRAME_BYTES)))
            count = blob.read_into(view, offset)
            assert view[:count] == data[offset : offset + len(view)]
            assert blob.decoded == 1


def test_a_sequence_of_reads_decodes_each_frame_once(store: LocalStore) -> None:
    digest = put(store, TEXT)
    with closing(store.open(digest)) as blob:
        assert isinstance(blob, PackedBlob)
        view = memoryview(bytearray(10_000))
        at = 0
        while count := blob.read_into(view, at):
            assert view[:count] == TEXT[at : at + count]
            at += count
        assert at == len(TEXT)
        assert blob.decoded == 3
        assert blob.read_into(view, 0, wait=False) == -1
        assert blob.fileno() is None


def test_it_is_handed_out_as_it_is_stored(layout: Layout, store: LocalStore) -> None:
    digest = put(store, TEXT)
    packed = store.open(digest).packed()
    assert packed is not None
    with closing(packed):
        data = bytearray(packed.size)
        assert packed.read_into(memoryview(data), 0) == len(data)
        assert data == file_of(store, digest).read_bytes()
        descriptor = packed.fileno()
        assert descriptor is not None
        assert os.fstat(descriptor).st_size == packed.size
    with closing(store.open(put(store, NOISE))) as blob:
        assert blob.packed() is None


def test_the_option_may_change(layout: Layout) -> None:
    """What is stored stays as it is, and readable; an older store opens unchanged."""
    with closing(open_store(layout.root)) as store:
        plain = put(store, TEXT)
    with closing(open_store(layout.root, ZSTD)) as store:
        assert read(store, plain) == TEXT
        packed = put(store, TEXT[1:])
        # Written again, it is the one that was there.
        assert put(store, TEXT) == plain
    with closing(open_store(layout.root)) as store:
        assert read(store, plain) == TEXT
        assert read(store, packed) == TEXT[1:]
    assert record(layout, plain).where == FILE
    assert record(layout, packed).where == PACKED
    assert not run(layout)[0].found


def test_a_blob_is_verified_before_it_is_visible(store: LocalStore) -> None:
    digest = digests.of(TEXT)
    held = store.upload("u", digest, 0, b"x" + TEXT[1:])
    with pytest.raises(DigestMismatch):
        held.finish()
    assert not store.contains(digest)
    assert store.committed_size("u") is None


# ---- In the index

SMALL = TEXT[:5_000]


def test_small_blobs_are_frames_in_the_index(layout: Layout, store: LocalStore) -> None:
    digest, tiny, noise = put(store, SMALL), put(store, TEXT[:300]), put(store, NOISE[:5_000])
    gathered = gathering(store, "g", digests.of(SMALL[1:]))
    gathered.append(SMALL[1:])
    gathered.finish().wait(30)
    for data in (SMALL, SMALL[1:], TEXT[:300], NOISE[:5_000]):
        assert read(store, digests.of(data)) == data
        assert store.contains(digests.of(data))
    for packed in (digest, digests.of(SMALL[1:])):
        assert record(store, packed).where == PACKED_INLINE
        assert record(store, packed).stored < 0.7 * packed.size
        assert store.read_small(packed) is None
        found = store.look_up(packed.key[:33])
        assert found == (packed, None, None)
    for plain in (tiny, noise):
        assert record(store, plain).where == INLINE
    frame = store.open(digest).packed()
    assert frame is not None
    raw = bytearray(frame.size)
    frame.read_into(memoryview(raw), 0)
    assert zstandard.decompress(bytes(raw)) == SMALL
    figures = stat.take(layout, store._index, now=NOW)
    assert figures.packed_inline_blobs.count == 2
    assert figures.packed_content_bytes == 2 * len(SMALL) - 1


def flip_frame(layout: Layout, digest: Digest) -> bytes:
    found = record(layout, digest)
    with indexed(layout) as index:
        raw = bytearray(index.stored(found) or b"")
        raw[2] ^= 1
        with index.writing() as tables:
            tables.txn.put(found.serial.to_bytes(8, "little"), bytes(raw), db=tables.data)
    return bytes(raw)


@pytest.mark.parametrize("kind", [LocalStore, VerifyingStore])
def test_a_damaged_frame_is_dropped_and_kept(layout: Layout, kind: type[LocalStore]) -> None:
    with closing(open_store(layout.root, ZSTD, kind=kind)) as store:
        digest, other = put(store, SMALL), put(store, SMALL[1:])
    raw = flip_frame(layout, digest)
    with closing(open_store(layout.root, ZSTD, kind=kind)) as store:
        assert read(store, other) == SMALL[1:]
        with pytest.raises(NotFound if kind is VerifyingStore else DataLoss):
            read(store, digest)
        assert not store.contains(digest)
    [kept] = layout.quarantine.iterdir()
    assert kept.read_bytes() == raw


def test_the_scrub_and_fsck_look_into_frames(layout: Layout) -> None:
    with closing(open_store(layout.root, ZSTD)) as store:
        digest = put(store, SMALL)
    assert not run(layout)[0].found
    with indexed(layout) as index:
        assert not [piece.bad for piece in scrub.walk(layout, index, Files()) if piece.bad]
    flip_frame(layout, digest)
    with indexed(layout) as index:
        [bad] = [piece.bad for piece in scrub.walk(layout, index, Files()) if piece.bad]
    assert str(digest) in bad


# ---- Damage


def flip(raw: bytearray) -> None:
    raw[len(raw) // 2] ^= 1


def cut(raw: bytearray) -> None:
    del raw[-1000:]


def lengthen(raw: bytearray) -> None:
    raw += b"x"


def break_table(raw: bytearray) -> None:
    raw[-20] ^= 1


def claim_more(raw: bytearray) -> None:
    """A frame whose header claims 2 GiB: nobody is to ask for so much memory."""
    raw[:9] = b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", 2**31 - 1)


DAMAGE = {f.__name__: f for f in (flip, cut, lengthen, break_table, claim_more)}


def damage(where: Layout | LocalStore, digest: Digest, kind: str) -> bytes:
    path = file_of(where, digest)
    raw = bytearray(path.read_bytes())
    DAMAGE[kind](raw)
    path.write_bytes(raw)
    return bytes(raw)


# A byte that changed may decode: --verify-reads and the scrub find it.
@pytest.mark.parametrize("kind", [kind for kind in DAMAGE if kind != "flip"])
def test_damage_is_told_dropped_and_kept(layout: Layout, store: LocalStore, kind: str) -> None:
    digest = put(store, TEXT)
    raw = damage(store, digest, kind)
    with pytest.raises(DataLoss, match="damaged on disk"):
        read(store, digest)
    assert not store.contains(digest)
    [kept] = layout.quarantine.iterdir()
    assert kept.read_bytes() == raw


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_scrub_finds_it(layout: Layout, kind: str) -> None:
    with closing(open_store(layout.root, ZSTD)) as store:
        digest, other = put(store, TEXT), put(store, TEXT[1:])
    damage(layout, digest, kind)
    with indexed(layout) as index:
        bad = [piece.bad for piece in scrub.walk(layout, index, Files()) if piece.bad]
    assert len(bad) == 1
    assert str(digest) in bad[0]
    with closing(open_store(layout.root)) as store:
        assert not store.contains(digest)
        assert read(store, other) == TEXT[1:]


@pytest.mark.parametrize("kind", DAMAGE)
def test_verified_reads_hand_out_nothing_of_it(layout: Layout, kind: str) -> None:
    with closing(open_store(layout.root, ZSTD, kind=VerifyingStore)) as store:
        digest, other = put(store, TEXT), put(store, TEXT[1:])
        damage(store, digest, kind)
        assert read(store, other) == TEXT[1:]
        with closing(store.open(digest)) as blob, pytest.raises(NotFound):
            blob.read_into(memoryview(bytearray(10)), 0)
        assert not store.contains(digest)


def test_random_damage_never_does_more(layout: Layout, store: LocalStore) -> None:
    """Any file: a clean error, or as many bytes as there should be."""
    whole = file_of(store, put(store, TEXT)).read_bytes()
    rng = random.Random(6)
    path = layout.root / "damaged"
    errors = 0
    for _ in range(300):
        raw = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(raw) - 60, len(raw)) if rng.random() < 0.5 else 0
            raw[at or rng.randrange(len(raw))] = rng.randrange(256)
        path.write_bytes(raw[: rng.choice([len(raw), rng.randrange(len(raw))])])
        fd = os.open(path, os.O_RDONLY)
        try:
            reader = PackedReader(Files(), fd, len(TEXT))
            assert reader.read_into(memoryview(bytearray(len(TEXT))), 0) == len(TEXT)
        except DataLoss:
            errors += 1
        finally:
            os.close(fd)
    assert errors > 150


# ---- Upkeep


def test_fsck_and_reindex_know_it(layout: Layout) -> None:
    with closing(open_store(layout.root, ZSTD)) as store:
        digest, noise, gone = put(store, TEXT), put(store, NOISE), put(store, TEXT[1:])
    assert not run(layout)[0].found
    shutil.rmtree(layout.index)
    rebuilt = reindex(layout, Files(), now=NOW)
    assert (rebuilt.blobs, rebuilt.refused) == (3, 0)
    assert record(layout, digest).where == PACKED
    assert record(layout, digest).stored == file_of(layout, digest).stat().st_size
    file_of(layout, gone).unlink()
    assert dict(run(layout)[0].found) == {"lost file": 1}
    run(layout, repair=True)
    with closing(open_store(layout.root)) as store:
        assert read(store, digest) == TEXT
        assert read(store, noise) == NOISE
        assert not store.contains(gone)


@pytest.mark.parametrize("kind", [None, *DAMAGE])
def test_fsck_enters_orphans_that_are_right(layout: Layout, kind: str | None) -> None:
    with closing(open_store(layout.root, ZSTD)) as store:
        digest = put(store, TEXT)
    if kind is not None:
        damage(layout, digest, kind)
    found = record(layout, digest)
    with indexed(layout) as index:
        index.remove([(digest.key, found)])
    assert dict(run(layout)[0].found) == {"orphan file": 1}
    _, findings = run(layout, repair=True)
    assert [finding.repair for finding in findings] == ["removed" if kind else "entered"]
    assert not run(layout)[0].found
    with closing(open_store(layout.root)) as store:
        assert store.contains(digest) is (kind is None)
        if kind is None:
            assert read(store, digest) == TEXT


def test_fsck_finds_another_size(layout: Layout) -> None:
    with closing(open_store(layout.root, ZSTD)) as store:
        digest = put(store, TEXT)
    damage(layout, digest, "cut")
    assert dict(run(layout)[0].found) == {"wrong size": 1}


def test_what_it_takes_is_counted(layout: Layout) -> None:
    """Space, stat and removal count what is on disk."""
    with closing(open_store(layout.root, ZSTD)) as store:
        digest = put(store, TEXT)
        path = file_of(store, digest)
        size = path.stat().st_size
        index = store._index
        assert 0 <= index.totals().file_bytes - size < 4096
        figures = stat.take(layout, index, now=NOW)
        assert (figures.packed_blobs.count, figures.packed_blobs.bytes) == (1, size)
        assert figures.packed_content_bytes == len(TEXT)
        store.administration().delete_blob(digest)
        assert not path.exists()
        assert index.totals().file_bytes == 0
        assert not aging.condemned(index)


def test_what_a_process_left_is_no_blob(layout: Layout, store: LocalStore) -> None:
    """A broken upload's file of frames is a staged copy, and goes when its stream lets go."""
    digest = digests.of(TEXT)
    held = store.upload("u", digest, 0, TEXT[:300_000])
    held.flush()
    beside = [path for path in layout.staging.rglob("*.*") if path.is_file()]
    assert len(beside) == 1
    assert held.suspend() == 300_000
    assert not beside[0].exists()
    held = store.upload("u", digest, 300_000, TEXT[300_000:])
    held.finish().wait(30)
    assert record(store, digest).where == PACKED
    assert read(store, digest) == TEXT
