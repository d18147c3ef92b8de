"""The parts of the torture that judge: a fault must be seen."""

from __future__ import annotations

import threading
from pathlib import Path

import grpc

from tests.conformance.conftest import Start
from tests.conformance.conftest import engine as engine
from tests.conformance.conftest import start as start
from tests.torture.journal import Journal
from tests.torture.load import TIMEOUT, Pace, Worker


def connected(worker: Worker) -> Worker:
    """Before it calls: its attempts to connect are as short as its pauses between them, too short
    for a busy machine."""
    grpc.channel_ready_future(worker._client.channel).result(TIMEOUT)
    return worker


def test_what_is_lost_or_wrong_is_told(start: Start, tmp_path: Path) -> None:
    """A worker's reads against a server that never had what the journal says."""
    journal = Journal(7, tmp_path / "journal")
    server = start()
    pace = Pace(threading.Event(), 1 << 20, 1 << 20, 1.0)
    worker = connected(Worker(0, server.address, journal, pace))
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


def test_what_may_be_written_grows_with_the_run(tmp_path: Path) -> None:
    now = 100.0
    pace = Pace(threading.Event(), 8000, 4000, 10.0, clock=lambda: now)
    journal = Journal(7, tmp_path / "journal")
    large, small = (journal.make(size)[0] for size in (3000, 1000))

    def takes() -> tuple[bool, bool]:
        return pace.takes_large(journal), pace.takes_small(journal)

    assert takes() == (True, True)
    journal.acknowledged(large)
    assert takes() == (False, True)
    journal.acknowledged(small)
    assert takes() == (False, False)
    now += 5.5
    assert takes() == (True, True)
    journal.acknowledged(large)
    assert takes() == (False, True)
    journal.acknowledged(small)
    assert takes() == (False, False)
    now += 100
    assert pace.part() == 1.0
    assert takes() == (False, False)


def test_a_run_that_goes_on_for_its_kills_writes_on(tmp_path: Path) -> None:
    now = 0.0
    pace = Pace(threading.Event(), 8000, 4000, 10.0, kills=20, clock=lambda: now)
    now = 3.0
    pace.killed = 1
    assert pace.part() == 0.1
    pace.killed = 9
    assert pace.part() == 0.3
    now = 60.0
    assert pace.part() == 0.5
    pace.killed = 20
    assert pace.part() == 1.0


def test_a_client_that_is_ahead_writes_actions_and_reads(start: Start, tmp_path: Path) -> None:
    now = 0.0
    journal = Journal(7, tmp_path / "journal")
    pace = Pace(threading.Event(), 1 << 20, 1 << 20, 10.0, clock=lambda: now)
    worker = connected(Worker(0, start().address, journal, pace))
    worker.put_batch()
    while pace.takes_large(journal) or pace.takes_small(journal):
        worker.upload()
    for _ in range(50):
        assert worker._choices() in ([worker.write_action], worker._reads)
    now = 5.0
    assert worker._writes in [worker._choices() for _ in range(50)]


def test_numbers_give_the_same_bytes_again(tmp_path: Path) -> None:
    journal = Journal(7, tmp_path / "journal")
    blob, data = journal.make(1000)
    assert journal.data(blob.number, blob.size) == data
    assert journal.make(1000)[1] != data
    assert Journal(8, tmp_path / "journal").data(blob.number, blob.size) != data
