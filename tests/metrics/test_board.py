"""The board: sheets of several processes, what survives their deaths, threads in one sheet."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from cas.metrics import families
from cas.metrics.board import SHEET, Board, Series, new_board, private_sheet
from cas.metrics.families import Family
from cas.metrics.instruments import Metrics

HITS = Series("counter", families.ACTION_LOOKUPS.name, ("hit",))
OPEN = Series("gauge", families.UPLOADS_OPEN.name, ())


@pytest.fixture
def board() -> Iterator[Board]:
    board = new_board()
    yield board
    board.close()


WORKER = """
import os, signal, sys
from cas.metrics import families
from cas.metrics.board import Board
from cas.metrics.instruments import Metrics

sheet = Board(int(sys.argv[1])).sheet(0)
sheet.belongs_to("grpc", 0)
metrics = Metrics(sheet)
metrics.counter(families.ACTION_LOOKUPS, "hit").add(3)
metrics.gauge(families.UPLOADS_OPEN).add(7)
metrics.histogram(families.READ_SIZES).observe(2000)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nothing_is_read_of_an_empty_board(board: Board) -> None:
    assert board.read() == []


def test_each_sheet_is_read_with_whose_it_is(board: Board) -> None:
    for number, amount in ((0, 2), (1, 5)):
        sheet = board.sheet(number)
        sheet.belongs_to("grpc", number)
        Metrics(sheet).counter(families.ACTION_LOOKUPS, "hit").add(amount)
    pages = board.read()
    assert [(page.role, page.number, page.pid) for page in pages] == [
        ("grpc", 0, os.getpid()),
        ("grpc", 1, os.getpid()),
    ]
    assert [page.numbers[HITS] for page in pages] == [[2.0], [5.0]]


def test_a_sheet_between_others_may_be_untouched(board: Board) -> None:
    Metrics(board.sheet(2)).counter(families.ACTION_LOOKUPS, "hit").add()
    pages = board.read()
    assert [(page.role, page.pid) for page in pages] == [("", 0)] * 3
    assert [len(page.numbers) for page in pages] == [0, 0, 1]


def test_a_killed_process_takes_nothing_with_it_and_its_successor_goes_on(board: Board) -> None:
    command = [sys.executable, "-c", WORKER, str(board.fd)]
    ended = subprocess.run(command, pass_fds=[board.fd], check=False)
    assert ended.returncode == -signal.SIGKILL
    (page,) = board.read()
    assert page.pid not in (0, os.getpid())
    assert (page.numbers[HITS], page.numbers[OPEN]) == ([3.0], [7.0])

    sheet = board.sheet(0)
    sheet.belongs_to("grpc", 0)
    metrics = Metrics(sheet)
    metrics.counter(families.ACTION_LOOKUPS, "miss").add()
    metrics.counter(families.ACTION_LOOKUPS, "hit").add()
    (page,) = board.read()
    assert page.pid == os.getpid()
    assert page.numbers[HITS] == [4.0], "a counter never goes back"
    assert page.numbers[OPEN] == [0.0], "nobody receives what the dead one did"
    assert sum(page.numbers[Series("histogram", families.READ_SIZES.name, ())][:-1]) == 1


def test_an_abandoned_sheet_has_no_process_and_no_gauges(board: Board) -> None:
    sheet = board.sheet(0)
    sheet.belongs_to("grpc", 0)
    metrics = Metrics(sheet)
    metrics.gauge(families.UPLOADS_OPEN).set(7)
    metrics.counter(families.ACTION_LOOKUPS, "hit").add(3)
    # As its supervisor does, who sees the memory by a map of its own.
    board.sheet(0).abandoned()
    (page,) = board.read()
    assert (page.pid, page.numbers[OPEN], page.numbers[HITS]) == (0, [0.0], [3.0])


def test_label_values_may_be_anything(board: Board) -> None:
    values = ["", '"', "\n", "ü", "a\x1fb", "\u2028", "x" * 255]
    metrics = Metrics(board.sheet(0))
    for value in values:
        metrics.counter(families.ACTION_LOOKUPS, value).add()
    (page,) = board.read()
    assert [series.labels for series in page.numbers] == [(value,) for value in values]


def test_the_number_of_labels_is_the_familys() -> None:
    with pytest.raises(ValueError, match="cas_action_cache_lookups_total takes labels"):
        Metrics().counter(families.ACTION_LOOKUPS)


def test_a_full_sheet_loses_new_series_only(board: Board) -> None:
    metrics = Metrics(board.sheet(0))
    kept = metrics.counter(families.ACTION_LOOKUPS, "hit")
    long = "x" * 4096
    for number in range(SHEET // 4096):
        metrics.counter(families.ACTION_LOOKUPS, f"{long}{number}").add()
    kept.add(2)
    (page,) = board.read()
    assert page.numbers[HITS] == [2.0]
    assert 64 < len(page.numbers) < SHEET // 4096
    assert {tuple(numbers) for numbers in page.numbers.values()} == {(1.0,), (2.0,)}
    # Whoever comes next finds it as it was left.
    again = board.sheet(0)
    assert again.slot(families.ACTION_LOOKUPS, ("hit",)) == 64


def test_a_full_sheet_has_room_for_the_widest_of_what_is_lost() -> None:
    assert max(family.width for family in families.ALL) <= 64


def test_threads_that_add_to_one_number_lose_nothing() -> None:
    """What `cas.metrics.board` relies on: an addition is not interrupted."""
    metrics = Metrics()
    counter = metrics.counter(families.ACTION_LOOKUPS, "hit")
    histogram = metrics.histogram(families.READ_SIZES)
    requests = metrics.requests("grpc", "Some/Method")
    each, threads = 5_000, 4

    def work() -> None:
        for _ in range(each):
            counter.add()
            histogram.observe(2000)
            requests.ended(None, "", 0.001, 1, 1)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        running = [threading.Thread(target=work) for _ in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    numbers = metrics.sheet.numbers
    total = each * threads
    assert numbers[metrics.sheet.slot(families.ACTION_LOOKUPS, ("hit",))] == total
    sizes = metrics.sheet.slot(families.READ_SIZES, ())
    assert numbers[sizes + 1] == total
    assert numbers[sizes + families.READ_SIZES.width - 1] == total * 2000
    for family in (families.RECEIVED_BYTES, families.SENT_BYTES):
        assert numbers[metrics.sheet.slot(family, ("grpc", "Some/Method"))] == total


def test_threads_that_meet_a_series_together_get_one() -> None:
    sheet = private_sheet()
    family = Family("cas_test_total", "counter", "", ("label",))
    slots: list[list[int]] = []
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        slots.append([sheet.slot(family, (str(number),)) for number in range(500)])

    running = [threading.Thread(target=work) for _ in range(4)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert all(found == slots[0] for found in slots)
    assert len(set(slots[0])) == 500
