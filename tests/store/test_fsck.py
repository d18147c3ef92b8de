"""Each thing that fsck finds: found, left alone without repair, mended with it, gone after it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from cas import digest as digests
from cas.digest import FUNCTIONS, Digest
from cas.errors import NotFound
from cas.index import upkeep
from cas.index.lmdb import Index
from cas.index.records import action_key
from cas.index.upkeep import Mending, Stray
from cas.store import fsck
from cas.store.directory import prepare
from cas.store.files import Files
from cas.store.fsck import Finding, Report
from cas.store.interface import NewAction
from cas.store.layout import Layout
from cas.store.local import LocalStore, open_store
from tests.shelves import Shelves

SMALL = b"small" * 10
LARGE = os.urandom(200_000)
OTHER = os.urandom(100_000)
NOW = 1_900_000_000.0


@pytest.fixture
def layout(tmp_path: Path, shelves: Shelves) -> Iterator[Layout]:
    with shelves.lent(tmp_path / "store"):
        yield _filled(tmp_path)


def _filled(tmp_path: Path) -> Layout:
    prepare(tmp_path / "store").close()
    layout = Layout(tmp_path / "store")
    with opened(layout) as store:
        for data in (SMALL, LARGE):
            put(store, data)
        action = NewAction(b"result", [digests.of(LARGE).key], True)
        store.put_action("main", digests.of(b"action"), action).wait(30)
    return layout


@contextmanager
def opened(layout: Layout) -> Iterator[LocalStore]:
    with closing(open_store(layout.root)) as store:
        yield store


@contextmanager
def indexed(layout: Layout) -> Iterator[Index]:
    with closing(Index(layout.index)) as index:
        yield index


def put(store: LocalStore, data: bytes) -> Digest:
    digest = digests.of(data)
    store.put([(digest, data)])[0].wait(30)
    return digest


def read(store: LocalStore, digest: Digest) -> bytes:
    with closing(store.open(digest)) as blob:
        data = bytearray(blob.size)
        blob.read_into(memoryview(data), 0)
        return bytes(data)


def run(layout: Layout, *, repair: bool = False) -> tuple[Report, list[Finding]]:
    findings: list[Finding] = []
    with indexed(layout) as index:
        report = fsck.check(layout, index, Files(), repair=repair, now=NOW, tell=findings.append)
    return report, findings


def blob_file(layout: Layout, data: bytes) -> Path:
    digest = digests.of(data)
    with indexed(layout) as index:
        record = index.record(digest.key)
    assert record is not None
    return Path(layout.blob(digest, record.generation))


def lose_file(layout: Layout) -> None:
    blob_file(layout, LARGE).unlink()


def cut_file(layout: Layout) -> None:
    os.truncate(blob_file(layout, LARGE), 1000)


def break_record(layout: Layout) -> None:
    with indexed(layout) as index, index.writing() as tables:
        tables.txn.put(digests.of(LARGE).key, b"\xff" * 26, db=tables.meta)


def break_key(layout: Layout) -> None:
    with indexed(layout) as index, index.writing() as tables:
        raw = tables.txn.get(digests.of(LARGE).key, db=tables.meta)
        tables.txn.put(b"\x77no key", raw, db=tables.meta)


def lose_bytes(layout: Layout) -> None:
    with indexed(layout) as index:
        record = index.record(digests.of(SMALL).key)
        assert record is not None
        upkeep.mend(index, Mending(strays=[Stray(upkeep.DATA, record.serial)]))


def lose_order(layout: Layout) -> None:
    with indexed(layout) as index:
        record = index.record(digests.of(SMALL).key)
        assert record is not None
        upkeep.mend(index, Mending(strays=[Stray(upkeep.ORDER, record.serial)]))


def lose_meta(layout: Layout) -> None:
    with indexed(layout) as index, index.writing() as tables:
        tables.txn.delete(digests.of(SMALL).key, db=tables.meta)


def break_action(layout: Layout) -> None:
    with indexed(layout) as index:
        digest = digests.of(b"action")
        record = index.record(action_key("main", digest.key[:33]))
        assert record is not None
        with index.writing() as tables:
            tables.txn.put(record.serial.to_bytes(8, "little"), b"short", db=tables.data)


def lower_serial(layout: Layout) -> None:
    with indexed(layout) as index, index.writing() as tables:
        tables.txn.put(b"next serial", bytes(8))


def add_orphan(layout: Layout) -> None:
    Path(layout.blob(digests.of(OTHER), 7)).write_bytes(OTHER)


def add_half_orphan(layout: Layout) -> None:
    Path(layout.blob(digests.of(OTHER), 7)).write_bytes(OTHER[:5000])


def add_wrong_orphan(layout: Layout) -> None:
    Path(layout.blob(digests.of(OTHER), 7)).write_bytes(bytes(len(OTHER)))


def add_second_copy(layout: Layout) -> None:
    Path(layout.blob(digests.of(LARGE), 7)).write_bytes(LARGE)


def add_copy(layout: Layout) -> None:
    Path(layout.upload("u") + "." + "0" * 16).write_bytes(b"half")


def add_second_name(layout: Layout) -> None:
    os.link(blob_file(layout, LARGE), layout.upload("u"))


def add_second_name_of_orphan(layout: Layout) -> None:
    add_orphan(layout)
    os.link(layout.blob(digests.of(OTHER), 7), layout.upload("u"))


def add_foreign_files(layout: Layout) -> None:
    (layout.blobs / "sha256" / "00" / "thesis.tex").write_text("years of work")
    (layout.staging / "notes").write_text("of mine")


def leave_format(layout: Layout) -> None:
    (layout.root / "format.new").write_text("ca")


CASES: list[tuple[Callable[[Layout], None], dict[str, int], set[bytes]]] = [
    (lose_file, {fsck.LOST_FILE: 1}, {SMALL}),
    (cut_file, {fsck.WRONG_SIZE: 1}, {SMALL}),
    (break_record, {fsck.BAD_RECORD: 1, fsck.STRAY: 1, fsck.ORPHAN: 1}, {SMALL, LARGE}),
    (break_key, {fsck.BAD_RECORD: 1}, {SMALL, LARGE}),
    (lose_bytes, {fsck.BAD_RECORD: 1}, {LARGE}),
    (lose_order, {fsck.UNLISTED: 1}, {SMALL, LARGE}),
    (lose_meta, {fsck.STRAY: 2}, {LARGE}),
    (break_action, {fsck.BAD_RECORD: 1}, {SMALL, LARGE}),
    (lower_serial, {fsck.SERIAL: 1}, {SMALL, LARGE}),
    (add_orphan, {fsck.ORPHAN: 1}, {SMALL, LARGE, OTHER}),
    (add_half_orphan, {fsck.ORPHAN: 1}, {SMALL, LARGE}),
    (add_wrong_orphan, {fsck.ORPHAN: 1}, {SMALL, LARGE}),
    (add_second_copy, {fsck.ORPHAN: 1}, {SMALL, LARGE}),
    (add_copy, {fsck.COPY: 1}, {SMALL, LARGE}),
    (add_second_name, {fsck.SECOND_NAME: 1}, {SMALL, LARGE}),
    (add_second_name_of_orphan, {fsck.ORPHAN: 1}, {SMALL, LARGE, OTHER}),
    (add_foreign_files, {fsck.FOREIGN: 2}, {SMALL, LARGE}),
    (leave_format, {fsck.UNFINISHED: 1}, {SMALL, LARGE}),
]


@pytest.mark.parametrize(
    ("damage", "expected", "left"), CASES, ids=lambda case: getattr(case, "__name__", "")
)
def test_found_mended_and_gone(
    layout: Layout, damage: Callable[[Layout], None], expected: dict[str, int], left: set[bytes]
) -> None:
    damage(layout)
    report, findings = run(layout)
    assert dict(report.found) == expected
    assert report.left == sum(expected.values())
    assert not any(finding.repair for finding in findings)
    report, findings = run(layout, repair=True)
    for kind, count in expected.items():
        assert report.found[kind] == count
    assert report.left == 0
    assert all(finding.repair for finding in findings)
    report, _ = run(layout)
    assert not report.found
    with opened(layout) as store:
        for data in (SMALL, LARGE, OTHER):
            digest = digests.of(data)
            assert store.contains(digest) == (data in left)
            if data in left:
                assert read(store, digest) == data
            else:
                with pytest.raises(NotFound):
                    store.open(digest)
            put(store, data)
            assert read(store, digest) == data


def test_every_kind_is_explained() -> None:
    kinds = {value for name, value in vars(fsck).items() if name.isupper() and type(value) is str}
    assert kinds == set(fsck.KINDS)
    assert {kind for _, expected, _ in CASES for kind in expected} == kinds


def test_a_sound_store_is_clean(layout: Layout) -> None:
    with opened(layout) as store:
        upload = store.upload("u", digests.of(OTHER), 0, OTHER[:500])
        upload.suspend()
    report, findings = run(layout)
    assert findings == []
    assert (report.entries, report.files, report.file_bytes) == (3 + len(FUNCTIONS), 1, len(LARGE))
    assert (report.uploads, report.upload_bytes) == (1, 500)


def test_foreign_bytes_are_kept(layout: Layout) -> None:
    add_foreign_files(layout)
    cut_file(layout)
    report, _ = run(layout, repair=True)
    assert report.quarantined == 3
    kept = {path.read_bytes()[:13] for path in layout.quarantine.iterdir()}
    assert kept == {b"years of work", b"of mine", LARGE[:13]}


def test_an_entered_orphan_is_as_old_as_its_file(layout: Layout) -> None:
    add_orphan(layout)
    os.utime(layout.blob(digests.of(OTHER), 7), (NOW, NOW - 6000))
    run(layout, repair=True)
    with indexed(layout) as index:
        record = index.record(digests.of(OTHER).key)
    assert record is not None
    assert record.written == (NOW - 6000) // 60


def test_many_entries_and_pages(layout: Layout) -> None:
    with opened(layout) as store:
        blobs = [b"%d" % number for number in range(2 * upkeep.PAGE + 10)]
        for pending in store.put([(digests.of(data), data) for data in blobs]):
            pending.wait(30)
    with indexed(layout) as index, index.writing() as tables:
        for data in blobs[::2]:
            tables.txn.delete(digests.of(data).key, db=tables.meta)
    report, _ = run(layout, repair=True)
    assert report.found == {fsck.STRAY: len(blobs)}
    report, _ = run(layout)
    assert not report.found
    assert report.entries == 3 + len(FUNCTIONS) + len(blobs) // 2


def test_progress_reaches_its_end(layout: Layout) -> None:
    seen: dict[str, tuple[int, int]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        assert done <= total
        seen[stage] = (done, total)

    with indexed(layout) as index:
        fsck.check(layout, index, Files(), repair=False, now=NOW, progress=progress)
    assert list(seen) == ["records", "rows", "files", "staging"]
    assert all(done == total for done, total in seen.values())
