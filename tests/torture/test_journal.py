"""The parts of the torture that judge: a fault must be seen."""

from __future__ import annotations

import threading
from pathlib import Path

from tests.conformance.conftest import Start
from tests.conformance.conftest import engine as engine
from tests.conformance.conftest import start as start
from tests.torture.journal import Journal
from tests.torture.load import Pace, Worker


def test_what_is_lost_or_wrong_is_told(start: Start, tmp_path: Path) -> None:
    """A worker's reads against a server that never had what the journal says."""
    journal = Journal(7, tmp_path / "journal")
    server = start()
    worker = Worker(0, server.address, journal, Pace(threading.Event(), 1 << 20, 1 << 20))
    worker.put_batch()
    worker.upload()
    assert journal.blobs
    for operation in (worker.read, worker.read_batch, worker.find):
        operation()
    assert not journal.lost
    blob, _ = journal.make(1000)
    journal.blobs[:] = [blob]
    for operation in (worker.read, worker.read_batch, worker.find):
        before = len(journal.lost)
        operation()
        assert len(journal.lost) > before, operation
    assert not journal.wrong


def test_numbers_give_the_same_bytes_again(tmp_path: Path) -> None:
    journal = Journal(7, tmp_path / "journal")
    blob, data = journal.make(1000)
    assert journal.data(blob.number, blob.size) == data
    assert journal.make(1000)[1] != data
    assert Journal(8, tmp_path / "journal").data(blob.number, blob.size) != data
