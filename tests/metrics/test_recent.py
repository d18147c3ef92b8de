"""What went wrong lately: bounded, without secrets, and whole whatever happens."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.metrics import recent, slots
from cas.metrics.board import Board, new_board
from cas.metrics.instruments import Metrics
from cas.metrics.recent import KEPT, MAX_MESSAGE, MAX_PER_SECOND, SLOT, Note, Recent


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def board() -> Iterator[Board]:
    with closing(new_board()) as board:
        yield board


@pytest.fixture
def clock() -> Clock:
    return Clock()


def messages(board: Board) -> list[str]:
    return [note.message for note in recent.read(board)]


def test_the_latest_come_first_and_repeats_are_one(board: Board, clock: Clock) -> None:
    notes = Recent(board.sheet(0), clock)
    for message in ("a", "b", "a"):
        clock.now += 1
        notes.note("grpc", "X/Y", "INTERNAL", "main", message)
    assert recent.read(board) == [
        Note(clock.now, 2, "grpc", "X/Y", "INTERNAL", "main", "a"),
        Note(clock.now - 1, 1, "grpc", "X/Y", "INTERNAL", "main", "b"),
    ]


def test_the_oldest_give_way(board: Board, clock: Clock) -> None:
    notes = Recent(board.sheet(0), clock)
    for number in range(3 * KEPT):
        clock.now += 1
        notes.note("grpc", "X/Y", "INTERNAL", "", f"{number}")
    assert messages(board) == [f"{number}" for number in range(3 * KEPT - 1, 2 * KEPT - 1, -1)]


def test_who_takes_a_dead_ones_place_goes_on(board: Board, clock: Clock) -> None:
    Recent(board.sheet(0), clock).note("grpc", "X/Y", "INTERNAL", "", "before")
    board.sheet(0).abandoned()
    clock.now += 1
    Recent(board.sheet(0), clock).note("grpc", "X/Y", "INTERNAL", "", "after")
    assert messages(board) == ["after", "before"]


def test_what_several_processes_note_is_one(board: Board, clock: Clock) -> None:
    for sheet in (0, 1):
        clock.now += 1
        Recent(board.sheet(sheet), clock).note("http", "GET", "400", "", "same")
    assert recent.read(board) == [Note(clock.now, 2, "http", "GET", "400", "", "same")]


def test_a_flood_is_not_looked_at(board: Board, clock: Clock) -> None:
    notes = Recent(board.sheet(0), clock)
    for _ in range(10 * MAX_PER_SECOND):
        notes.note("grpc", "X/Y", "INTERNAL", "", "again")
    assert [note.times for note in recent.read(board)] == [MAX_PER_SECOND]


def test_threads_lose_nothing(board: Board, clock: Clock) -> None:
    notes = Recent(board.sheet(0), clock)
    threads = [
        threading.Thread(target=notes.note, args=("grpc", "X", "INTERNAL", "", "same"))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [note.times for note in recent.read(board)] == [8]


@given(
    st.lists(
        st.tuples(st.text(max_size=300), st.text(max_size=300), st.text(max_size=2000)),
        max_size=5,
    )
)
def test_any_text_is_kept_whole_within_its_bounds(texts: list[tuple[str, str, str]]) -> None:
    with closing(new_board()) as board:
        notes = Recent(board.sheet(0))
        for what, instance, message in texts:
            notes.note("grpc", what, "INTERNAL", instance, message)
        found = recent.read(board)
        assert sum(note.times for note in found) == len(texts)
        for note in found:
            assert len(note.message) <= MAX_MESSAGE
            assert "\n" not in note.message
            assert not any(c < " " for c in note.message)
            json.dumps(note).encode()


SECRETS = [
    "request target 'ftp://bob:hunter2hunter2@host/x' is not a path",
    "Authorization: Bearer hunter2hunter2",
    "the header 'basic hunter2hunter2' cannot be read",
    "query 'teamId=a&token=hunter2hunter2&x=1' cannot be read",
    'body {"password": "hunter2hunter2"} is odd',
    "path '/x?api_key=hunter2hunter2'",
    "X-Secret-Key=hunter2hunter2;",
    "token 'eyJhbGciOiJIUzI1NiJ9.hunter2hunter2.c2lnbmF0dXJl' is not known",
    "access_token=hunter2hunter2",
    "AWS_SECRET_ACCESS_KEY = hunter2hunter2",
]


@pytest.mark.parametrize("message", SECRETS)
def test_secrets_are_left_out(message: str) -> None:
    told = recent.redacted(message)
    assert "hunter2" not in told
    assert "[redacted]" in told


@pytest.mark.parametrize("before", [0, 250, 300, 1270])
def test_secrets_are_left_out_wherever_the_message_is_cut(before: int) -> None:
    assert "hunter2" not in recent.redacted("x" * before + " password=hunter2hunter2 " + "y" * 400)


@pytest.mark.parametrize(
    "message",
    [
        "received 10 bytes with hash " + "ab" * 32 + ", expected " + "cd" * 32 + "/20",
        "no action result of " + "ab" * 32 + " in instance 'main'",
        "blob is not a Directory message",
        "https://host/path names no key",
    ],
)
def test_what_is_no_secret_stays(message: str) -> None:
    assert recent.redacted(message) == message


def test_control_characters_and_directions_are_taken_out() -> None:
    assert recent.redacted("a\x1b[31mb\u202ec\nd") == "a [31mb c d"


def test_what_a_cache_answers_all_day_is_not_noted(board: Board) -> None:
    requests = Metrics(board.sheet(0)).requests("grpc", "ByteStream/Read")
    for code in ("NOT_FOUND", "CANCELLED", "404", "499"):
        requests.failed(code, "", "nothing to see")
    assert recent.read(board) == []
    requests.failed("DATA_LOSS", "main", "damaged")
    (note,) = recent.read(board)
    assert note[1:] == (1, "grpc", "ByteStream/Read", "DATA_LOSS", "main", "damaged")


def test_the_log_is_noted_from_warning_upwards(board: Board) -> None:
    logger = logging.getLogger("tests.metrics.recent")
    counter = Metrics(board.sheet(0)).count_log(logger)
    try:
        logger.info("all is well")
        logger.error("worker died", extra={"role": "grpc", "worker": 1, "ended": "SIGKILL"})
    finally:
        logger.removeHandler(counter)
    (note,) = recent.read(board)
    assert (note.source, note.what, note.code) == ("log", "tests.metrics.recent", "error")
    assert note.message == "worker died; role=grpc; worker=1; ended=SIGKILL"


@given(st.binary(max_size=slots.capacity(SLOT)), st.integers(0, SLOT - 1), st.integers(1, 255))
def test_a_place_is_whole_or_empty(data: bytes, at: int, change: int) -> None:
    place = bytearray(SLOT)
    slots.write(memoryview(place), data)
    assert slots.read(bytes(place)) == (data or None)
    place[at] ^= change
    assert slots.read(bytes(place)) in (data or None, None)


def test_a_writer_killed_half_way_leaves_an_empty_place() -> None:
    place = memoryview(bytearray(SLOT))
    slots.write(place, b"first")
    torn = bytearray(place)
    slots.write(place, b"second")
    torn[8:16] = place[8:16]
    assert slots.read(bytes(torn)) is None
    assert slots.read(b"") is None
