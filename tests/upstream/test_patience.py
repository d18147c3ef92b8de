"""Backoff, budget, breaker and memory, with a clock that tests move."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cas.upstream.memory import Latest, Memory, MemoryOptions
from cas.upstream.patience import (
    BASE_SECONDS,
    COOL_SECONDS,
    FAILURES,
    MAX_COOL_SECONDS,
    MAX_SECONDS,
    RETRIES_PER_REQUEST,
    SPARE_RETRIES,
    Breaker,
    Budget,
    backoff,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(st.integers(0, 10_000), st.floats(0, 1))
@settings(max_examples=200, derandomize=True)
def test_backoff_is_bounded_and_random(attempt: int, drawn: float) -> None:
    assert 0 <= backoff(attempt, drawn) <= MAX_SECONDS
    assert backoff(0, 1.0) == BASE_SECONDS
    assert backoff(attempt, drawn) <= backoff(attempt + 1, drawn)


@given(st.lists(st.booleans(), max_size=400))
@settings(max_examples=100, derandomize=True)
def test_retries_stay_within_their_share(steps: list[bool]) -> None:
    budget = Budget()
    requests = retries = 0
    for is_retry in steps:
        if is_retry:
            retries += budget.take()
        else:
            budget.asked()
            requests += 1
    assert retries <= SPARE_RETRIES + RETRIES_PER_REQUEST * requests


def _open(breaker: Breaker) -> None:
    for _ in range(FAILURES):
        assert breaker.admits()
        breaker.failed()


def test_a_breaker_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker(Clock(), lambda: 1.0)
    for _ in range(3):
        for _ in range(FAILURES - 1):
            assert not breaker.failed()
        assert not breaker.succeeded()
    assert breaker.admits()
    _open(breaker)
    assert breaker.state == "open"
    assert not breaker.admits()


def test_one_trial_at_a_time_after_it_cooled_and_ever_later() -> None:
    clock = Clock()
    breaker = Breaker(clock, lambda: 1.0)
    _open(breaker)
    cool = COOL_SECONDS
    for _ in range(8):
        clock.now += cool * 0.99
        assert not breaker.admits()
        clock.now += cool * 0.02
        assert breaker.admits()
        assert not breaker.admits()
        assert not breaker.failed()
        cool = min(MAX_COOL_SECONDS, 2 * cool)
    clock.now += cool + 1
    assert breaker.admits()
    assert breaker.succeeded()
    assert breaker.state == "closed"
    _open(breaker)
    clock.now += COOL_SECONDS + 0.01
    assert breaker.admits()


def test_a_trial_that_was_given_up_is_tried_again() -> None:
    clock = Clock()
    breaker = Breaker(clock, lambda: 0.0)
    _open(breaker)
    clock.now += COOL_SECONDS
    assert breaker.admits()
    breaker.dropped()
    assert breaker.admits()


KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])
STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "absent", "pass"]), KEYS, st.floats(0, 4)),
    max_size=60,
)


@given(STEPS, st.integers(1, 4))
@settings(max_examples=200, derandomize=True)
def test_memory_never_tells_what_is_old_or_was_overtaken(
    steps: list[tuple[str, bytes, float]], most: int
) -> None:
    clock = Clock()
    memory = Memory(MemoryOptions(most, there_seconds=5, absent_seconds=2), clock)
    last: dict[bytes, tuple[str, float]] = {}
    for step, key, seconds in steps:
        if step == "add":
            memory.add(key)
        elif step == "absent":
            memory.add_absent(key)
        else:
            clock.now += seconds
        if step != "pass":
            last[key] = step, clock.now
        told = [k for k in (b"a", b"b", b"c", b"d") if memory.has(k)]
        assert len(told) <= most
        for k in told:
            assert last[k][0] == "add"
            assert clock.now < last[k][1] + 5
        for k in (b"a", b"b", b"c", b"d"):
            if memory.lacks(k):
                assert last[k][0] == "absent"
                assert clock.now < last[k][1] + 2
        if step != "pass":
            assert memory.unknown([key]) == []


def test_the_oldest_go_first() -> None:
    memory = Memory(MemoryOptions(keys=2), Clock())
    memory.add(b"a")
    memory.add(b"b")
    memory.add(b"a")
    memory.add(b"c")
    assert memory.unknown([b"a", b"b", b"c"]) == [b"b"]


def test_the_latest_stay() -> None:
    latest: Latest[int] = Latest(2)
    for number, key in enumerate((b"a", b"b", b"a", b"c")):
        latest.add(key, number)
    assert [latest.get(key) for key in (b"a", b"b", b"c")] == [2, None, 3]
    latest.discard(b"c")
    latest.discard(b"b")
    assert [key in latest for key in (b"a", b"b", b"c")] == [True, False, False]
