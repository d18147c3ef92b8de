"""Samples: when they are taken, how long they are kept, what survives whom."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.metrics import families, history, overview, slots
from cas.metrics.board import SAMPLES, Board, new_board
from cas.metrics.history import DAY, HOUR, MAX_NAMES, RINGS, SLOT, History, Sample
from cas.metrics.instruments import Metrics

START = 1_700_000_040.0
"""A whole minute, but no whole ten."""

NOTHING = dict.fromkeys((*history.SUMS, *history.LEVELS), 0.0)


@pytest.fixture
def board() -> Iterator[Board]:
    with closing(new_board()) as board:
        yield board


def test_the_rings_have_room_and_do_not_touch() -> None:
    ends = [(ring.start, ring.start + ring.places * SLOT) for ring in RINGS]
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(sorted(ends)))
    assert max(end for _, end in ends) <= SAMPLES
    assert [ring.span for ring in RINGS] == [3600, 86400]


def test_a_minute_has_one_sample_and_ten_have_one_more(board: Board) -> None:
    kept = History(board)
    for second in range(0, 1500, 7):
        kept.keep(START + second)
    now = START + 1500
    assert [int(one.at - START) // 60 for one in kept.read(HOUR, now)] == list(range(25))
    ticks = [int(one.at) // 600 for one in kept.read(DAY, now)]
    assert ticks == list(range(int(START) // 600, int(START + 1493) // 600 + 1))


def test_an_hour_and_a_day_are_kept_and_no_more(board: Board) -> None:
    kept = History(board)
    end = START
    for minute in range(2 * 24 * 60):
        end = START + 60 * minute
        kept.keep(end)
    for ring in RINGS:
        samples = kept.read(ring, end)
        assert [one.at for one in samples] == sorted(one.at for one in samples)
        assert ring.span <= end - samples[0].at <= ring.span + ring.step
        assert len(samples) <= ring.places
        steps = {round(b.at - a.at) for a, b in itertools.pairwise(samples)}
        assert steps == {ring.step}


def test_a_front_that_takes_anothers_place_goes_on(board: Board) -> None:
    counter = Metrics(board.sheet(0)).counter(families.ACTION_LOOKUPS, "hit")
    History(board).keep(START)
    counter.add(5)
    # In the same minute nothing is lost that was there.
    History(board).keep(START + 20)
    counter.add(2)
    History(board).keep(START + 120)
    found = History(board).read(HOUR, START + 121)
    assert [(one.at, one.numbers["hits"]) for one in found] == [(START, 0), (START + 120, 7)]


def test_a_clock_that_jumps_back_hides_what_is_to_come(board: Board) -> None:
    kept = History(board)
    kept.keep(START + 900)
    kept.keep(START)
    assert [one.at for one in kept.read(HOUR, START)] == [START]


def test_what_is_half_written_is_left_out(board: Board) -> None:
    kept = History(board)
    kept.keep(START)
    memory = board.samples()
    place = int(START) // 60 % HOUR.places * SLOT
    memory[place + 40] ^= 1
    assert kept.read(HOUR, START) == []
    slots.write(memory[place : place + SLOT], b'[1,{"other":2},{},{}]')
    assert kept.read(HOUR, START) == []


def test_nothing_is_read_where_nothing_was_written(board: Board) -> None:
    assert History(board).read(DAY, START) == []
    assert overview.past(board)["hour"]["at"] == []


def test_sums_are_of_all_processes_and_without_the_page(board: Board) -> None:
    for sheet, protocol in ((0, "grpc"), (1, "http")):
        metrics = Metrics(board.sheet(sheet))
        for method, code, count in (("M", "200", 3), ("M", "404", 2), ("M", "500", 1)):
            requests = metrics.requests(protocol, method)
            for _ in range(count):
                requests.ended(code, "main", 0.1, 10, 100)
        metrics.requests(protocol, history.PAGE).ended("200", "", 0.1, 10, 100)
        metrics.counter(families.ACTION_LOOKUPS, "hit").add(2)
        metrics.counter(families.VALUE_LOOKUPS, "miss").add()
        metrics.histogram(families.READ_SIZES).observe(5000)
        metrics.counter(families.BATCH_READS).add(4)
    taken = history.sample(board.read(), START)
    told = {name: taken.numbers[name] for name in history.SUMS}
    assert told == {
        "requests": 12,
        "errors": 2,
        "hits": 4,
        "misses": 2,
        "received": 120,
        "sent": 1200,
        "reads": 10,
        "writes": 0,
        "evicted": 0,
        "evicted_bytes": 0,
    }
    assert taken.instances == {"main": 12}


names = st.dictionaries(st.text(max_size=255), st.floats(0, 1e15), max_size=80)


@given(names, names)
def test_a_sample_fits_its_place_whatever_the_names(
    tools: dict[str, float], instances: dict[str, float]
) -> None:
    data = history.encoded(Sample(START, NOTHING, tools, instances))
    assert len(data) <= slots.capacity(SLOT)


def test_the_names_with_the_most_stay() -> None:
    counts = {f"{number:03d}" * 80: float(number) for number in range(100)}
    data = history.encoded(Sample(START, NOTHING, counts, {}))
    assert f"{99:03d}" * 80 in data.decode()
    assert f"{10:03d}" * 80 not in data.decode()
    assert len(history.most(counts, MAX_NAMES)) == MAX_NAMES


def test_a_window_tells_what_was_done_in_it(board: Board) -> None:
    metrics = Metrics(board.sheet(0))
    counter = metrics.counter(families.TOOL_REQUESTS, "bazel 7")
    counter.add(100)
    History(board).keep(START)
    counter.add(5)
    metrics.counter(families.TOOL_REQUESTS, "buck2").add(9)
    History(board).keep(START + 4000)
    counter.add(1)
    shown = overview.now(board, lambda: START + 4060).shown["windows"]
    # The first sample is too old for the hour; the second is where it begins.
    assert shown["hour"]["tools"] == [("bazel 7", 1)]
    assert shown["day"]["tools"] == [("buck2", 9), ("bazel 7", 6)]


@given(names, names)
def test_what_grew_is_never_less_than_nothing(
    before: dict[str, float], now: dict[str, float]
) -> None:
    grown = list(history.since(before, now))
    assert all(count > 0 for _, count in grown)
    assert [count for _, count in grown] == sorted((c for _, c in grown), reverse=True)
    assert {name for name, _ in grown} <= set(now)
