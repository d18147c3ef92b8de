"""The choice of victims: properties, and hit rates beside exact LRU."""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.store import evict
from cas.store.evict import Watermarks
from tests.store.traces import Request, day

exactly = settings(derandomize=True, max_examples=300, deadline=None)

MINUTES = st.lists(st.integers(0, 50), max_size=300)


def chunks(minutes: list[int], size: int = 64) -> list[tuple[int, memoryview]]:
    times = memoryview(array("I", minutes))
    return [(at, times[at : at + size]) for at in range(0, len(times), size)]


def choose(minutes: list[int], wanted: int, newest: int) -> list[tuple[int, int]]:
    """As the janitor does: (minute, serial), oldest first."""
    counts = evict.count(view for _, view in chunks(minutes))
    until = evict.cutoff(counts, wanted, newest)
    return sorted(
        pair for first, view in chunks(minutes) for pair in evict.gather(first, view, until)
    )


@exactly
@given(MINUTES, st.integers(1, 400), st.integers(0, 60))
def test_the_oldest_are_chosen_and_enough_of_them(
    minutes: list[int], wanted: int, newest: int
) -> None:
    chosen = choose(minutes, wanted, newest)
    ripe = sorted((minute, serial) for serial, minute in enumerate(minutes) if 0 < minute <= newest)
    # A prefix of the exact order, which ends at a whole minute.
    assert chosen == ripe[: len(chosen)]
    assert len(chosen) >= min(wanted, len(ripe))
    if chosen:
        without_last = [pair for pair in chosen if pair[0] < chosen[-1][0]]
        assert len(without_last) < wanted


@exactly
@given(st.lists(st.integers(0, 100)), st.integers(-5, 1000))
def test_no_more_goes_than_need_be(sizes: list[int], need: int) -> None:
    taken = list(evict.until_enough(enumerate(sizes), need))
    assert taken == list(range(len(taken)))
    total = sum(sizes[place] for place in taken)
    assert total >= need or len(taken) == len(sizes)
    if taken:
        assert sum(sizes[place] for place in taken[:-1]) < need


@exactly
@given(st.integers(0, 10**13), st.integers(0, 10**12), st.integers(0, 10**13), st.integers(2, 97))
def test_what_is_demanded(used: int, wanted: int, limit: int, high: int) -> None:
    marks = Watermarks(high, high - 1)
    demand = evict.demand(used, wanted, limit, marks)
    assert 0 <= demand.urgent <= demand.gentle
    if used > limit * high // 100:
        assert used - demand.gentle <= limit * marks.low // 100
    if used + wanted > limit:
        # What waits fits afterwards, if all else that is there may go.
        assert used - demand.urgent + wanted <= limit
    if used + wanted <= limit * (1 - evict.BRIM):
        assert demand.urgent == 0
        if used <= limit * high // 100:
            assert demand.gentle == 0


def test_age_counts_until_the_brim() -> None:
    marks = Watermarks(95, 90)
    assert evict.demand(940, 0, 1000, marks) == (0, 0)
    assert evict.demand(960, 0, 1000, marks) == (60, 0)
    assert evict.demand(960, 35, 1000, marks) == (60, 15)
    assert evict.demand(500, 600, 1000, marks) == (120, 120)
    assert evict.demand(995, 0, 1000, marks) == (95, 15)


class Cache:
    """What both models share: an entry is missed, entered, and makes others go."""

    def __init__(self, capacity: int, marks: Watermarks) -> None:
        self.capacity = capacity
        self.marks = marks
        self.used = 0
        self.hits = self.misses = 0

    def ask(self, request: Request) -> None:
        if self.use(request):
            self.hits += 1
            return
        self.misses += 1
        self.enter(request)
        self.used += request.size
        need = evict.demand(self.used, 0, self.capacity, self.marks).gentle
        if need:
            self.used -= self.make_room(need)

    def use(self, request: Request) -> bool:
        raise NotImplementedError

    def enter(self, request: Request) -> None:
        raise NotImplementedError

    def make_room(self, need: int) -> int:
        """Bytes freed."""
        raise NotImplementedError

    @property
    def rate(self) -> float:
        return self.hits / (self.hits + self.misses)


class Exact(Cache):
    """Least recently used, to the request."""

    def __init__(self, capacity: int, marks: Watermarks) -> None:
        super().__init__(capacity, marks)
        self.order: OrderedDict[int, int] = OrderedDict()

    def use(self, request: Request) -> bool:
        if request.key not in self.order:
            return False
        self.order.move_to_end(request.key)
        return True

    def enter(self, request: Request) -> None:
        self.order[request.key] = request.size

    def make_room(self, need: int) -> int:
        freed = 0
        while freed < need:
            freed += self.order.popitem(last=False)[1]
        return freed


class Ours(Cache):
    """The pure functions on minutes by serial, put together as the janitor does."""

    def __init__(self, capacity: int, marks: Watermarks) -> None:
        super().__init__(capacity, marks)
        self.minutes = array("I")
        self.serials: dict[int, int] = {}
        self.entries: dict[int, Request] = {}

    def use(self, request: Request) -> bool:
        serial = self.serials.get(request.key)
        if serial is None:
            return False
        self.minutes[serial] = request.minute
        return True

    def enter(self, request: Request) -> None:
        self.serials[request.key] = serial = len(self.minutes)
        self.entries[serial] = request
        self.minutes.append(request.minute)

    def make_room(self, need: int) -> int:
        freed = 0
        while freed < need:
            wanted = evict.entries_for(need - freed, self.used, len(self.entries))
            view = memoryview(self.minutes)
            until = evict.cutoff(evict.count([view]), wanted, 2**32)
            victims = sorted(evict.gather(0, view, until))
            view.release()
            sized = [(serial, self.entries[serial].size) for _, serial in victims]
            for serial in list(evict.until_enough(sized, need - freed)):
                gone = self.entries.pop(serial)
                freed += gone.size
                del self.serials[gone.key]
                self.minutes[serial] = 0
        return freed


@pytest.mark.parametrize("share", [0.15, 0.25, 0.5])
def test_the_hit_rate_is_that_of_exact_lru(share: float) -> None:
    trace = list(day(builds=450))
    everything = sum({request.key: request.size for request in trace}.values())
    capacity = int(everything * share)
    marks = Watermarks()
    ours, exact = Ours(capacity, marks), Exact(capacity, marks)
    for request in trace:
        ours.ask(request)
        exact.ask(request)
    # The trace tells caches apart: it neither fits nor misses throughout.
    assert 0.3 < exact.rate < 0.95
    assert Counter(r.key for r in trace).most_common(1)[0][1] > 100
    assert ours.rate == pytest.approx(exact.rate, abs=0.01)
