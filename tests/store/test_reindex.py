"""A lost or damaged index: refused, told, and made anew from the files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cas import digest as digests
from cas.errors import DataLoss
from cas.index.lmdb import Index
from cas.store.files import Files
from cas.store.interface import NewAction
from cas.store.layout import Layout
from cas.store.local import open_store
from cas.store.reindex import reindex
from tests.store.test_fsck import LARGE, NOW, OTHER, SMALL, opened, put, read, run

LATER = os.urandom(150_000)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    from cas.store.directory import prepare

    prepare(tmp_path / "store").close()
    layout = Layout(tmp_path / "store")
    with opened(layout) as store:
        for data in (SMALL, LARGE, OTHER):
            put(store, data)
        action = NewAction(b"result", [digests.of(LARGE).key], True)
        store.put_action("main", digests.of(b"action"), action).wait(30)
    return layout


def data_file(layout: Layout) -> Path:
    return layout.index / "data.mdb"


def remove(layout: Layout) -> None:
    data_file(layout).unlink()


def remove_all(layout: Layout) -> None:
    shutil.rmtree(layout.index)
    layout.index.mkdir()


def empty(layout: Layout) -> None:
    os.truncate(data_file(layout), 0)


def cut(layout: Layout) -> None:
    os.truncate(data_file(layout), 3 * 4096)


def cut_within_header(layout: Layout) -> None:
    os.truncate(data_file(layout), 100)


def overwrite_with_zeros(layout: Layout) -> None:
    data_file(layout).write_bytes(bytes(data_file(layout).stat().st_size))


def overwrite_with_noise(layout: Layout) -> None:
    data_file(layout).write_bytes(os.urandom(data_file(layout).stat().st_size))


def overwrite_behind_header(layout: Layout) -> None:
    whole = data_file(layout).read_bytes()
    data_file(layout).write_bytes(whole[:8192] + bytes(len(whole) - 8192))


DAMAGES = [
    remove,
    remove_all,
    empty,
    cut,
    cut_within_header,
    overwrite_with_zeros,
    overwrite_with_noise,
    overwrite_behind_header,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_refused_and_made_anew(
    layout: Layout, damage: Callable[[Layout], None]
) -> None:
    damage(layout)
    before = sorted((path.name, path.stat().st_size) for path in layout.index.iterdir())
    with pytest.raises(DataLoss, match=r"the index in .*/index .*`cas reindex`"):
        open_store(layout.root)
    after = sorted((path.name, path.stat().st_size) for path in layout.index.iterdir())
    assert [entry for entry in after if entry[0] != "lock.mdb"] == [
        entry for entry in before if entry[0] != "lock.mdb"
    ]
    rebuilt = reindex(layout, Files(), now=NOW)
    assert (rebuilt.blobs, rebuilt.blob_bytes) == (2, len(LARGE) + len(OTHER))
    assert rebuilt.refused == 0
    assert rebuilt.kept is not None
    assert rebuilt.kept.is_dir()
    assert not run(layout)[0].found
    with opened(layout) as store:
        for data in (LARGE, OTHER):
            assert read(store, digests.of(data)) == data
        assert not store.contains(digests.of(SMALL))
        assert store.action("main", digests.of(b"action")) is None
        assert store.contains(digests.empty(digests.SHA256))
        put(store, LATER)
        assert read(store, digests.of(LATER)) == LATER


def test_a_new_store_has_no_index_yet(tmp_path: Path) -> None:
    from cas.store.directory import prepare

    prepare(tmp_path).close()
    open_store(tmp_path).close()


def test_bad_files_and_second_copies_are_set_aside(layout: Layout) -> None:
    Path(layout.blob(digests.of(LARGE), 7)).write_bytes(LARGE)
    Path(layout.blob(digests.of(LATER), 7)).write_bytes(bytes(len(LATER)))
    rebuilt = reindex(layout, Files(), now=NOW)
    assert (rebuilt.blobs, rebuilt.refused) == (2, 2)
    assert len(list(layout.quarantine.iterdir())) == 2
    assert not run(layout)[0].found


def test_the_order_is_that_of_writing(layout: Layout) -> None:
    for age, data in ((600, OTHER), (60_000, LARGE)):
        digest = digests.of(data)
        with_it = list(Path(layout.shard(digest)).iterdir())
        os.utime(with_it[0], (NOW, NOW - age))
    reindex(layout, Files(), now=NOW)
    index = Index(layout.index)
    large, other = index.record(digests.of(LARGE).key), index.record(digests.of(OTHER).key)
    index.close()
    assert large is not None
    assert other is not None
    assert large.serial < other.serial
    assert (large.written, other.written) == ((NOW - 60_000) // 60, (NOW - 600) // 60)


def test_an_interrupted_run_changes_nothing(layout: Layout) -> None:
    def seam(operation: str, path: str) -> None:
        if operation == "move":
            raise OSError("interrupted")

    with pytest.raises(OSError, match="interrupted"):
        reindex(layout, Files(seam), now=NOW)
    with opened(layout) as store:
        assert read(store, digests.of(SMALL)) == SMALL
    reindex(layout, Files(), now=NOW)
    assert not (layout.root / "index.new").exists()


def test_damage_under_a_running_store_is_told(layout: Layout) -> None:
    """What a read finds: DataLoss, and never other bytes."""
    store = open_store(layout.root)
    with data_file(layout).open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(8192)
        file.write(bytes(size - 8192))
    with pytest.raises(DataLoss, match=r"damaged .*`cas reindex`"):
        store.read_small(digests.of(SMALL))
    with pytest.raises(DataLoss):
        store.open(digests.of(LARGE))
    [pending] = store.put([(digests.of(LATER), LATER)])
    with pytest.raises(DataLoss):
        pending.wait(30)
    store.close()
