"""What the store on disk counts of itself."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cas import digest as digests
from cas.digest import Digest
from cas.errors import NoSpace
from cas.metrics import families
from cas.metrics.families import Family
from cas.metrics.instruments import Metrics
from cas.store.directory import prepare
from cas.store.files import Files
from cas.store.interface import NewAction, NewValue
from cas.store.layout import Layout
from cas.store.local import LocalStore, open_store
from cas.store.opening import open_index
from cas.store.scrub import PacedScrub
from tests.metrics.reading import numbers, value
from tests.store.conftest import Clock

SMALL = b"small"
LARGE = bytes(range(256)) * 400


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def store(tmp_path: Path, metrics: Metrics, clock: Clock) -> Iterator[LocalStore]:
    prepare(tmp_path / "store").close()
    with closing(open_store(tmp_path / "store", metrics=metrics, clock=clock)) as store:
        yield store


def put(store: LocalStore, data: bytes) -> Digest:
    digest = digests.of(data)
    store.put([(digest, data)])[0].wait(30)
    return digest


def seen(metrics: Metrics, *series: tuple[Family, *tuple[str, ...]]) -> list[float]:
    return [value(metrics, *one) for one in series]


def test_blobs_written_and_read(store: LocalStore, metrics: Metrics) -> None:
    small, large = put(store, SMALL), put(store, LARGE)
    expected = [1, 0, 1, 0, 0, 0, 0, 0, len(SMALL) + len(LARGE)]
    assert numbers(metrics, families.WRITTEN_SIZES) == expected
    assert value(metrics, families.READ_SIZES) == 0
    assert store.read_small(small) == SMALL
    assert store.read_small(large) is None
    store.open(large).close()
    assert numbers(metrics, families.READ_SIZES) == expected
    found = store.look_up(small.key[:33])
    assert found is not None
    assert value(metrics, families.READ_SIZES) == 3
    assert len(store.read_small_many([small.key, large.key])) == 1
    assert seen(metrics, (families.READ_SIZES,), (families.BATCH_READS,)) == [3, 1]
    batch = [(digests.of(data), data) for data in (b"a", b"b", LARGE[1:])]
    for pending in store.put(batch):
        pending.wait(30)
    assert seen(metrics, (families.WRITTEN_SIZES,), (families.BATCH_WRITES,)) == [3, 2]


def test_commits(store: LocalStore, metrics: Metrics, clock: Clock) -> None:
    put(store, SMALL)
    steps = [(families.COMMIT_SECONDS, "files"), (families.COMMIT_SECONDS, "index")]
    assert seen(metrics, *steps) == [0, 1]
    put(store, LARGE)
    assert seen(metrics, *steps) == [1, 2]
    assert value(metrics, families.COMMIT_WRITES) == 2
    assert value(metrics, families.COMMIT_DONE_AT) > 0
    assert value(metrics, families.COMMIT_FAILED_AT) == 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [(NoSpace("on purpose"), "no_space"), (OSError(errno.EIO, "on purpose"), "error")],
    ids=["full", "broken"],
)
def test_a_commit_that_fails(
    tmp_path: Path, metrics: Metrics, error: Exception, reason: str
) -> None:
    def seam(operation: str, path: str) -> None:
        if operation == "sync":
            raise error

    prepare(tmp_path / "store").close()
    with closing(open_store(tmp_path / "store", metrics=metrics, files_seam=seam)) as store:
        with pytest.raises(type(error), match="on purpose"):
            put(store, LARGE)
        assert value(metrics, families.COMMIT_FAILURES, reason) == 1
        assert value(metrics, families.COMMIT_FAILED_AT) > 0
        assert value(metrics, families.WRITTEN_SIZES) == 0
        put(store, SMALL)
        assert value(metrics, families.WRITTEN_SIZES) == 1


def test_uploads(store: LocalStore, metrics: Metrics) -> None:
    digest = digests.of(LARGE)
    how = [(families.UPLOADS, each) for each in ("new", "resumed", "taken_over")]
    first = store.upload("u", digest, 0, LARGE[:50_000])
    assert seen(metrics, *how, (families.UPLOADS_OPEN,)) == [1, 0, 0, 1]
    first.suspend()
    assert seen(metrics, *how, (families.UPLOADS_OPEN,)) == [1, 0, 0, 0]
    second = store.upload("u", digest, 50_000, b"")
    assert seen(metrics, *how, (families.UPLOADS_OPEN,)) == [1, 1, 0, 1]
    third = store.upload("u", digest, 50_000, LARGE[50_000:])
    assert seen(metrics, *how, (families.UPLOADS_OPEN,)) == [1, 1, 1, 2]
    third.finish().wait(30)
    second.discard()
    assert seen(metrics, *how, (families.UPLOADS_OPEN,)) == [1, 1, 1, 0]


def test_action_results(store: LocalStore, metrics: Metrics, clock: Clock) -> None:
    blob = put(store, SMALL)
    missing = digests.of(b"missing")
    looked_up = [(families.ACTION_LOOKUPS, each) for each in ("hit", "miss")]
    assert store.action("", missing) is None
    assert seen(metrics, *looked_up) == [0, 1]
    store.put_action("", missing, NewAction(b"whole", [blob.key], True)).wait(30)
    assert store.action("", missing) is not None
    assert seen(metrics, *looked_up) == [1, 1]
    store.put_action("", missing, NewAction(b"lacking", [missing.key], True)).wait(30)
    assert store.action("", missing) is not None
    assert seen(metrics, *looked_up) == [1, 2]
    # Its servicer looks into its trees, enters it anew, and asks again: then it counts.
    store.put_action("", missing, NewAction(b"unread trees", [blob.key], False)).wait(30)
    assert store.action("", missing) is not None
    assert seen(metrics, *looked_up) == [1, 2]


def test_values(store: LocalStore, metrics: Metrics) -> None:
    looked_up = [(families.VALUE_LOOKUPS, each) for each in ("hit", "miss")]
    assert store.value("some", "key") is None
    assert seen(metrics, *looked_up) == [0, 1]
    store.put_value("some", "key", NewValue(digests.of(SMALL), SMALL)).wait(30)
    assert store.value("some", "key") is not None
    assert seen(metrics, *looked_up) == [1, 1]
    assert store.value("some", "key", counted=False) is not None
    assert store.value("some", "other", counted=False) is None
    assert seen(metrics, *looked_up) == [1, 1]


def test_a_scrub(tmp_path: Path, metrics: Metrics, clock: Clock) -> None:
    layout = Layout(tmp_path / "store")
    prepare(layout.root).close()
    with closing(open_store(layout.root, clock=clock)) as store:
        put(store, SMALL)
        large = put(store, LARGE)
    (path,) = [at for at in layout.root.glob("blobs/*/*/*") if at.name.startswith(large.hex)]
    path.write_bytes(bytes(len(LARGE)))
    with closing(open_index(layout, Files())) as index:
        seconds = 0.0
        scrub = PacedScrub(
            layout,
            index,
            Files(),
            100.0,
            clock=clock,
            timer=lambda: seconds,
            metrics=metrics,
        )
        clock.now += 1000
        for _ in range(10):
            seconds += 10
            scrub.step()
    entries = value(metrics, families.SCRUBBED)
    assert entries >= 3, "the empty blob and the two, perhaps again"
    assert value(metrics, families.SCRUBBED_BYTES) >= len(SMALL) + len(LARGE)
    assert value(metrics, families.SCRUB_BAD) == 1
    assert value(metrics, families.SCRUBBED_AT) == clock.now
