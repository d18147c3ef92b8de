"""Syncs at once: each is done, each outcome told."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from cas import digest as digests
from cas.store.directory import prepare
from cas.store.local import open_store
from cas.store.syncing import FEW, THREADS, Syncs

PATIENCE = 40.0


@pytest.fixture
def syncs() -> Syncs:
    return Syncs()


def test_as_many_jobs_wait_at_once_as_there_are_threads(syncs: Syncs) -> None:
    together = threading.Barrier(THREADS, timeout=PATIENCE)

    def job() -> None:
        together.wait()

    with closing(syncs):
        for _ in range(3):
            assert syncs.run([job] * (THREADS * 2)) == [None] * (THREADS * 2)


@pytest.mark.parametrize("count", [0, 1, FEW, FEW + 1, 100])
def test_each_job_is_run_once_and_its_failure_told_in_its_place(syncs: Syncs, count: int) -> None:
    done: list[int] = []

    def job(number: int) -> Callable[[], None]:
        def run() -> None:
            done.append(number)
            if number % 3 == 0:
                raise OSError(number, "no")

        return run

    with closing(syncs):
        told = syncs.run([job(number) for number in range(count)])
    assert sorted(done) == list(range(count))
    failed = [error.errno if isinstance(error, OSError) else None for error in told]
    assert failed == [number if number % 3 == 0 else None for number in range(count)]


def test_its_threads_end_with_it(syncs: Syncs) -> None:
    before = threading.active_count()
    syncs.run([lambda: None] * 10)
    assert threading.active_count() > before
    syncs.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("operation", ["sync", "sync-directory"])
def test_of_writes_that_are_committed_together_only_those_fail_whose_sync_did(
    tmp_path: Path, operation: str
) -> None:
    blobs = [bytes([number]) * 100_000 for number in range(40)]
    digest_of = {digests.of(data): data for data in blobs}
    wrong: set[str] = set()
    lock = threading.Lock()
    armed = False

    def seam(reached: str, path: str) -> None:
        with lock:
            if armed and reached == operation and not wrong:
                # A directory's name tells whose sync fails; a descriptor leads to the file's.
                where = (
                    path if operation == "sync-directory" else os.readlink(f"/proc/self/fd/{path}")
                )
                wrong.add(where)
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    prepare(tmp_path / "store").close()
    with closing(open_store(tmp_path / "store", files_seam=seam)) as store:
        armed = True
        pending = store.put(list(digest_of.items()))
        failed = set()
        for digest, outcome in zip(digest_of, pending, strict=True):
            try:
                outcome.wait(PATIENCE)
            except OSError:
                failed.add(digest)
        (where,) = wrong
        concerned = {
            digest
            for digest in digest_of
            if digest.hex in where or (operation != "sync" and Path(where).name == digest.hex[:2])
        }
        assert failed == concerned
        assert failed
        for digest in digest_of:
            assert store.contains(digest) == (digest not in failed)
