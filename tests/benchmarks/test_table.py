"""Tables: how figures are written, and what a reader is told of invalid ones."""

from __future__ import annotations

import pytest

from benchmarks import table
from benchmarks.stats import Sample, rows
from tests.benchmarks.test_stats import sample


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), "–"),
        (0.0, "0.00"),
        (0.0423, "0.0423"),
        (4.234, "4.23"),
        (42.34, "42.3"),
        (423.4, "423"),
        (42_340.0, "42,340"),
    ],
)
def test_numbers(value: float, expected: str) -> None:
    assert table.number(value) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [(5, "5 B"), (2048, "2.00 KiB"), (3 << 20, "3.00 MiB"), (15e9, "14.0 GiB")],
)
def test_bytes(count: float, expected: str) -> None:
    assert table.bytes_text(count) == expected


def comparison(samples: list[Sample]) -> list[list[str]]:
    return table.comparison(rows(samples))


def test_ours_comes_first_and_the_best_peer_is_named() -> None:
    head, line = comparison([sample("slow", 80.0), sample("fast", 50.0), sample("cas", 40.0)])
    assert head == ["operation", "cas", "slow", "fast", "cas ÷ best peer"]
    assert line == [
        "GetCapabilities",
        "40.0 · 500/s · 1.00 / 2.00",
        "80.0 · 500/s · 1.00 / 2.00",
        "50.0 · 500/s · 1.00 / 2.00",
        "0.80 (fast)",
    ]


def test_an_invalid_cell_shows_no_figure() -> None:
    _, line = comparison([sample("cas", 40.0, errors=2), sample("peer", 50.0)])
    assert line[1] == "invalid: 2 errors: UNAVAILABLE: gone"
    assert line[3] == "–"


def test_a_server_that_was_not_driven_has_an_empty_cell() -> None:
    head, one, two = comparison(
        [
            sample("cas", 1.0),
            sample("peer", 2.0),
            sample("cas", 1.0, workload="getac"),
        ]
    )
    assert one[head.index("peer")] != "–"
    assert two[head.index("peer")] == "–"


def test_concurrency_is_told_only_where_there_are_several() -> None:
    assert comparison([sample("cas", 1.0)])[1][0] == "GetCapabilities"
    both = comparison([sample("cas", 1.0), sample("cas", 1.0, concurrency=128)])
    assert [line[0] for line in both[1:]] == [
        "GetCapabilities, 16 in flight",
        "GetCapabilities, 128 in flight",
    ]


def test_the_verdict_counts_and_names() -> None:
    found = rows(
        [
            sample("cas", 40.0),
            sample("peer", 50.0),
            sample("cas", 60.0, workload="getac"),
            sample("peer", 50.0, workload="getac"),
            sample("other", 1.0, workload="getac", errors=1),
        ]
    )
    assert table.verdict(found) == (
        "cas uses less CPU than every peer in 1 of 2 rows; not in: GetActionResult 1.20; "
        "1 cells are invalid"
    )
    assert table.verdict([]) == "no row has both ours and a peer"


def test_text_is_aligned_and_markdown_has_a_rule() -> None:
    cells = [["operation", "x"], ["a", "1,234"]]
    assert table.text(cells).splitlines() == ["operation      x", "a          1,234"]
    assert table.markdown([["a", "b|c"], ["1", "2"]]) == "| a | b\\|c |\n| --- | ---: |\n| 1 | 2 |"
