"""Medians, quantiles and the ratio to the best peer; what errors do to them."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.compare import turned
from benchmarks.stats import Sample, cell, is_ours, median, quantile, rows

bounded = settings(derandomize=True, max_examples=200, deadline=None)
values = st.lists(st.floats(0, 1e9), min_size=1, max_size=50)


def sample(
    server: str,
    cpu_us: float,
    *,
    workload: str = "caps",
    concurrency: int = 16,
    round_: int = 0,
    operations: int = 1000,
    errors: int = 0,
) -> Sample:
    """`cpu_us` of server CPU for each of 1,000 operations done in two seconds."""
    return Sample(
        server=server,
        workload=workload,
        concurrency=concurrency,
        round=round_,
        operations=operations,
        seconds=2.0,
        cpu_seconds=cpu_us * operations / 1e6,
        p50_ms=1.0,
        p99_ms=2.0,
        errors=errors,
        first_error="UNAVAILABLE: gone" if errors else "",
    )


@given(values)
@bounded
def test_median_is_the_librarys(found: list[float]) -> None:
    assert median(found) == pytest.approx(statistics.median(found))


@given(values, st.floats(0, 1))
@bounded
def test_quantiles_lie_between_the_extremes_and_grow(found: list[float], share: float) -> None:
    ordered = sorted(found)
    at = quantile(ordered, share)
    assert ordered[0] <= at or at == pytest.approx(ordered[0])
    assert at <= ordered[-1] or at == pytest.approx(ordered[-1])
    assert quantile(ordered, 0) == ordered[0]
    assert quantile(ordered, 1) == ordered[-1]
    assert quantile(ordered, share / 2) <= at or quantile(ordered, share / 2) == pytest.approx(at)


def test_quantiles_of_nothing_are_not_numbers() -> None:
    assert math.isnan(quantile([], 0.5))
    assert quantile([1.0, 2.0, 4.0], 0.75) == 3.0


def test_figures_of_a_sample() -> None:
    one = sample("cas", 40.0)
    assert one.cpu_us == pytest.approx(40)
    assert one.rate == 500
    assert one.valid
    assert Sample(**one.to_json()) == one


def test_a_cell_is_the_median_of_its_rounds() -> None:
    found = cell([sample("cas", cpu, round_=n) for n, cpu in enumerate((50.0, 10.0, 30.0))])
    assert found.cpu_us == pytest.approx(30)
    assert found.rounds == 3
    assert found.valid


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (sample("cas", 1.0, errors=3), "3 errors: UNAVAILABLE: gone"),
        (sample("cas", 1.0, operations=0), "no operation completed"),
    ],
)
def test_one_bad_round_makes_the_cell_invalid(bad: Sample, problem: str) -> None:
    found = cell([sample("cas", 50.0), bad, sample("cas", 50.0)])
    assert not found.valid
    assert found.problem == problem


def test_rows_keep_order_and_keep_concurrencies_apart() -> None:
    found = rows(
        [
            sample("cas", 40.0, workload="read:1024", concurrency=1),
            sample("peer", 50.0, workload="read:1024", concurrency=1),
            sample("cas", 30.0, workload="caps", concurrency=16),
            sample("cas", 20.0, workload="read:1024", concurrency=16),
        ]
    )
    assert [(row.workload, row.concurrency) for row in found] == [
        ("read:1024", 1),
        ("caps", 16),
        ("read:1024", 16),
    ]
    assert list(found[0].cells) == ["cas", "peer"]


def test_the_ratio_is_to_the_cheapest_valid_peer() -> None:
    (row,) = rows(
        [
            sample("cas", 40.0),
            sample("cas-w2", 1.0),
            sample("slow", 90.0),
            sample("good", 50.0),
            sample("broken", 5.0, errors=1),
        ]
    )
    assert row.best_peer() == "good"
    assert row.ratio() == pytest.approx(0.8)
    assert row.ratio("cas-w2") == pytest.approx(0.02)


def test_no_ratio_without_a_valid_pair() -> None:
    assert rows([sample("cas", 40.0)])[0].ratio() is None
    assert rows([sample("peer", 40.0)])[0].ratio() is None
    assert rows([sample("cas", 40.0, errors=1), sample("peer", 9.0)])[0].ratio() is None
    assert rows([sample("cas", 40.0), sample("peer", 0.0)])[0].ratio() is None


def test_which_servers_are_ours() -> None:
    assert is_ours("cas")
    assert is_ours("cas-w2")
    assert not is_ours("casd")


def test_every_server_gets_to_be_first() -> None:
    turns = [turned(["a", "b", "c"], round_) for round_ in range(4)]
    assert turns == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]
